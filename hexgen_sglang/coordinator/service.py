"""Builds a coordinator from its configuration, and runs its background work.

The HTTP server around it is in `server`; this much can run in a test's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from hexgen_sglang.coordinator.admission import Parts
from hexgen_sglang.coordinator.attempt_io import AttemptIO
from hexgen_sglang.coordinator.config import CoordinatorFile
from hexgen_sglang.coordinator.dispatcher import Dispatcher, with_deadline
from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.exchange import Exchanges
from hexgen_sglang.coordinator.health import HealthWatch
from hexgen_sglang.coordinator.link import CoordinatorLink
from hexgen_sglang.coordinator.link_events import LinkEvents
from hexgen_sglang.coordinator.metrics import Metrics
from hexgen_sglang.coordinator.queue import CentralQueue
from hexgen_sglang.coordinator.worker import RoomRules
from hexgen_sglang.coordinator.worker_client import WorkerClient
from hexgen_sglang.coordinator.workers import WorkerDirectory, allowed_hosts
from hexgen_sglang.coordinator.workflows import Workflow, WorkflowTracker
from hexgen_sglang.policies.dispatch import DISPATCH
from hexgen_sglang.policies.ordering import ORDERING
from hexgen_sglang.protocol.messages import Cancel, CoordinatorMessage, Reprioritise
from hexgen_sglang.transport.interface import CoordinatorEnd

log = logging.getLogger(__name__)

_SWEEP_INTERVAL_S = 5.0
# Reports that fail to come for this many heartbeats make a worker's load unknown.
_STALE_HEARTBEATS = 3


class Coordinator:
    """A whole coordinator. Make and run it on the event loop.

    Args:
        settings: the configuration.
        end: the link's end towards the workers; None without a link. The caller closes it.

    Attributes:
        parts: what a request passes.
        exchanges: the requests in progress.
    """

    def __init__(self, settings: CoordinatorFile, end: CoordinatorEnd | None = None) -> None:
        config = settings.coordinator
        self.settings = settings
        self.config = config
        metrics, estimates = Metrics(), Estimates(config.trust_output_limits)
        stale_after_s = _STALE_HEARTBEATS * config.heartbeat_ms / 1000
        directory = WorkerDirectory(
            estimates,
            metrics,
            allowed_hosts(config.allowed_worker_hosts, settings.workers),
            config.max_workers,
            self._kick,
        )
        dispatcher = Dispatcher(
            DISPATCH.create(config.dispatch, **config.dispatch_settings),
            config.dispatch,
            directory.ready,
            estimates,
            RoomRules(
                config.look_ahead,
                config.look_ahead_tokens,
                config.default_max_in_flight,
                stale_after_s,
                early=config.binding == "early",
            ),
            metrics,
        )
        queue = CentralQueue(
            ORDERING.create(config.ordering, **config.ordering_settings),
            config.max_queued,
            config.max_queued_bytes,
            dispatcher.retry_after_s,
        )
        dispatcher.serve(queue)
        client = WorkerClient(config.connect_timeout_s)
        self.parts = Parts(
            config=config,
            queue=queue,
            dispatcher=dispatcher,
            directory=directory,
            tracker=WorkflowTracker(
                estimates.stages,
                config.max_workflows,
                config.workflow_idle_s,
                dict(config.default_budget_ms),
                self._workflow_ended,
            ),
            estimates=estimates,
            metrics=metrics,
            client=client,
            attempts=AttemptIO(
                client,
                first_byte_timeout_s=config.first_byte_timeout_s,
                stream_gap_timeout_s=config.stream_gap_timeout_s,
            ),
        )
        self.exchanges = Exchanges(self.parts)
        self._health = HealthWatch(
            client,
            directory,
            interval_s=config.health_interval_s,
            timeout_s=config.health_timeout_s,
            num_failures=config.health_failures,
        )
        directory.watch_with(self._health)
        self._link = None if end is None else CoordinatorLink(end, self._link_events())

    @property
    def has_link(self) -> bool:
        """Whether workers' plugins can connect."""
        return self._link is not None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Background work goes on inside this block: probes, link, sweeping."""
        for row in self.settings.workers:
            self.parts.directory.add(row, "config")
        tasks = [asyncio.create_task(self._sweep())]
        if self._link is not None:
            tasks.append(asyncio.create_task(self._link.run()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._health.close()
            await self.parts.client.close()

    async def set_budget(self, workflow: Workflow, budget_ms: int | None) -> None:
        """Change a workflow's deadline here and in the engines that work on it."""
        parts = self.parts
        parts.tracker.set_budget(workflow, budget_ms, parts.clock())
        remaining_ms = 0.0
        for request in self.exchanges.live.values():
            if request.workflow is workflow:
                remaining_s = request.view.predicted_remaining_s
                with_deadline(request, workflow.deadline_s, remaining_s)
                parts.queue.reorder(request)
                remaining_ms = max(remaining_ms, remaining_s * 1000)
        parts.dispatcher.kick()
        await self._tell_workers(
            workflow, Reprioritise(workflow.workflow_id, budget_ms, remaining_ms)
        )

    async def cancel(self, workflow: Workflow) -> int:
        """End a workflow and its requests, here and in the engines; returns how many."""
        self.parts.tracker.end(workflow, self.parts.clock(), cancelled=True)
        await self._tell_workers(workflow, Cancel(workflow.workflow_id, None))
        return len(self.exchanges.cancel_workflow(workflow.workflow_id))

    def exposition(self) -> bytes:
        """Metrics in Prometheus' text format."""
        parts = self.parts
        parts.metrics.queued.set(len(parts.queue))
        parts.metrics.lasting.set(parts.tracker.num_lasting)
        for worker in parts.directory.workers.values():
            parts.metrics.set_worker(worker)
        return parts.metrics.exposition()

    async def _tell_workers(self, workflow: Workflow, message: CoordinatorMessage) -> None:
        """Send a message to the linked workers that hold requests of the workflow."""
        if self._link is None:
            return
        holders = {
            request.attempt.worker.worker_id
            for request in self.exchanges.live.values()
            if request.workflow is workflow and request.attempt is not None
        }
        for worker_id in sorted(holders):
            if not await self._link.send_to(worker_id, message):
                log.info("worker %s: not told of %s", worker_id, type(message).__name__)

    def _link_events(self) -> LinkEvents:
        config = self.config
        return LinkEvents(
            self.parts.directory,
            self.parts.estimates,
            coordinator_id=config.coordinator_id,
            heartbeat_ms=config.heartbeat_ms,
            is_authenticated=config.keys is not None,
            on_load=self._kick,
        )

    def _kick(self) -> None:
        self.parts.dispatcher.kick()

    def _workflow_ended(self, workflow: Workflow) -> None:
        ended_s = workflow.ended_s if workflow.ended_s is not None else time.monotonic()
        self.parts.metrics.workflow_ended(workflow, ended_s)

    async def _sweep(self) -> None:
        """End idle workflows now and then."""
        while True:
            await asyncio.sleep(_SWEEP_INTERVAL_S)
            self.parts.tracker.sweep(self.parts.clock())


def link_end(settings: CoordinatorFile) -> CoordinatorEnd | None:
    """The ZMQ end that the configuration asks for; None without a link.

    Call it inside the running event loop, and close it.

    Raises:
        ConfigError: the endpoint cannot be bound, or the keys cannot be read.
    """
    from hexgen_sglang.transport.zmq_link import ZmqCoordinatorEnd, load_coordinator_keys

    config = settings.coordinator
    if not config.link:
        return None
    keys = None if config.keys is None else load_coordinator_keys(Path(config.keys))
    return ZmqCoordinatorEnd(config.link, keys)
