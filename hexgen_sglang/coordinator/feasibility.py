"""Earliest deadline first on paper: who of those in progress is in time, and where one more fits.

The cluster counts as one server that works at the workflows in order of their deadlines. Pure
arithmetic over what is left of each; where the numbers come from is `deadline_gate`'s.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Due:
    """A workflow in progress, in seconds from now; or one that asks to be.

    Attributes:
        deadline_s: may have passed.
        work_s: of the whole cluster, that is left of it; at least 0.
        alone_s: that it still needs with the cluster to itself, at least 0: its stages follow
            each other.
        factor: how much longer than predicted such workflows take, at the wanted certainty.
        counts: it has a deadline that it can miss; best effort is only in the way.
    """

    deadline_s: float
    work_s: float
    alone_s: float
    factor: float = 1.0
    counts: bool = True


class Schedule:
    """The workflows in progress by deadline.

    Args:
        rows: in any order.
    """

    def __init__(self, rows: Sequence[Due]) -> None:
        self._rows = sorted(rows, key=lambda row: row.deadline_s)
        self._deadlines = [row.deadline_s for row in self._rows]
        # Work of those before each; one more entry for the end.
        self._ahead = [0.0, *accumulate(row.work_s for row in self._rows)]
        # How much more work each bears before it; None: late already, or nothing to miss.
        self._room = [
            room if row.counts and room >= 0 else None
            for row, ahead in zip(self._rows, self._ahead, strict=False)
            for room in (row.deadline_s / row.factor - row.alone_s - ahead,)
        ]
        self.num_counted = sum(row.counts for row in self._rows)
        self.num_in_time = sum(room is not None for room in self._room)

    def place(self, deadline_s: float) -> int:
        """How many of them go before one with this deadline."""
        return bisect_right(self._deadlines, deadline_s)

    def end_s(self, place: int, asked: Due) -> float:
        """Predicted seconds until one more would end behind the first `place` of them."""
        return (asked.alone_s + self._ahead[place]) * asked.factor

    def num_harmed(self, place: int, asked: Due) -> int:
        """How many behind that place are in time, and would not be with it."""
        return sum(room is not None and room < asked.work_s for room in self._room[place:])

    def earliest_s(self, asked: Due, most_harmed: int) -> float:
        """The least deadline, its own or later, that it can meet harming no more than so many."""
        first = self.place(asked.deadline_s)
        harmed = self.num_harmed(first, asked)
        least_s = asked.deadline_s
        for place in range(first, len(self._rows)):
            wanted_s = max(least_s, self.end_s(place, asked))
            if harmed <= most_harmed and wanted_s < self._deadlines[place]:
                return wanted_s
            room = self._room[place]
            harmed -= room is not None and room < asked.work_s
            least_s = self._deadlines[place]
        return max(least_s, self.end_s(len(self._rows), asked))
