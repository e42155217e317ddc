"""What running one piece of SQL gave, and the limits it ran under: plain values.

Made by the sandbox, read by the agent, the evaluation and the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hexgen_sglang.core.errors import ConfigError

Cell = str | int | float | None


class SqlOutcome(StrEnum):
    """How one execution ended. The last three carry a message."""

    ROWS = "rows"  # it ran and gave at least one row
    EMPTY = "empty"  # it ran and gave none
    ERROR = "error"  # the database says that it is wrong
    REFUSED = "refused"  # not one read-only query, or it reaches for what is forbidden
    LIMIT = "limit"  # it ran into a limit of time, memory or size


@dataclass(frozen=True, slots=True)
class SqlLimits:
    """Bounds of one execution.

    Attributes:
        time_s: seconds from start to last row, above 0 and at most 600.
        max_rows: rows kept, 1 to 100,000; more are cut off, which is not an error.
        max_bytes: size of the rows kept, 1,000 to 100,000,000; cut off likewise.
        max_value_bytes: longest single string or blob that SQL may build, 1,000 to 10,000,000.
        memory_bytes: what the database engine may allocate, at least 1,000,000.
        max_sql_chars: longest statement, 1 to 1,000,000.

    Raises:
        ConfigError: a bound is out of its range.
    """

    time_s: float = 2.0
    max_rows: int = 200
    max_bytes: int = 200_000
    max_value_bytes: int = 1_000_000
    memory_bytes: int = 128_000_000
    max_sql_chars: int = 10_000

    def __post_init__(self) -> None:
        for name, low, high in (
            ("time_s", 1e-3, 600),
            ("max_rows", 1, 100_000),
            ("max_bytes", 1_000, 100_000_000),
            ("max_value_bytes", 1_000, 10_000_000),
            ("memory_bytes", 1_000_000, 64_000_000_000),
            ("max_sql_chars", 1, 1_000_000),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"SqlLimits.{name}={value}: must be {low} to {high}")


@dataclass(frozen=True, slots=True)
class Execution:
    """One statement's outcome; rows and columns are empty unless it is ROWS or EMPTY.

    Attributes:
        sql: the statement.
        columns: names as the database gives them.
        rows: at most the limits' rows and bytes; blobs appear as `x'..'` text.
        truncated: there were more rows than the limits let through.
        message: the database's or the sandbox's own words; "" when it ran.
        elapsed_s: seconds in the sandbox.
    """

    sql: str
    outcome: SqlOutcome
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    truncated: bool = False
    message: str = ""
    elapsed_s: float = 0.0

    @property
    def ran(self) -> bool:
        """Whether the statement was executed to its end or to the row limit."""
        return self.outcome in {SqlOutcome.ROWS, SqlOutcome.EMPTY}

    def fingerprint(self) -> tuple[object, ...]:
        """Equal for executions that agree: the same rows in any order, names ignored.

        Numbers compare by value (1 and 1.0 agree; floats to 6 significant digits).
        """
        return tuple(sorted(self.comparable_rows()))

    def comparable_rows(self) -> list[tuple[str, ...]]:
        """The rows in their order, each cell as text that is equal where cells agree."""
        return [tuple(_comparable(cell) for cell in row) for row in self.rows]


def _comparable(cell: Cell) -> str:
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return f"n{cell:.6g}" if abs(cell) < 1e15 else f"n{cell}"
    return "null" if cell is None else f"t{cell}"
