"""Which candidate is the answer: those that ran, by agreement and by unit tests. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hexgen_sglang.text2sql.answer import Candidate


@dataclass(frozen=True, slots=True)
class Group:
    """Candidates whose queries gave the same rows.

    Attributes:
        members: positions in the sequence of candidates, ascending; the first speaks for all.
        has_rows: whether those rows are any.
    """

    members: tuple[int, ...]
    has_rows: bool


def groups_of(candidates: Sequence[Candidate]) -> tuple[Group, ...]:
    """The candidates that ran, grouped by result; most promising group first.

    Groups with rows come before the one without, larger before smaller, earlier before later.
    """
    by_result: dict[tuple[object, ...], list[int]] = {}
    for position, candidate in enumerate(candidates):
        if candidate.execution is not None and candidate.is_valid:
            by_result.setdefault(candidate.execution.fingerprint(), []).append(position)
    groups = [
        Group(tuple(members), candidates[members[0]].has_rows) for members in by_result.values()
    ]
    return tuple(
        sorted(groups, key=lambda group: (not group.has_rows, -len(group.members), group.members))
    )


def choose(candidates: Sequence[Candidate], num_checks: int) -> int | None:
    """Position of the candidate to answer with; None when none ran.

    A group's score is its share of the candidates that ran plus the share of checks that its
    speaker passed; rows beat no rows, and the earlier group wins a tie.
    """
    groups = groups_of(candidates)
    if not groups:
        return None
    num_valid = sum(len(group.members) for group in groups)

    def score(group: Group) -> tuple[bool, float]:
        passed = candidates[group.members[0]].checks_passed
        return group.has_rows, len(group.members) / num_valid + passed / max(1, num_checks)

    return max(groups, key=score).members[0]
