"""The agent's stages, driven by hand: a script stands for the model, a table for the database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.text2sql.answer import Answer, AnswerOutcome, Question
from hexgen_sglang.text2sql.budget import StageTimes
from hexgen_sglang.text2sql.execution import Execution, SqlOutcome
from hexgen_sglang.text2sql.schema import Column, Schema, Table
from hexgen_sglang.text2sql.settings import AgentSettings
from hexgen_sglang.text2sql.stages import QuestionStages
from hexgen_sglang.text2sql.steps import Ask, AskTogether, Execute, Extend, Reply, Retrieve, Step

SCHEMA = Schema(
    (
        Table("member", (Column("id", "INTEGER", is_key=True), Column("name", "TEXT"))),
        Table("trip", (Column("id", "INTEGER"), Column("minutes", "INTEGER"))),
    )
)
# What the database of these tests knows; anything else is an error.
RESULTS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "SELECT 1": ((1,),),
    "SELECT 1.0": ((1.0,),),
    "SELECT 2": ((2,),),
    "SELECT none": (),
}

Model = Callable[[Ask], list[str | None]]


def execute(sql: str) -> Execution:
    if sql not in RESULTS:
        return Execution(sql, SqlOutcome.ERROR, message=f"no such column: {sql[7:]}")
    rows = RESULTS[sql]
    return Execution(sql, SqlOutcome.ROWS if rows else SqlOutcome.EMPTY, ("a",), rows)


class Driver:
    """Carries out the stages' steps on a scripted model and remembers what was asked and run.

    Keywords are off, unless the settings say otherwise. Replies of a stage come in order; those
    behind the one with which enough agree are late.
    """

    def __init__(
        self,
        script: dict[str, list[list[str | None]]],
        settings: AgentSettings | None = None,
        remaining_s: Callable[[], float | None] = lambda: None,
        question: str = "How many trips?",
        values: Callable[[str], list[str]] = lambda text: [],
        times: StageTimes | None = None,
    ) -> None:
        self.asks: list[Ask] = []
        self.executed: list[str] = []
        self.prefix = ""
        self._script = script
        self._values = values
        settings = settings or AgentSettings(max_keyword_tokens=0)
        stages = QuestionStages(Question(question), SCHEMA, (), settings, remaining_s, times)
        steps = stages.run()
        result: Any = None
        while True:
            try:
                result = self._carried_out(steps.send(result))
            except StopIteration as end:
                self.answer: Answer = end.value
                return

    def _carried_out(self, step: Step) -> Any:
        match step:
            case Execute():
                return self._run(step.sqls)
            case Retrieve():
                return self._values(step.text)
            case Extend():
                self.prefix += step.text
                return None
            case AskTogether():
                return [self._ask(ask) for ask in step.asks]
            case Ask():
                return self._ask(step)

    def _run(self, sqls: Sequence[str]) -> list[Execution]:
        self.executed += sqls
        return [execute(sql) for sql in sqls]

    def _ask(self, ask: Ask) -> list[Reply]:
        self.asks.append(ask)
        texts = self._script[ask.stage].pop(0)
        assert len(texts) == len(ask.tails) == len(ask.temperatures)
        replies = []
        for text in texts:
            if ask.agreement is not None and ask.agreement.is_enough:
                replies.append(Reply(None, is_late=True))
                continue
            replies.append(Reply(text, "" if text is not None else "boom"))
            if ask.agreement is not None:
                written, new = ask.agreement.statements([text])
                ask.agreement.note(written, self._run(new))
        return replies

    @property
    def stages(self) -> list[tuple[str, int]]:
        return [(ask.stage, len(ask.tails)) for ask in self.asks]


def test_agreeing_candidates_need_no_more_stages() -> None:
    driver = Driver(
        {
            "link_schema": [[" trip"]],
            "generate_candidate": [[" SELECT 1", "SELECT 1.0;", " SELECT 1 ; x"]],
        }
    )
    assert driver.stages == [("link_schema", 1), ("generate_candidate", 3)]
    assert driver.executed == ["SELECT 1", "SELECT 1.0"]
    answer = driver.answer
    assert (answer.outcome, answer.sql, answer.rows) == (AnswerOutcome.ROWS, "SELECT 1", ((1,),))
    assert answer.linked_tables == ("trip",)
    assert answer.failures == ()


def test_candidates_differ_in_prompt_and_the_first_are_greedy() -> None:
    driver = Driver(
        {"link_schema": [["trip"]], "generate_candidate": [["SELECT 1"] * 5]},
        AgentSettings(num_candidates=5, temperature=0.5, max_keyword_tokens=0),
    )
    ask = driver.asks[1]
    assert len(set(ask.tails)) == 3
    assert ask.temperatures == (0.0, 0.0, 0.0, 0.5, 0.5)
    assert all(tail.endswith("SQL:") for tail in ask.tails)
    assert "Tables: trip" in ask.tails[1]
    assert "trip(id, minutes)" in ask.tails[2]


def test_the_same_prompt_is_sampled_from_the_second_time_on() -> None:
    # Nothing is linked, so that all strategies say the same.
    driver = Driver(
        {"link_schema": [[""]], "generate_candidate": [["SELECT 1"] * 3]}, question="How many?"
    )
    ask = driver.asks[1]
    assert len(set(ask.tails)) == 1
    assert ask.temperatures == (0.0, 0.6, 0.6)


def test_tables_are_linked_from_the_question_and_from_the_model() -> None:
    driver = Driver(
        {"link_schema": [[" member, nothing"]], "generate_candidate": [["SELECT 1"] * 3]},
        question="Which trips?",
    )
    assert driver.answer.linked_tables == ("trip", "member")


def test_errors_and_empty_results_are_revised_with_the_databases_words() -> None:
    driver = Driver(
        {
            "link_schema": [[""]],
            "generate_candidate": [["SELECT bad", "SELECT bad", "SELECT none"]],
            "revise": [["SELECT worse", "SELECT 2"], ["SELECT 1"]],
            "generate_unit_test": [["", ""]],
        }
    )
    assert driver.stages[2:] == [("revise", 2), ("revise", 1), ("generate_unit_test", 2)]
    first, second = driver.asks[2], driver.asks[3]
    assert "SQL: SELECT bad;\nError: no such column: bad\n" in first.tails[0]
    assert "Error: the result is empty\n" in first.tails[1]
    assert "SELECT worse;\nError: no such column: worse\n" in second.tails[0]
    assert [one.num_revisions for one in driver.answer.candidates] == [2, 2, 1]
    assert driver.answer.sql == "SELECT 1"
    assert "error: no such column: bad: SELECT bad" in driver.answer.failures


def test_a_revision_is_told_where_an_unknown_column_is() -> None:
    driver = Driver(
        {
            "link_schema": [[""]],
            "generate_candidate": [["SELECT minutes FROM member"] * 3],
            "revise": [["SELECT 1"]],
        }
    )
    (tail,) = driver.asks[2].tails
    assert "Error: no such column: minutes FROM member (minutes is in trip)\n" in tail
    # The table that has it is shown as well.
    assert "member(id, name)\ntrip(id, minutes)\n" in tail


def test_revising_stops_after_the_last_round_and_when_nothing_changes() -> None:
    script = {
        "link_schema": [[""]],
        "generate_candidate": [["SELECT bad", "SELECT bad", "SELECT bad"]],
        "revise": [["SELECT bad2"], ["SELECT bad3"], ["SELECT bad4"]],
    }
    driver = Driver(script, AgentSettings(max_rounds=2, max_keyword_tokens=0))
    assert [stage for stage, _ in driver.stages].count("revise") == 2
    assert driver.answer.outcome is AnswerOutcome.NO_VALID_SQL
    assert (driver.answer.sql, driver.answer.message) == ("SELECT bad3", "no such column: bad3")
    driver = Driver(
        {
            "link_schema": [[""]],
            "generate_candidate": [["SELECT bad"] * 3],
            "revise": [["I do not know"]],
        }
    )
    assert [stage for stage, _ in driver.stages].count("revise") == 1
    assert driver.answer.outcome is AnswerOutcome.NO_VALID_SQL


def test_an_empty_result_is_kept_when_its_revision_fails() -> None:
    driver = Driver(
        {
            "link_schema": [[""]],
            "generate_candidate": [["SELECT none"] * 3],
            "revise": [["SELECT bad"], ["SELECT bad"]],
        }
    )
    assert (driver.answer.outcome, driver.answer.sql) == (AnswerOutcome.EMPTY, "SELECT none")
    assert driver.answer.message == "the result is empty"


def test_differing_results_are_put_to_the_test() -> None:
    driver = Driver(
        {
            "link_schema": [[""]],
            "generate_candidate": [["SELECT 1", "SELECT 2", "SELECT 1"]],
            "generate_unit_test": [[" One number.", " It is two."]],
            "evaluate": [[" no", " no", " yes", " Yes."]],
        },
        AgentSettings(agree_at=0, max_keyword_tokens=0),
    )
    assert driver.stages[2:] == [("generate_unit_test", 2), ("evaluate", 4)]
    assert driver.answer.checks == ("One number.", "It is two.")
    assert "Result: a = 2\n" in driver.asks[-1].tails[-1]
    assert driver.answer.sql == "SELECT 2"
    assert [one.checks_passed for one in driver.answer.candidates] == [0, 2, 0]


def test_enough_agreement_settles_the_question() -> None:
    driver = Driver(
        {
            "link_schema": [[""]],
            "generate_candidate": [["SELECT bad", "SELECT 2", "SELECT 2", "SELECT 1", "SELECT 1"]],
        },
        AgentSettings(num_candidates=5, agree_at=2, max_keyword_tokens=0),
    )
    assert driver.stages == [("link_schema", 1), ("generate_candidate", 5)]
    assert driver.executed == ["SELECT bad", "SELECT 2"]
    assert driver.answer.sql == "SELECT 2"
    assert [one.is_valid for one in driver.answer.candidates] == [False, True, True]
    assert driver.answer.failures == ("error: no such column: bad: SELECT bad",)


def test_empty_results_never_agree() -> None:
    driver = Driver(
        {
            "link_schema": [[""]],
            "generate_candidate": [["SELECT none"] * 3],
            "revise": [["SELECT 1"]],
        },
        AgentSettings(agree_at=1, max_rounds=1, max_keyword_tokens=0),
    )
    assert driver.stages[-1] == ("revise", 1)
    assert driver.answer.sql == "SELECT 1"


def test_keywords_lead_to_values_that_later_stages_share() -> None:
    known = {"How many trips?": ["a.b = 'x'"], "long trips, short": ["a.b = 'x'", "a.b = 'y'"]}
    driver = Driver(
        {
            "link_schema": [["trip"]],
            "extract_keywords": [[" long trips; short,\nQ: more"]],
            "generate_candidate": [["SELECT 1"] * 3],
        },
        AgentSettings(),
        values=known.__getitem__,
    )
    assert [ask.stage for ask in driver.asks[:2]] == ["link_schema", "extract_keywords"]
    assert driver.prefix.endswith("Q: How many trips?\nValues: a.b = 'x'\nValues: a.b = 'y'\n")


def test_without_keywords_nothing_more_is_looked_for() -> None:
    texts: list[str] = []

    def values(text: str) -> list[str]:
        texts.append(text)
        return []

    Driver(
        {
            "link_schema": [[""]],
            "extract_keywords": [[" ??, ;"]],
            "generate_candidate": [["SELECT 1"] * 3],
        },
        AgentSettings(),
        values=values,
    )
    assert texts == ["How many trips?"]


def test_the_fallback_model_answers_when_the_usual_one_is_too_slow() -> None:
    times = StageTimes()
    times.note("generate_candidate", 3, 10.0)
    times.note("generate_candidate", 3, 1.0, "small")
    driver = Driver(
        {"link_schema": [[""]], "generate_candidate": [["SELECT 1"]]},
        AgentSettings(max_keyword_tokens=0, fallback_model="small"),
        remaining_s=lambda: 2.0,
        times=times,
    )
    assert {ask.model for ask in driver.asks} == {"small"}
    assert {one.knob.value for one in driver.answer.dropped} == {"model", "candidates"}


def test_without_checks_agreement_decides() -> None:
    driver = Driver(
        {"link_schema": [[""]], "generate_candidate": [["SELECT 1", "SELECT 2", "SELECT 2"]]},
        AgentSettings(num_checks=0, max_keyword_tokens=0),
    )
    assert driver.stages == [("link_schema", 1), ("generate_candidate", 3)]
    assert driver.answer.sql == "SELECT 2"


def test_after_the_deadline_as_little_as_possible_is_done() -> None:
    driver = Driver({"generate_candidate": [["SELECT 1"]]}, remaining_s=lambda: -0.1)
    assert driver.stages == [("generate_candidate", 1)]
    assert driver.answer.skipped == ("link_schema",)
    assert [str(one) for one in driver.answer.dropped] == [
        "candidates 3 -> 1: the deadline had passed"
    ]
    assert driver.answer.outcome is AnswerOutcome.ROWS
    driver = Driver({"generate_candidate": [["SELECT x"]]}, remaining_s=lambda: -0.1)
    assert driver.answer.skipped == ("link_schema", "revise")
    assert [one.knob.value for one in driver.answer.dropped] == ["candidates", "rounds"]


def test_a_deadline_that_passes_midway_leaves_out_what_refines() -> None:
    left_s = iter([9.0, 9.0, -0.1, -0.1, -0.1])
    driver = Driver(
        {"link_schema": [[""]], "generate_candidate": [["SELECT 1", "SELECT 2", "SELECT x"]]},
        remaining_s=lambda: next(left_s),
    )
    assert driver.answer.skipped == ("revise", "generate_unit_test")
    assert [str(one) for one in driver.answer.dropped] == [
        "rounds 2 -> 0: the deadline had passed",
        "evaluations 2 -> 0: the deadline had passed",
    ]


def test_a_model_that_writes_no_sql_is_an_outcome() -> None:
    driver = Driver({"link_schema": [["?"]], "generate_candidate": [["Sorry.", "", "no idea"]]})
    assert (driver.answer.outcome, driver.answer.sql) == (AnswerOutcome.NO_SQL, None)
    assert driver.answer.message == "the model wrote no SQL"


def test_failed_requests_are_an_outcome_too() -> None:
    driver = Driver({"link_schema": [[None]], "generate_candidate": [[None, None, None]]})
    assert driver.answer.outcome is AnswerOutcome.MODEL_FAILED
    assert driver.answer.message == "generate_candidate: boom"
    assert len(driver.answer.failures) == 4


def test_one_failed_sibling_does_not_spoil_the_others() -> None:
    driver = Driver(
        {
            "link_schema": [["trip"]],
            "generate_candidate": [[None, "SELECT bad", "SELECT 2"]],
            "revise": [[None]],
        }
    )
    assert (driver.answer.outcome, driver.answer.sql) == (AnswerOutcome.ROWS, "SELECT 2")


def test_stages_of_a_workflow_share_its_prefix_by_construction() -> None:
    driver = Driver(
        {
            "link_schema": [[""]],
            "generate_candidate": [["SELECT 1", "SELECT 2", "SELECT bad"]],
            "revise": [["SELECT 1"]],
            "generate_unit_test": [["One.", "Two."]],
            "evaluate": [["yes"] * 4],
        }
    )
    assert driver.prefix.endswith("Q: How many trips?\n")
    for ask in driver.asks:
        assert all(tail and not tail.startswith(driver.prefix) for tail in ask.tails)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_candidates", 0),
        ("max_rounds", 11),
        ("num_checks", 9),
        ("agree_at", 33),
        ("max_keyword_tokens", 513),
        ("max_sql_tokens", 7),
        ("max_check_tokens", 3),
        ("max_link_tokens", 600),
        ("temperature", 2.5),
    ],
)
def test_settings_are_bounded(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"AgentSettings\.{field}={value}: must be"):
        AgentSettings(**{field: value})  # type: ignore[arg-type]
