"""Whether the rows of one query are those of another, under three rules. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import sqlglot
from sqlglot.errors import SqlglotError

from hexgen_sglang.text2sql.execution import Execution
from hexgen_sglang.text2sql.source import Dialect


@dataclass(frozen=True, slots=True)
class Match:
    """Whether rows agree; names of columns never count, their order does.

    Attributes:
        is_right: the same rows as often, in any order. This is execution accuracy here.
        in_order: as `is_right`, and in the same order where the gold query orders its rows.
        as_set: the same different rows: BIRD's own rule.
    """

    is_right: bool = False
    in_order: bool = False
    as_set: bool = False

    def __or__(self, other: Match) -> Match:
        return Match(
            self.is_right or other.is_right,
            self.in_order or other.in_order,
            self.as_set or other.as_set,
        )


def match(predicted: Execution, gold: Execution, dialect: Dialect) -> Match:
    """Compare two executions; one that did not run, or was cut off, matches nothing."""
    if not (predicted.ran and gold.ran) or predicted.truncated or gold.truncated:
        return Match()
    ours, theirs = predicted.comparable_rows(), gold.comparable_rows()
    is_right = sorted(ours) == sorted(theirs)
    return Match(
        is_right=is_right,
        in_order=is_right and (ours == theirs or not is_ordered(gold.sql, dialect)),
        as_set=set(ours) == set(theirs),
    )


def is_ordered(sql: str, dialect: Dialect) -> bool:
    """Whether a query orders its rows; what sqlglot cannot parse does not."""
    try:
        parsed = sqlglot.parse_one(sql, read=dialect.parser)
    except (SqlglotError, RecursionError):
        return False
    return parsed.args.get("order") is not None
