"""Builds a coordinator from its configuration, and runs its background work.

The HTTP server around it is in `server`; this much can run in a test's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hexgen_sglang.coordinator import reports
from hexgen_sglang.coordinator.access import Access
from hexgen_sglang.coordinator.admission import Parts
from hexgen_sglang.coordinator.api_keys import KeyRing
from hexgen_sglang.coordinator.attempt_io import AttemptIO
from hexgen_sglang.coordinator.cold_start import stated_costs
from hexgen_sglang.coordinator.config import CoordinatorFile
from hexgen_sglang.coordinator.deadline_gate import DeadlineGate
from hexgen_sglang.coordinator.demotion import Demotion
from hexgen_sglang.coordinator.dispatcher import Dispatcher, with_deadline
from hexgen_sglang.coordinator.engine_ordering import EngineOrdering
from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.exchange import Exchanges
from hexgen_sglang.coordinator.health import HealthWatch
from hexgen_sglang.coordinator.kv_follower import follow_kv_events
from hexgen_sglang.coordinator.limits import Limiter
from hexgen_sglang.coordinator.link import CoordinatorLink
from hexgen_sglang.coordinator.link_events import LinkEvents
from hexgen_sglang.coordinator.live_request import Attempt, QueuedRequest
from hexgen_sglang.coordinator.metrics import Metrics
from hexgen_sglang.coordinator.movement import Mover
from hexgen_sglang.coordinator.peer_client import PeerClient
from hexgen_sglang.coordinator.peers import Peers
from hexgen_sglang.coordinator.placements import Placements
from hexgen_sglang.coordinator.prefix_keeper import PrefixKeeper
from hexgen_sglang.coordinator.prewarmer import Prewarmer, messages_of, token_ids_of
from hexgen_sglang.coordinator.queue import CentralQueue
from hexgen_sglang.coordinator.tenant_shares import TenantShares
from hexgen_sglang.coordinator.tracing_config import TracingConfig
from hexgen_sglang.coordinator.tuned_settings import AdjustablePolicy, TunedSettings
from hexgen_sglang.coordinator.tuning import Tuning, crew_of
from hexgen_sglang.coordinator.warming import Warmer, read_templates
from hexgen_sglang.coordinator.worker import RoomRules, Worker
from hexgen_sglang.coordinator.worker_client import WorkerClient
from hexgen_sglang.coordinator.workers import WorkerDirectory, allowed_hosts
from hexgen_sglang.coordinator.workflows import Workflow, WorkflowTracker
from hexgen_sglang.coordinator.working_set import WorkingSet
from hexgen_sglang.policies.fairness import AttainedService
from hexgen_sglang.policies.ordering import ORDERING
from hexgen_sglang.protocol.messages import Cancel, CoordinatorMessage, Reprioritise
from hexgen_sglang.transport.interface import CoordinatorEnd

if TYPE_CHECKING:
    from hexgen_sglang.coordinator.tracing import Tracing

log = logging.getLogger(__name__)

_PLACEMENTS_INTERVAL_S = 1.0
_SWEEP_TURNS = 5
_KEYS_INTERVAL_S = 1.0
# Reports that fail to come for this many heartbeats make a worker's load unknown.
_STALE_HEARTBEATS = 3
_MAX_BUDGET_MS = 86_400_000


class Coordinator:
    """A whole coordinator. Make and run it on the event loop.

    Args:
        settings: the configuration.
        end: the link's end towards the workers; None without a link. The caller closes it.

    Attributes:
        parts: what a request passes.
        exchanges: the requests in progress.
        placements: those of them that their clients carry to the workers.
        tuning: the search of better settings beside it.
        access: who may call.
        demotion: who stands back.
        listeners: told of each workflow that ends.
        tracing: where spans begin; None where nothing is traced.
        peers: the other coordinators; None without any.

    Raises:
        ConfigError: the API keys or the accelerator profiles cannot be read.
    """

    def __init__(self, settings: CoordinatorFile, end: CoordinatorEnd | None = None) -> None:
        config = settings.coordinator
        self.settings = settings
        self.config = config
        ring = None if config.api_keys is None else KeyRing(Path(config.api_keys))
        self.access = Access(ring)
        self.listeners: list[Callable[[Workflow], None]] = []
        self.tracing = _tracing(config.tracing)
        metrics = Metrics()
        estimates = Estimates(config.trust_output_limits, remaining=config.remaining_work)
        if config.accelerators is not None:
            folder = Path(config.accelerators)
            estimates.state_costs(stated_costs(folder, config.accelerators_time_scale))
        stale_after_s = _STALE_HEARTBEATS * config.heartbeat_ms / 1000
        directory = WorkerDirectory(
            estimates,
            metrics,
            allowed_hosts(config.allowed_worker_hosts, settings.workers),
            config.max_workers,
            self._kick,
            has_stated_hosts=bool(config.allowed_worker_hosts),
        )
        estimates.exact = directory.exact_match
        policy = AdjustablePolicy(config.dispatch, config.dispatch_settings)
        templates = () if config.warm is None else read_templates(Path(config.warm))
        client = WorkerClient(config.connect_timeout_s)
        rules = RoomRules(
            config.look_ahead,
            config.look_ahead_tokens,
            config.default_max_in_flight,
            stale_after_s,
            early=config.binding == "early",
        )
        self._mover = Mover(directory.workers.values, rules, config.move_overdue, Attempt.recall)
        directory.on_drain = self._drained
        self._warmer = Warmer(templates, client, estimates, metrics.template_ended)
        directory.on_ready = self._warmer.ready
        shares = _tenant_shares(settings)
        working_set = WorkingSet(config.working_set if config.binding == "late" else 0.0, shares)
        dispatcher = Dispatcher(
            policy, config.dispatch, directory.ready, estimates, rules, metrics, working_set
        )
        self.demotion = Demotion(
            config.demotion_ageing, time.monotonic, caution=config.demotion_caution
        )
        self.demotion.on_engine = self._put_off
        queue = CentralQueue(
            ORDERING.create(config.ordering, **config.ordering_settings),
            config.max_queued,
            config.max_queued_bytes,
            dispatcher.retry_after_s,
            self.demotion,
            shares,
        )
        dispatcher.serve(queue)
        # Coordinators before the same engines would each want other settings of them.
        self._engines = None
        if end is not None and not settings.peers:
            self._engines = EngineOrdering(directory.workers.values, self._send_to)
        tell = None if self._engines is None else self._engines.use
        tuned = TunedSettings(config, policy, working_set, queue, tell, self._kick)
        is_auto = config.tuning.mode == "auto"
        if self._engines is not None and is_auto and tuned.ordering_settings:
            # Engines may stand where an earlier coordinator left them.
            self._engines.use(tuned.ordering, tuned.ordering_settings)
        self.tuning = Tuning(
            config,
            tuned,
            self._engines,
            lambda: crew_of(directory.ready()),
            metrics,
        )
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
                isolate_caches=config.isolate_tenant_caches,
            ),
            keeper=PrefixKeeper(
                self._tell_soon,
                lambda worker_id: (
                    directory.keeps_prefixes(worker_id) or directory.prewarms(worker_id)
                ),
                Prewarmer(
                    dispatcher,
                    estimates,
                    self._send_ahead,
                    directory.prewarms,
                    # A tenant's cache is found under a key of its own, which engines alone know.
                    (lambda _: None) if config.isolate_tenant_caches else token_ids_of,
                ),
            ),
            gate=DeadlineGate(
                config.admission_attainment,
                estimates,
                directory.ready,
                config.default_max_in_flight,
                metrics.workflow_refused,
            ),
        )
        self._telling: set[asyncio.Task[bool]] = set()
        self._limiter = Limiter(settings.limits, dict(settings.tenants), self.parts.clock)
        self.exchanges = Exchanges(self.parts, self._limiter)
        self.placements = Placements(self.parts, self.exchanges)
        self._health = HealthWatch(
            client,
            directory,
            interval_s=config.health_interval_s,
            timeout_s=config.health_timeout_s,
            num_failures=config.health_failures,
        )
        directory.watch_with(self._health)
        self._sending: set[asyncio.Task[bool]] = set()
        self.peers = self._peers()
        self._link = None if end is None else CoordinatorLink(end, self._link_events())

    @property
    def has_link(self) -> bool:
        """Whether workers' plugins can connect."""
        return self._link is not None

    @property
    def keys_are_stale(self) -> bool:
        """Whether API keys are in force that are not what their file holds now."""
        return self.access.ring is not None and self.access.ring.is_stale

    @property
    def peers_are_lost(self) -> bool:
        """Whether a coordinator beside this one does not answer."""
        return self.peers is not None and not all(peer.is_alive for peer in self.peers.peers)

    async def reload_keys(self, *, force: bool = False) -> None:
        """Read the API keys again if their file has changed, or if `force`."""
        ring = self.access.ring
        if ring is not None:
            await asyncio.to_thread(ring.reload_if_changed, force=force)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Background work goes on inside this block: probes, link, sweeping, keys."""
        tasks = [asyncio.create_task(self._sweep())]
        for row in self.settings.workers:
            worker = self.parts.directory.add(row, "config")
            if row.kv_events:
                follow = follow_kv_events(worker, row, self.parts.metrics)
                tasks.append(asyncio.create_task(follow))
        if self.access.ring is not None:
            tasks.append(asyncio.create_task(self._watch_keys()))
        if self._link is not None:
            tasks.append(asyncio.create_task(self._link.run()))
        if self.tuning.is_on:
            tasks.append(asyncio.create_task(self.tuning.run()))
        if self.peers is not None:
            await self.peers.exchange()  # whose workflows are elsewhere is known from the start
            tasks.append(asyncio.create_task(self.peers.run()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._health.close()
            await self._warmer.close()
            if self.peers is not None:
                await self.peers.client.close()
            await self.parts.client.close()
            if self.tracing is not None:
                await asyncio.to_thread(self.tracing.close)

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

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status and body of `GET /health`."""
        return reports.health(
            list(self.parts.directory.workers.values()),
            num_queued=len(self.parts.queue),
            keys_are_stale=self.keys_are_stale,
            is_draining=self.exchanges.is_draining,
            has_link=self.has_link,
            tuner_is_down=self.tuning.is_down,
            peers_are_lost=self.peers_are_lost,
        )

    def exposition(self) -> bytes:
        """Metrics in Prometheus' text format."""
        parts = self.parts
        parts.metrics.queued.set(len(parts.queue))
        parts.metrics.set_demoted(self.demotion.num_demoted)
        parts.metrics.lasting.set(parts.tracker.num_lasting)
        parts.metrics.api_keys_stale.set(self.keys_are_stale)
        self.tuning.show()
        estimates = parts.estimates
        parts.metrics.set_estimates(estimates.stages.errors, estimates.num_refused_reports)
        for worker in parts.directory.workers.values():
            parts.metrics.set_worker(worker)
        if parts.queue.shares is not None:
            parts.metrics.set_tenants(parts.queue.shares.all_attained())
        if self.peers is not None:
            parts.metrics.peers_alive.set(sum(peer.is_alive for peer in self.peers.peers))
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

    async def _send_to(self, worker_id: str, message: CoordinatorMessage) -> bool:
        """Whether a message was handed over to a linked worker."""
        return self._link is not None and await self._link.send_to(worker_id, message)

    def _put_off(self, request: QueuedRequest) -> None:
        """Tell the engine that holds the request by which deadline it orders it now."""
        attempt, deadline_s = request.attempt, request.view.deadline_s
        if self._link is None or attempt is None or deadline_s is None:
            return
        budget_ms = max(1, min(_MAX_BUDGET_MS, round((deadline_s - self.parts.clock()) * 1000)))
        remaining_ms = request.view.predicted_remaining_s * 1000
        message = Reprioritise(request.workflow.workflow_id, budget_ms, remaining_ms)
        task = asyncio.create_task(self._link.send_to(attempt.worker.worker_id, message))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def _tell_soon(self, worker_id: str, *messages: CoordinatorMessage) -> None:
        """Send messages to a worker without waiting; a worker that is gone needs none."""
        if self._link is None:
            return
        task = asyncio.create_task(self._tell_in_order(self._link, worker_id, messages))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    @staticmethod
    async def _tell_in_order(
        link: CoordinatorLink, worker_id: str, messages: tuple[CoordinatorMessage, ...]
    ) -> bool:
        """Whether all of them went out; nothing is sent behind one that did not."""
        for message in messages:
            if not await link.send_to(worker_id, message):
                return False
        return True

    def _send_ahead(
        self,
        worker_id: str,
        workflow_id: str,
        stage: str,
        ttl_s: float,
        content: array[int] | None,
        num_tokens: int,
    ) -> None:
        """Tell a worker with what a prompt will begin that it may expect."""
        self._tell_soon(worker_id, *messages_of(workflow_id, stage, ttl_s, content, num_tokens))

    def _peers(self) -> Peers | None:
        config, parts = self.config, self.parts
        if not self.settings.peers:
            return None
        key_file = None if config.peer_key is None else Path(config.peer_key)
        return Peers(
            config.coordinator_id,
            self.settings.peers,
            parts.tracker,
            parts.directory,
            PeerClient(config.coordinator_id, key_file, config.connect_timeout_s),
            limiter=self._limiter,
            shares=parts.queue.shares,
            interval_s=config.peer_interval_ms / 1_000,
            is_draining=lambda: self.exchanges.is_draining,
            on_change=self._kick,
        )

    def _link_events(self) -> LinkEvents:
        config = self.config
        return LinkEvents(
            self.parts.directory,
            self.parts.estimates,
            coordinator_id=config.coordinator_id,
            heartbeat_ms=config.heartbeat_ms,
            is_authenticated=config.keys is not None,
            on_load=self._kick,
            on_finished=self.placements.reported,
            engines=self._engines,
        )

    def _drained(self, worker: Worker) -> None:
        self._mover.drain(worker, self.parts.clock())

    def _kick(self) -> None:
        self.parts.dispatcher.kick()

    def _workflow_ended(self, workflow: Workflow) -> None:
        ended_s = workflow.ended_s if workflow.ended_s is not None else time.monotonic()
        self.parts.metrics.workflow_ended(workflow, ended_s)
        self.parts.keeper.over(workflow)
        self.parts.gate.ended(workflow)
        self.tuning.ended(workflow)
        if self.tracing is not None:
            self.tracing.workflow_ended(workflow, self.parts.clock())
        for listener in self.listeners:
            listener(workflow)

    async def _watch_keys(self) -> None:
        """Notice a changed key file."""
        while True:
            await asyncio.sleep(_KEYS_INTERVAL_S)
            await self.reload_keys()

    async def _sweep(self) -> None:
        """End idle workflows, and placements that nobody will tell of, now and then."""
        turn = 0
        while True:
            await asyncio.sleep(_PLACEMENTS_INTERVAL_S)
            self.placements.sweep(self.parts.clock())
            self._mover.look(self.parts.clock())
            turn += 1
            if turn % _SWEEP_TURNS == 0:
                self.parts.tracker.sweep(self.parts.clock())


def _tracing(config: TracingConfig) -> Tracing | None:
    """Where spans begin; None, and nothing is loaded, without a collector.

    Raises:
        ConfigError: the extra is not installed.
    """
    if not config.endpoint:
        return None
    from hexgen_sglang.coordinator.tracing import exporting

    return exporting(config)


def _tenant_shares(settings: CoordinatorFile) -> TenantShares | None:
    """None where all callers are one tenant."""
    config = settings.coordinator
    if config.tenant_shares == "off" or (config.tenant_shares == "keys" and not config.api_keys):
        return None
    weights = {name: limits.weight or 1.0 for name, limits in settings.tenants.items()}
    attained = AttainedService(
        weights, weight=settings.limits.weight or 1.0, half_life_s=config.tenant_half_life_s
    )
    return TenantShares(attained, time.monotonic)


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
