"""The coordinator's own code on the virtual clock: tracker, estimators, queue, dispatcher.

What a live coordinator learns over HTTP, and over the link where there is one, comes here from
the simulated engines, as late as it would there. Nothing about a request is used that its
client would not have sent, until it has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hexgen_sglang.coordinator.admission import request_view
from hexgen_sglang.coordinator.cold_start import stated_costs
from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.coordinator.deadline_gate import DeadlineGate
from hexgen_sglang.coordinator.demotion import Demotion
from hexgen_sglang.coordinator.dispatcher import Dispatcher
from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.incoming import GENERATE, IncomingRequest
from hexgen_sglang.coordinator.live_request import Attempt, QueuedRequest
from hexgen_sglang.coordinator.movement import Mover
from hexgen_sglang.coordinator.prefix_keeper import PrefixKeeper
from hexgen_sglang.coordinator.prewarmer import Prewarmer
from hexgen_sglang.coordinator.prompt import BLOCK_TOKENS, PromptShape
from hexgen_sglang.coordinator.queue import CentralQueue
from hexgen_sglang.coordinator.tenant_shares import TenantShares
from hexgen_sglang.coordinator.tuned_settings import TunedSettings
from hexgen_sglang.coordinator.usage import Usage
from hexgen_sglang.coordinator.worker import RoomRules, Worker
from hexgen_sglang.coordinator.workflows import Outcome, Workflow, WorkflowTracker
from hexgen_sglang.coordinator.working_set import WorkingSet
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import WorkerState
from hexgen_sglang.policies.fairness import AttainedService
from hexgen_sglang.policies.ordering import ORDERING
from hexgen_sglang.protocol.messages import Load, Release, RequestFinished, Retain
from hexgen_sglang.protocol.tag import WorkflowTag
from hexgen_sglang.sim.beside import Beside
from hexgen_sglang.sim.clock import DISPATCH, MESSAGE, EventQueue
from hexgen_sglang.sim.engine import Engine
from hexgen_sglang.sim.engine_request import EngineRequest
from hexgen_sglang.sim.fronts import Asked, Segments, Send, engine_request
from hexgen_sglang.sim.host import Delays

_MODEL = "simulated"
_STALE_HEARTBEATS = 3
_IDLE = Load(num_running=0, num_waiting=0, num_waiting_tokens=0, num_kv_tokens_used=0)


class _Queued(QueuedRequest):
    """A request of the simulation on its way through the coordinator."""

    asked: Asked
    front: CoordinatorFront

    @property
    def is_placed(self) -> bool:
        return self.attempt is not None

    def place(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.front.placed(self, attempt)


class _Silent:
    """Decisions are not counted."""

    def decided(self, policy: str, picked: str | None, seconds: float) -> None:
        """Nothing."""


class CoordinatorFront:
    """A coordinator with the simulated engines as its workers.

    Args:
        config: policies and limits, as for a live one.
        engines: with the hardware name of each.
        send: hands a request to an engine.
        events: the virtual clock.
        delays: of reports.
        linked: the engines have our plugin and report; else only what HTTP tells is known.
        beside: makes the dispatch policy, and is told of every workflow's end.

    Attributes:
        waits_s: of each request, from its acceptance until it went to a worker.
        demotion: who stands back.
        num_moves: requests taken back from engines.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        engines: Sequence[Engine],
        send: Send,
        events: EventQueue,
        delays: Delays,
        *,
        linked: bool = True,
        beside: Beside,
    ) -> None:
        self._linked = linked
        self._beside = beside
        self.waits_s: list[float] = []
        self.num_moves = 0
        self._engines = {engine.name: engine for engine in engines}
        self._send = send
        self._events = events
        self._delays = delays
        self._estimates = Estimates(config.trust_output_limits, remaining=config.remaining_work)
        if config.accelerators is not None:
            self._estimates.state_costs(stated_costs(Path(config.accelerators)))
        self._workers = {
            engine.name: _worker(engine, self._estimates, linked=linked) for engine in engines
        }
        rules = RoomRules(
            config.look_ahead,
            config.look_ahead_tokens,
            config.default_max_in_flight,
            _STALE_HEARTBEATS * config.heartbeat_ms / 1000,
            early=config.binding == "early",
        )
        self._mover = Mover(self._workers.values, rules, config.move_overdue, self._recall)
        self._shares = None
        if config.tenant_shares == "stated":
            attained = AttainedService(half_life_s=config.tenant_half_life_s)
            self._shares = TenantShares(attained, events.clock)
        working_set = WorkingSet(
            config.working_set if config.binding == "late" else 0.0, self._shares
        )
        self._dispatcher = Dispatcher(
            beside.begin(config, events),
            config.dispatch,
            lambda: list(self._workers.values()),
            self._estimates,
            rules,
            _Silent(),
            working_set,
            clock=events.clock,
            soon=lambda action: _discard(events.at(events.now_s, DISPATCH, action)),
        )
        self.demotion = Demotion(
            config.demotion_ageing, events.clock, caution=config.demotion_caution
        )
        self.demotion.on_engine = self._put_off
        self._queue = CentralQueue(
            ORDERING.create(config.ordering, **config.ordering_settings),
            config.max_queued,
            config.max_queued_bytes,
            self._dispatcher.retry_after_s,
            self.demotion,
            self._shares,
        )
        self._dispatcher.serve(self._queue)
        tell = self._tell_engines if linked else None
        beside.serving(
            lambda policy: TunedSettings(
                config, policy, working_set, self._queue, tell, self._dispatcher.kick
            )
        )
        self._tracker = WorkflowTracker(
            self._estimates.stages,
            config.max_workflows,
            config.workflow_idle_s,
            {},
            self._over,
        )
        keeping = {e.name for e in engines if linked and (e.retention or e.ahead)}
        prewarming = {e.name for e in engines if linked and e.ahead is not None}
        self._keeper = PrefixKeeper(
            self._tell,
            keeping.__contains__,
            Prewarmer(
                self._dispatcher,
                self._estimates,
                self._send_ahead,
                prewarming.__contains__,
                _segments_of,
            ),
        )
        self._gate = DeadlineGate(
            config.admission_attainment,
            self._estimates,
            lambda: list(self._workers.values()),
            config.default_max_in_flight,
        )
        self._blocks = _Blocks()
        self._requests: dict[str, _Queued] = {}
        self._sent: dict[str, EngineRequest] = {}
        self._reporting: set[str] = set()  # engines of which a report is due
        self._beating: set[str] = set()  # engines of which a heartbeat is scheduled
        self._counts = dict.fromkeys(self._engines, (0, 0))
        self._told_costs_s = dict.fromkeys(self._engines, float("-inf"))
        self._reported_s = dict.fromkeys(self._engines, float("-inf"))
        self._heartbeat_s = config.heartbeat_ms / 1000

    def take(self, asked: Asked) -> None:
        """Accept a request and look for a worker.

        Raises:
            ApiError: it begins a workflow that would be late, or make others late.
        """
        now_s = self._events.now_s
        tag = WorkflowTag(
            workflow_id=asked.workflow_id,
            workflow_type=asked.workflow_type,
            stage=asked.stage,
            budget_ms=None if asked.budget_s is None else max(1, round(asked.budget_s * 1000)),
            siblings=asked.siblings,
            sibling_index=asked.sibling_index,
            tenant=asked.tenant or None,
            final=asked.final,
        )
        length = sum(count for _, count in asked.segments)
        shape = PromptShape(1, 0, length, self._blocks.of(asked.segments))
        incoming = IncomingRequest(GENERATE, {}, tag, None, True, False, shape, 1, None, 0)
        is_new = self._tracker.get(tag.workflow_id) is None
        if is_new:
            self._gate.check(tag, _MODEL, self._tracker.budget_s(tag), now_s)
        workflow, record = self._tracker.accept(tag, asked.request_id, now_s)
        if is_new:
            self._gate.admitted(workflow, record.stage, _MODEL, now_s)
        request = _Queued(
            incoming=incoming,
            view=request_view(self._estimates, incoming, workflow, record, _MODEL),
            workflow=workflow,
            record=record,
            lane=_MODEL,
        )
        request.asked, request.front = asked, self
        self._requests[asked.request_id] = request
        for name, engine in self._engines.items():
            if self._linked and engine.is_idle and not self._workers[name].in_flight:
                self._workers[name].take_load(_IDLE, now_s)  # its heartbeats go on
        self._queue.push(request)
        self._dispatcher.kick()

    def placed(self, request: _Queued, attempt: Attempt) -> None:
        """The dispatcher chose a worker."""
        now_s = self._events.now_s
        record = request.record
        record.outcome = Outcome.RUNNING
        record.worker_id = attempt.worker.worker_id
        record.dispatched_s = attempt.dispatched_s
        self.waits_s.append(now_s - record.accepted_s)
        self._keeper.placed(request, record.worker_id, now_s)
        engine = self._engines[attempt.worker.worker_id]
        sent = engine_request(request.asked, _engine_view(request.view, now_s))
        self._sent[request.view.request_id] = sent
        self._send(engine, sent)

    def _put_off(self, request: QueuedRequest) -> None:
        """The link tells an engine of another deadline; it comes a little later."""
        sent, deadline_s = self._sent[request.view.request_id], request.view.deadline_s

        def arrive() -> None:
            sent.view = replace(sent.view, deadline_s=deadline_s)
            sent.order_key = None

        if self._linked:
            self._events.at(self._events.now_s + self._delays.report_s, MESSAGE, arrive)

    def _tell_engines(self, ordering: str, settings: dict[str, float]) -> None:
        """The engines hear of other ordering settings; it arrives a little later."""

        def arrive() -> None:
            for engine in self._engines.values():
                engine.use_ordering(ORDERING.create(ordering, **settings))

        self._events.at(self._events.now_s + self._delays.report_s, MESSAGE, arrive)

    def first_token(self, request_id: str) -> None:
        """The first event of a stream."""
        attempt = self._requests[request_id].attempt
        if attempt is not None:
            attempt.first_byte_s = self._events.now_s

    def ended(self, engine: Engine, request: EngineRequest) -> None:
        """A whole answer came, and the plugin's report of it."""
        queued = self._requests.pop(request.view.request_id)
        del self._sent[request.view.request_id]
        attempt = queued.attempt
        assert attempt is not None
        now_s = self._events.now_s
        usage = Usage(
            request.num_prompt_tokens, request.num_output_tokens, request.num_cached_tokens
        )
        record = queued.record
        record.prompt_tokens, record.output_tokens = usage.prompt_tokens, usage.output_tokens
        record.cached_tokens = usage.cached_tokens
        busy_s = self._dispatcher.release(attempt)
        self._estimates.note_answered(attempt, usage, busy_s, now_s)
        if self._linked:
            self._estimates.note_reported(_finished(queued, attempt, request))
        self._tracker.close(queued.workflow, queued.record, Outcome.COMPLETED, now_s)
        if self._shares is not None:
            self._shares.ended(queued)
        self._keeper.ended(queued.workflow, record.stage, now_s)

    def load_changed(self, engine: Engine) -> None:
        """Report the engine's load, unless a report is due soon anyway."""
        if not self._linked:
            return
        if engine.name in self._reporting or engine.counts == self._counts[engine.name]:
            return
        self._reporting.add(engine.name)
        due_s = self._reported_s[engine.name] + self._delays.min_interval_s
        self._events.at(max(due_s, self._events.now_s), MESSAGE, lambda: self._report(engine))

    def _recall(self, attempt: Attempt, reason: str) -> None:
        """The abort of a waiting request reaches the engine a little later."""
        request, engine = attempt.request, self._engines[attempt.worker.worker_id]
        sent = self._sent[request.view.request_id]

        def arrive() -> None:
            if request.attempt is not attempt or not engine.withdraw(sent):
                return
            self.num_moves += 1
            self._dispatcher.release(attempt)
            request.num_moves += 1
            request.failed_on.add(engine.name)
            request.record.outcome = Outcome.QUEUED
            self._queue.push(request)
            self._dispatcher.kick()

        self._events.at(self._events.now_s + self._delays.report_s, MESSAGE, arrive)

    def _over(self, workflow: Workflow) -> None:
        self._keeper.over(workflow)
        self._gate.ended(workflow)
        self._beside.ended(workflow)

    def _tell(self, worker_id: str, message: Retain | Release) -> None:
        """A message on prefixes to an engine; it arrives a little later."""
        engine, events = self._engines[worker_id], self._events

        def arrive() -> None:
            retention, ahead = engine.retention, engine.ahead
            if isinstance(message, Release) and ahead is not None:
                ahead.release(message.workflow_id)
            if isinstance(message, Release) and retention is not None:
                retention.release(message.workflow_id)
            elif isinstance(message, Retain) and retention is not None:
                retention.retain(message.workflow_id, message.ttl_ms / 1_000, events.now_s)

        events.at(events.now_s + self._delays.report_s, MESSAGE, arrive)

    def _send_ahead(
        self,
        worker_id: str,
        workflow_id: str,
        stage: str,
        ttl_s: float,
        content: Segments | None,
        num_tokens: int,
    ) -> None:
        """A worker is told with what a prompt will begin; it arrives a little later."""
        engine = self._engines[worker_id]
        self._events.at(
            self._events.now_s + self._delays.report_s,
            MESSAGE,
            lambda: engine.prewarm(workflow_id, stage, ttl_s, content, num_tokens),
        )

    def _report(self, engine: Engine) -> None:
        """The engine tells its load; it arrives a little later."""
        now_s = self._events.now_s
        self._reporting.discard(engine.name)
        self._reported_s[engine.name] = now_s
        self._counts[engine.name] = engine.counts
        load = engine.load()
        worker = self._workers[engine.name]

        costs = None
        if now_s - self._told_costs_s[engine.name] >= self._delays.costs_interval_s:
            costs = engine.costs.costs()
            self._told_costs_s[engine.name] = now_s

        def arrive() -> None:
            worker.take_load(load, self._events.now_s)
            if costs is not None:
                self._estimates.costs.note(engine.name, costs)
            self._mover.look(self._events.now_s)
            self._dispatcher.kick()

        self._events.at(now_s + self._delays.report_s, MESSAGE, arrive)
        if engine.name not in self._beating and not engine.is_idle:
            self._beating.add(engine.name)
            self._events.at(now_s + self._heartbeat_s, MESSAGE, lambda: self._beat(engine))

    def _beat(self, engine: Engine) -> None:
        """A heartbeat is due, unless something was reported meanwhile."""
        self._beating.discard(engine.name)
        due_s = self._reported_s[engine.name] + self._heartbeat_s
        if engine.is_idle or engine.name in self._reporting:
            return
        if due_s <= self._events.now_s:
            self._report(engine)
        else:
            self._beating.add(engine.name)
            self._events.at(due_s, MESSAGE, lambda: self._beat(engine))


