"""Follows one worker's KV events: in order, without gaps, or else from the beginning again.

Batches are numbered. A number that is missing is asked for at the worker's replay endpoint; what
cannot be had that way makes the index start anew, not whole, and the record of what was sent
counts again for that worker. Numbers that begin again are another process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from hexgen_sglang.coordinator.config import WorkerConfig
from hexgen_sglang.coordinator.kv_index import KvIndex
from hexgen_sglang.coordinator.metrics import Metrics
from hexgen_sglang.coordinator.worker import Worker
from hexgen_sglang.core.errors import ProtocolError
from hexgen_sglang.protocol.kv_events import decode_kv_events

log = logging.getLogger(__name__)

_REPLAY_TIMEOUT_S = 5.0
REPLAYED, REBUILT = "replayed", "rebuilt"


class KvSource(Protocol):
    """Where the batches come from; see `transport.kv_events`."""

    @property
    def can_replay(self) -> bool: ...

    async def receive(self) -> tuple[int, bytes]:
        """The next batch and its number."""
        ...

    async def replay(self, first: int, timeout_s: float) -> list[tuple[int, bytes]] | None:
        """What is kept of the batches from `first` on; None without an answer."""
        ...


class KvFollower:
    """Keeps the index of one worker.

    Args:
        source: its events.
        index: kept up to date.
        worker_id: for the log.
        on_gap: told of each gap, with how it was closed: "replayed" or "rebuilt".
    """

    def __init__(
        self, source: KvSource, index: KvIndex, worker_id: str, on_gap: Callable[[str], None]
    ) -> None:
        self._source = source
        self._index = index
        self._worker_id = worker_id
        self._on_gap = on_gap
        self._last: int | None = None
        self._replayed: dict[int, bytes] = {}

    async def run(self) -> None:
        """Follow until cancelled."""
        if self._source.can_replay:
            await self._begin()
        while True:
            await self._take(*await self._source.receive())

    async def _begin(self) -> None:
        """Take what the worker has kept since its start."""
        batches = await self._source.replay(0, _REPLAY_TIMEOUT_S)
        if batches is None or (batches and batches[0][0] != 0):
            return
        self._index.clear()
        self._index.is_whole = True
        self._last = -1
        self._apply(batches)

    async def _take(self, number: int, payload: bytes) -> None:
        if self._replayed.pop(number, None) == payload:
            return
        if self._last is not None and number <= self._last:
            log.info("worker %s: its KV events begin anew", self._worker_id)
            self._index.clear()
            self._last = None
        if self._last is None and number == 0:
            self._index.is_whole = True
        elif self._last is None or number > self._last + 1:
            await self._close_gap()
            if self._last is not None and number <= self._last:
                self._replayed.pop(number, None)
                return
        self._apply([(number, payload)])

    async def _close_gap(self) -> None:
        """Ask for what is missing; without it, nothing known can be trusted."""
        first = 0 if self._last is None else self._last + 1
        batches = None
        if self._source.can_replay:
            batches = await self._source.replay(first, _REPLAY_TIMEOUT_S)
        if batches and batches[0][0] == first:
            if first == 0:
                self._index.is_whole = True
            self._apply(batches)
            self._on_gap(REPLAYED)
            return
        log.warning("worker %s: KV events from %d on are lost", self._worker_id, first)
        self._index.clear()
        self._on_gap(REBUILT)

    def _apply(self, batches: list[tuple[int, bytes]]) -> None:
        """Take batches in; each follows the one before, or the index is told so."""
        self._replayed = dict(batches) if len(batches) > 1 else {}
        for number, payload in batches:
            try:
                events = decode_kv_events(payload)
            except ProtocolError as error:
                log.warning("worker %s: %s", self._worker_id, error)
                self._index.clear()
                self._on_gap(REBUILT)
            else:
                self._index.take(events)
            self._last = number


async def follow_kv_events(worker: Worker, row: WorkerConfig, metrics: Metrics) -> None:
    """Keep the worker's index from the events that its row of the configuration names.

    Raises:
        ConfigError: an endpoint cannot be connected to.
    """
    from hexgen_sglang.transport.kv_events import ZmqKvEvents

    worker.kv_index = KvIndex()

    def note(outcome: str) -> None:
        metrics.kv_gaps.labels(metrics.worker_label(worker.worker_id), outcome).inc()

    source = ZmqKvEvents(row.kv_events, row.kv_replay)
    try:
        await KvFollower(source, worker.kv_index, worker.worker_id, note).run()
    finally:
        source.close()
