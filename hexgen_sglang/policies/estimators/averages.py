"""Means that forget slowly, and a table of them that cannot grow without end."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class RunningMean:
    """Mean of a stream: plain over the first 1/`weight` samples, exponential after that.

    Args:
        weight: share of a new sample in the long run, in (0, 1].

    Attributes:
        mean: 0.0 while `count` is 0.
        count: samples seen.
    """

    __slots__ = ("_weight", "count", "mean")

    def __init__(self, weight: float = 0.05) -> None:
        self._weight = weight
        self.mean = 0.0
        self.count = 0

    def add(self, sample: float) -> None:
        """Take one finite sample in."""
        self.count += 1
        self.mean += max(1.0 / self.count, self._weight) * (sample - self.mean)


class DecayedRate:
    """Amount per second: decayed sum of amounts over decayed sum of seconds.

    Long samples weigh more than short ones, as they should: their overhead is relatively
    smaller and their information larger.

    Args:
        keep: share of the old sums kept at each sample, in (0, 1).
    """

    __slots__ = ("_amount", "_keep", "_seconds", "count")

    def __init__(self, keep: float = 0.98) -> None:
        self._keep = keep
        self._amount = 0.0
        self._seconds = 0.0
        self.count = 0

    def add(self, amount: float, seconds: float) -> None:
        """Take one sample in; one without amount or without duration says nothing."""
        if amount <= 0 or seconds <= 0:
            return
        self.count += 1
        self._amount = self._keep * self._amount + amount
        self._seconds = self._keep * self._seconds + seconds

    @property
    def per_second(self) -> float | None:
        """The rate, above 0; None before the first sample."""
        return self._amount / self._seconds if self.count else None


class BoundedTable(Generic[K, V]):
    """Values by key, made on first use; at `max_entries` the longest unused one goes.

    Args:
        make: makes the value of a new key.
        max_entries: at least 1.
    """

    def __init__(self, make: Callable[[], V], max_entries: int) -> None:
        self._make = make
        self._max_entries = max_entries
        self._entries: OrderedDict[K, V] = OrderedDict()

    def at(self, key: K) -> V:
        """The value of `key`, made when new; counts as a use."""
        value = self._entries.get(key)
        if value is None:
            value = self._entries[key] = self._make()
            if len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)
        self._entries.move_to_end(key)
        return value

    def get(self, key: K) -> V | None:
        """The value of `key`, or None; does not count as a use."""
        return self._entries.get(key)

    def move(self, old: K, new: K) -> None:
        """Give a value another key, whose own value is dropped; no value, no effect."""
        value = self._entries.pop(old, None)
        if value is not None:
            self._entries[new] = value

    def drop(self, wanted: Callable[[K], bool]) -> None:
        """Forget every key for which `wanted` is true."""
        for key in [key for key in self._entries if wanted(key)]:
            del self._entries[key]

    def items(self) -> list[tuple[K, V]]:
        """Every key with its value; does not count as a use."""
        return list(self._entries.items())

    def __len__(self) -> int:
        return len(self._entries)