class _Blocks:
    """Names for the whole blocks of prompts: equal names mean equal prefixes."""

    def __init__(self) -> None:
        self._names: dict[tuple[int, str, int], int] = {}
        # (path, stream, tokens) -> names of the blocks that end in it, and the path behind it
        self._segments: dict[tuple[int, str, int], tuple[list[int], int]] = {}

    def of(self, segments: Segments) -> tuple[int, ...]:
        """The names of a prompt's whole blocks, as `coordinator.prompt` hashes token ids."""
        found: list[int] = []
        path = start = 0
        for key, length in segments:
            known = self._segments.get((path, key, length))
            if known is None:
                known = self._segments[path, key, length] = self._named(path, key, start, length)
            names, path = known
            found += names
            start += length
        return tuple(found)

    def _named(self, path: int, key: str, start: int, length: int) -> tuple[list[int], int]:
        """A segment behind `path`, which has `start` tokens."""
        names = self._names
        first = BLOCK_TOKENS - start % BLOCK_TOKENS
        found = [
            names.setdefault((path, key, place), len(names) + 1)
            for place in range(first, length + 1, BLOCK_TOKENS)
        ]
        return found, names.setdefault((path, key, -length), len(names) + 1)


def _segments_of(request: QueuedRequest) -> Segments:
    assert isinstance(request, _Queued)
    return request.asked.segments


