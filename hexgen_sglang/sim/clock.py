"""The virtual clock: events in a total order of (time, priority, sequence).

Two events of one instant run by priority, those of one priority in the order in which they
were scheduled, so that a run is the same every time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

Action = Callable[[], None]


class Event:
    """Something that will happen; `cancel` makes it not happen."""

    __slots__ = ("action", "at_s")

    def __init__(self, at_s: float, action: Action) -> None:
        self.at_s = at_s
        self.action: Action | None = action

    def cancel(self) -> None:
        """Do nothing when its instant comes."""
        self.action = None


# What happens at one instant happens in this order: steps end, reports and answers travel,
# requests arrive; then the dispatcher looks at all of it.
STEP, MESSAGE, ARRIVAL, DISPATCH = range(4)


class EventQueue:
    """Runs events in order.

    Attributes:
        now_s: instant of the event that runs; never goes back.
        num_run: events that have run.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self.num_run = 0
        self._heap: list[tuple[float, int, int, Event]] = []
        self._sequence = 0

    def clock(self) -> float:
        """`now_s` as a function, for code that asks a clock."""
        return self.now_s

    def at(self, instant_s: float, priority: int, action: Action) -> Event:
        """Run `action` at an instant, not before now.

        Raises:
            ValueError: the instant has passed.
        """
        if instant_s < self.now_s:
            raise ValueError(f"instant={instant_s}: must be at least now, {self.now_s}")
        event = Event(instant_s, action)
        self._sequence += 1
        heapq.heappush(self._heap, (instant_s, priority, self._sequence, event))
        return event

    def run(self) -> None:
        """Run everything, also what is scheduled meanwhile, until nothing is left."""
        heap = self._heap
        while heap:
            instant_s, _, _, event = heapq.heappop(heap)
            action = event.action
            if action is None:
                continue
            self.now_s = instant_s
            self.num_run += 1
            action()
