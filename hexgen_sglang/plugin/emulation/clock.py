"""The emulated accelerator's timeline: when each step starts and ends, and waiting for its end.

In the scheduler process. A step starts when the one before it has ended and SGLang has launched
it, and ends exactly its predicted duration later; waking up late moves no later step, so errors
of the host's timer do not add up. No knowledge of SGLang here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class StepTiming:
    """When one step runs, in seconds of this process's `perf_counter` (not scaled).

    Attributes:
        start_s, end_s: on the emulated timeline.
        overhead_s: how long the accelerator stood still before it although SGLang had work:
            CPU work of SGLang that no running step hid. 0 when launched in time.
        begins_busy_period: nothing was to be done before it.
    """

    start_s: float
    end_s: float
    overhead_s: float
    begins_busy_period: bool


class EmulatedClock:
    """Steps one after another, as on a GPU's stream.

    With SGLang's overlap schedule a step is launched while the one before still runs, so that
    CPU work up to the length of a step costs no time, as on a real accelerator. Without it
    every step is launched after the last has ended, and all CPU work is overhead.

    Args:
        now: monotonic seconds.
        sleep: waits that long, or longer.
    """

    def __init__(
        self,
        now: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._now = now
        self._sleep = sleep
        self._busy_until_s = now()
        self._idle_until_s: float | None = self._busy_until_s

    def idle(self) -> None:
        """SGLang had nothing to run until now: the time before now is nobody's overhead."""
        self._idle_until_s = self._now()

    def launch(self, duration_s: float) -> StepTiming:
        """Put a step of `duration_s` at the end of the timeline."""
        now_s = self._now()
        idle_until_s = self._idle_until_s
        ready_s = self._busy_until_s
        if idle_until_s is not None and idle_until_s > ready_s:
            ready_s = idle_until_s
        start_s = max(now_s, self._busy_until_s)
        self._busy_until_s = start_s + duration_s
        self._idle_until_s = None
        overhead_s = max(0.0, now_s - ready_s)
        return StepTiming(start_s, self._busy_until_s, overhead_s, idle_until_s is not None)

    def has_passed(self, instant_s: float) -> bool:
        """Whether the timeline is past that instant."""
        return self._now() >= instant_s

    def wait_until(self, instant_s: float) -> float:
        """Return at `instant_s` or as soon after it as the host allows; how late, in seconds."""
        remaining_s = instant_s - self._now()
        while remaining_s > 0:
            self._sleep(remaining_s)
            remaining_s = instant_s - self._now()
        return -remaining_s
