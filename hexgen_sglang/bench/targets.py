"""Where the replay sends a request: one dispatcher, or the workers themselves in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hexgen_sglang.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Destination:
    """One request's address.

    Attributes:
        url: base address.
        worker: the worker behind it; "" when a dispatcher decides.
    """

    url: str
    worker: str = ""


class Target(Protocol):
    """Chooses the destination of each request, in the order in which they are sent."""

    def next(self) -> Destination:
        """The destination of the next request."""
        ...


class OneUrl:
    """Everything goes to one dispatcher."""

    def __init__(self, url: str) -> None:
        self._destination = Destination(url.rstrip("/"))

    def next(self) -> Destination:
        return self._destination


class WorkersInTurn:
    """Round robin by the driver itself, without any process between it and the engines.

    Args:
        urls: base address by worker name, at least one; the turn follows the mapping's order.
    """

    def __init__(self, urls: Mapping[str, str]) -> None:
        if not urls:
            raise ConfigError("workers={}: round robin needs at least one")
        self._destinations: Sequence[Destination] = [
            Destination(url.rstrip("/"), name) for name, url in urls.items()
        ]
        self._sent = 0

    def next(self) -> Destination:
        destination = self._destinations[self._sent % len(self._destinations)]
        self._sent += 1
        return destination
