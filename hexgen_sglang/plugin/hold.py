"""What keeps requests out of the waiting queue while SGLang chooses a batch. SGLang-free."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any


class Hold(ABC):
    """Takes requests out for one choice, and gives them back; on SGLang's scheduler thread.

    Attributes:
        num_held: requests held so far, each time counted.
    """

    def __init__(self) -> None:
        self.num_held = 0
        self._in_progress: Sequence[Any] = ()
        self._running: Sequence[Any] = ()
        self._held: list[Any] = []

    def begin(self, in_progress: Sequence[Any], running: Sequence[Any]) -> None:
        """A choice begins: `Req` whose prompts are being computed, and those that decode."""
        self._in_progress = in_progress
        self._running = running

    def take_out(self, waiting_queue: list[Any]) -> None:
        """Leave in the queue, which is in order, only what may be admitted now, in its order."""
        waits = list(self._waits(waiting_queue))
        if any(waits):
            pairs = list(zip(waiting_queue, waits, strict=True))
            self._held += [req for req, is_held in pairs if is_held]
            self.num_held += len(self._held)
            waiting_queue[:] = [req for req, is_held in pairs if not is_held]

    def give_back(self) -> list[Any]:
        """The held requests in their order, for the waiting queue; none are held any more."""
        held, self._held = self._held, []
        self._in_progress = self._running = ()
        return held

    @abstractmethod
    def _waits(self, waiting_queue: Sequence[Any]) -> Iterable[bool]:
        """Whether each request of the queue stays behind in this choice; nothing: none does."""