def _worker(engine: Engine, estimates: Estimates, *, linked: bool) -> Worker:
    """The engine as a worker that has been probed, and has said hello when it is linked."""
    capacity = engine.profile.capacity
    kv_tokens = capacity.kv_tokens.value
    estimates.prefixes.limit(engine.name, kv_tokens // BLOCK_TOKENS)
    return Worker(
        engine.name,
        f"http://{engine.name}:30000",
        "link" if linked else "config",
        hardware=engine.profile.name,
        state=WorkerState.READY,
        models=(_MODEL,),
        max_running_requests=capacity.max_running_requests.value,
        kv_capacity_tokens=kv_tokens,
        linked=linked,
    )


def _finished(queued: _Queued, attempt: Attempt, request: EngineRequest) -> RequestFinished:
    """What the plugin tells of a request that ended."""
    assert request.admitted_s is not None
    assert request.first_token_s is not None
    return RequestFinished(
        request_id=attempt.rid,
        workflow_id=queued.workflow.workflow_id,
        stage=queued.record.stage or None,
        prompt_tokens=request.num_prompt_tokens,
        cached_tokens=request.num_cached_tokens,
        output_tokens=request.num_output_tokens,
        queue_ms=(request.admitted_s - request.arrival_s) * 1000,
        ttft_ms=(request.first_token_s - request.arrival_s) * 1000,
        e2e_ms=(request.ended_s - request.arrival_s) * 1000,
        aborted=False,
    )


def _engine_view(view: RequestView, now_s: float) -> RequestView:
    """What the plugin reads from the tag: durations from the request's arrival on."""
    return replace(view, arrival_s=now_s)


def _discard(event: object) -> None:
    """The event is never cancelled."""
