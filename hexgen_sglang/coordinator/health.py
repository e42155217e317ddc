"""Probes every worker over HTTP and says which state it is in.

One task for each worker. A worker that lately sent bytes is not probed; a failed request wakes
the probe at once, so that a dead worker is left within milliseconds and a live one is back as
fast.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from hexgen_sglang.coordinator.live_request import AttemptFailed
from hexgen_sglang.coordinator.worker import Worker
from hexgen_sglang.coordinator.worker_client import WorkerClient
from hexgen_sglang.core.worker import WorkerState
from hexgen_sglang.protocol.emulation import STATE_FIELD

log = logging.getLogger(__name__)

_RECOVERY_INTERVAL_S = 1.0
_QUICK_TIMEOUT_S = 5.0
_MAX_MODELS = 1_024


class HealthObserver(Protocol):
    """Told what a probe found. Called on the event loop; must not block."""

    def on_healthy(self, worker: Worker) -> None:
        """The worker answers; its models and details are filled in."""
        ...

    def on_unhealthy(self, worker: Worker, why: str, *, is_hung: bool) -> None:
        """The worker does not answer; `is_hung`: it accepts connections, but does no work."""
        ...


class HealthWatch:
    """Keeps the state of workers up to date.

    Args:
        interval_s: between probes of a worker that is silent.
        timeout_s: of one `GET /health`, in which SGLang generates a token when it is idle.
        num_failures: timeouts in a row after which a worker counts as hung. A refused
            connection needs no second look.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        client: WorkerClient,
        observer: HealthObserver,
        *,
        interval_s: float,
        timeout_s: float,
        num_failures: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._observer = observer
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._num_failures = num_failures
        self._clock = clock
        self._tasks: dict[Worker, asyncio.Task[None]] = {}
        self._wake: dict[Worker, asyncio.Event] = {}

    def start(self, worker: Worker) -> None:
        """Probe this worker from now on."""
        self._wake[worker] = asyncio.Event()
        self._tasks[worker] = asyncio.get_running_loop().create_task(self._watch(worker))

    def stop(self, worker: Worker) -> None:
        """Leave this worker alone."""
        self._wake.pop(worker, None)
        task = self._tasks.pop(worker, None)
        if task is not None:
            task.cancel()

    def wake(self, worker: Worker) -> None:
        """Probe now: something went wrong, or the worker has just said hello."""
        event = self._wake.get(worker)
        if event is not None:
            event.set()

    async def close(self) -> None:
        """Stop all probes."""
        tasks = list(self._tasks.values())
        for worker in list(self._tasks):
            self.stop(worker)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, worker: Worker) -> None:
        wake = self._wake[worker]
        is_urgent = True
        while True:
            try:
                await self._probe(worker, is_urgent)
            except Exception:
                # A probe must not end because a worker answered something odd.
                log.exception("worker %s: probe failed", worker.worker_id)
            is_up = worker.state in (WorkerState.READY, WorkerState.DRAINING)
            pause_s = self._interval_s if is_up else min(self._interval_s, _RECOVERY_INTERVAL_S)
            try:
                async with asyncio.timeout(pause_s):
                    is_urgent = await wake.wait()
            except TimeoutError:
                is_urgent = False
            wake.clear()

    async def _probe(self, worker: Worker, is_urgent: bool) -> None:
        """One look at the worker; tells the observer when there is news."""
        is_up = worker.state in (WorkerState.READY, WorkerState.DRAINING) and worker.models
        silent_s = self._clock() - worker.last_alive_s
        if is_up and not is_urgent and silent_s < self._interval_s:
            return
        try:
            if not is_up or is_urgent:
                await self._read_models(worker)
            if worker.needs_full_check or not is_urgent:
                await self._client.get(f"{worker.url}/health", self._timeout_s)
            if not is_up or worker.time_scale is None or worker.kv_capacity_tokens is None:
                await self._read_server_info(worker)
        except AttemptFailed as failure:
            self._take_failure(worker, failure)
            return
        worker.num_failures = 0
        worker.needs_full_check = False
        worker.last_alive_s = self._clock()
        self._observer.on_healthy(worker)

    def _take_failure(self, worker: Worker, failure: AttemptFailed) -> None:
        worker.num_failures += 1
        worker.last_error = str(failure)
        is_gone = failure.reason in ("connect", "disconnect")
        if is_gone or worker.num_failures >= self._num_failures:
            worker.needs_full_check = worker.needs_full_check or not is_gone
            self._observer.on_unhealthy(worker, str(failure), is_hung=failure.reason == "timeout")
        else:
            worker.needs_full_check = True

    async def _read_models(self, worker: Worker) -> None:
        """What the worker serves.

        Raises:
            AttemptFailed: it does not answer, or with something else than a list of models.
        """
        listing = await self._client.get_json(f"{worker.url}/v1/models", _QUICK_TIMEOUT_S)
        rows = listing.get("data") if isinstance(listing, dict) else None
        cards = {
            card["id"]: card
            for card in (rows if isinstance(rows, list) else [])[:_MAX_MODELS]
            if isinstance(card, dict) and isinstance(card.get("id"), str)
        }
        if not cards:
            raise AttemptFailed(f"{worker.url}/v1/models: lists no model", "status")
        worker.models = tuple(cards)
        worker.model_cards = cards

    async def _read_server_info(self, worker: Worker) -> None:
        """How fast it emulates, and version and limits of a worker without our link.

        What it does not tell stays None.
        """
        try:
            info = await self._client.get_json(f"{worker.url}/server_info", _QUICK_TIMEOUT_S)
        except AttemptFailed as failure:
            log.debug("worker %s: no server_info: %s", worker.worker_id, failure)
            return
        if not isinstance(info, dict):
            return
        states = info.get("internal_states")
        state = states[0] if isinstance(states, list) and states else {}
        num_ranks = _count(info.get("dp_size")) or 1
        running = _count(_get(state, "effective_max_running_requests_per_dp"))
        capacity = _count(info.get("max_total_num_tokens"))
        worker.time_scale = _time_scale(state)
        worker.sglang_version = worker.sglang_version or str(info.get("version", ""))[:64]
        if worker.max_running_requests is None and running is not None:
            worker.max_running_requests = running * num_ranks
        if worker.kv_capacity_tokens is None and capacity is not None:
            worker.kv_capacity_tokens = capacity * num_ranks


def _get(row: Any, name: str) -> Any:
    return row.get(name) if isinstance(row, dict) else None


def _time_scale(state: Any) -> float | None:
    """As an emulated accelerator states it; 1 where there is none."""
    emulation = _get(state, STATE_FIELD)
    if emulation is None:
        return 1.0
    told = _get(emulation, "time_scale")
    is_number = isinstance(told, int | float) and not isinstance(told, bool)
    return float(told) if is_number and 0 < told < math.inf else None


def _count(value: object) -> int | None:
    """A whole number above 0, or None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
