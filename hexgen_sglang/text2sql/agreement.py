"""When enough candidates agree, so that the others need not be awaited. Pure, no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hexgen_sglang.text2sql import extract
from hexgen_sglang.text2sql.execution import Execution, SqlOutcome


class Agreement:
    """Follows the candidates of one stage as their replies come; used by one driver at a time.

    Args:
        agree_at: so many candidates with the same rows are enough, at least 1; None: all are
            awaited.
    """

    def __init__(self, agree_at: int | None) -> None:
        self._agree_at = agree_at
        self._executions: dict[str, Execution] = {}
        self._counts: Counter[tuple[object, ...]] = Counter()

    def statements(self, texts: Sequence[str | None]) -> tuple[list[str], list[str]]:
        """The statements in these replies, and which different ones have not been run yet."""
        found = [extract.sql_from(text or "") for text in texts]
        written = [sql for sql in found if sql is not None]
        return written, [sql for sql in dict.fromkeys(written) if sql not in self._executions]

    def note(self, written: Sequence[str], executions: Sequence[Execution]) -> None:
        """What `statements` gave, and what the new ones gave when they were run."""
        self._executions |= {one.sql: one for one in executions}
        for sql in written:
            execution = self._executions[sql]
            if execution.outcome is SqlOutcome.ROWS:
                self._counts[execution.fingerprint()] += 1

    @property
    def executions(self) -> dict[str, Execution]:
        """All that was noted, by statement."""
        return dict(self._executions)

    @property
    def is_enough(self) -> bool:
        """Whether so many have the same rows that the others are late."""
        most = max(self._counts.values(), default=0)
        return self._agree_at is not None and most >= self._agree_at

    @property
    def has_rows(self) -> bool:
        """Whether at least one gave rows, so that there is something to answer with."""
        return bool(self._counts)
