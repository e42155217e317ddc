"""Which candidate wins."""

import pytest

from hexgen_sglang.text2sql.answer import Candidate
from hexgen_sglang.text2sql.execution import Execution, SqlOutcome
from hexgen_sglang.text2sql.selection import choose, groups_of


def gave(*values: int | str, passed: int = 0) -> Candidate:
    outcome = SqlOutcome.ROWS if values else SqlOutcome.EMPTY
    rows = tuple((value,) for value in values)
    return Candidate("direct", Execution("SELECT", outcome, ("a",), rows), checks_passed=passed)


WRONG = Candidate("direct", Execution("SELECT x", SqlOutcome.ERROR, message="no such column: x"))
SILENT = Candidate("direct", None)


def test_agreement_wins() -> None:
    assert choose([gave(1), gave(2), gave(2)], 0) == 1


def test_order_of_rows_does_not_matter_for_agreement() -> None:
    assert choose([gave(3), gave(1, 2), gave(2, 1)], 0) == 1


def test_passed_checks_weigh_against_agreement() -> None:
    assert choose([gave(1), gave(1), gave(2, passed=2)], 2) == 2
    assert choose([gave(1), gave(1), gave(2, passed=1)], 4) == 0


def test_rows_beat_any_number_of_empty_results() -> None:
    assert choose([gave(), gave(), gave(), gave(7)], 0) == 3
    assert choose([WRONG, gave(), gave()], 0) == 1


def test_the_first_wins_a_tie() -> None:
    assert choose([WRONG, gave(5), gave(6)], 0) == 1


@pytest.mark.parametrize("candidates", [[], [SILENT], [WRONG, SILENT, WRONG]])
def test_without_a_query_that_ran_there_is_no_choice(candidates: list[Candidate]) -> None:
    assert choose(candidates, 2) is None
    assert groups_of(candidates) == ()


def test_groups_are_ordered_by_promise() -> None:
    groups = groups_of([gave(), gave(1), WRONG, gave(2), gave(2), gave()])
    assert [group.members for group in groups] == [(3, 4), (1,), (0, 5)]
    assert [group.has_rows for group in groups] == [True, True, False]
