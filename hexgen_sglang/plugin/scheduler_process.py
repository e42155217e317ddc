"""Our objects in one of SGLang's scheduler processes, and what its hooks do with them.

The hooks in `hexgen_patches` are one line each and call in here. There is one
`SchedulerProcess` in a process, made from the exported settings when a hook first asks.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import re
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hexgen_sglang import __version__
from hexgen_sglang.plugin.commands import (
    CommandCounter,
    QueueCommand,
    SetOrdering,
    queue_command,
)
from hexgen_sglang.plugin.config import PluginConfig
from hexgen_sglang.plugin.hold import Hold
from hexgen_sglang.plugin.ordering import QueueOrder
from hexgen_sglang.plugin.prefill_patience import Moment, PrefillPatience
from hexgen_sglang.plugin.prefix_hold import PrefixHold
from hexgen_sglang.plugin.prefixes_ahead import (
    AheadOnRank,
    Parts,
    PrewarmPrefix,
    match_in,
    metric_count_ahead,
)
from hexgen_sglang.plugin.request_view import requests_in, stamp_arrival
from hexgen_sglang.plugin.retained_prefixes import (
    MarkPrefixes,
    ReleasePrefixes,
    RetainedPrefixes,
    RetentionCommand,
    metric_count,
    retention_command,
    touch_in,
)
from hexgen_sglang.plugin.step_timer import StepTimer
from hexgen_sglang.plugin.telemetry import Telemetry
from hexgen_sglang.protocol.messages import (
    LINK_VERSION,
    Cancel,
    Features,
    Hello,
    Prewarm,
    Release,
    Retain,
)

if TYPE_CHECKING:
    from hexgen_sglang.plugin.agents import WorkerAgents

logger = logging.getLogger(__name__)

_HEALTH_CHECK = "HEALTH_CHECK"  # prefix of the ids of SGLang's own health probes


class SchedulerProcess:
    """The queue's order, the telemetry and the agent of one scheduler process.

    Attributes:
        order: set when our policy orders the queue.
        patience: set, on every rank, when prompts wait for decodes.
        holds: what keeps requests out of the queue while a batch is chosen.
        prefixes: set, on every rank, when prefixes are kept between stages.
        ahead: set, on every rank, when prefixes are computed ahead.
        telemetry, timer: set when this process owns the link; other ranks have none.
    """

    def __init__(self, config: PluginConfig) -> None:
        self.config = config
        self.commands = CommandCounter()
        self.order: QueueOrder | None = None
        self.patience: PrefillPatience | None = None
        self.holds: list[Hold] = []
        if config.ordering is not None:
            order = self.order = QueueOrder(config.ordering, config.ordering_settings)
            if config.hold_prefixes:
                self.holds.append(PrefixHold(lambda req: order.view(req).workflow_id))
            if config.prefill_patience:
                self.patience = PrefillPatience(config.prefill_patience, order.view)
                self.holds.append(self.patience)
        self.prefixes: RetainedPrefixes | None = None
        self.ahead: AheadOnRank | None = None
        self._parts = Parts()
        self.telemetry: Telemetry | None = None
        self.timer: StepTimer | None = None
        self._agent: WorkerAgents | None = None

    def start_link(self, scheduler: Any) -> None:
        """Begin to report, if a coordinator is set and this rank receives the requests."""
        self._start_prefixes(scheduler)
        if not self.config.coordinators or scheduler.recv_from_tokenizer is None:
            return
        self._agent = _make_agents(self.config, hello_of(self.config, scheduler))
        self.telemetry = Telemetry(self._agent)
        self.timer = _step_timer(self.config)
        self._agent.start()
        scheduler.load_inquirer.get_loads()  # its hook reports it: a first load from the start

    def _start_prefixes(self, scheduler: Any) -> None:
        """Keep prefixes, and compute some ahead, as far as that was asked for."""
        receives = scheduler.recv_from_tokenizer is not None
        kv_capacity_tokens = int(scheduler.max_total_num_tokens)
        if self.config.retained_share:
            self.prefixes = RetainedPrefixes(
                self.config.retained_share,
                kv_capacity_tokens,
                touch_in(scheduler.tree_cache),
                metric_count() if receives else None,
            )
        if self.config.prewarm_share:
            self.ahead = AheadOnRank(
                self.config.prewarm_share,
                kv_capacity_tokens,
                int(scheduler.max_req_input_len),
                match_in(scheduler.tree_cache),
                (lambda *_: None) if self.prefixes is None else self.prefixes.rule.known,
                metric_count_ahead() if receives else None,
            )

    def stop_link(self, reason: str) -> None:
        """Say goodbye, if there is a link."""
        if self._agent is not None:
            self._agent.stop(reason)

    def received(self, receiver: Any, messages: list[Any] | None) -> None:
        """Requests came from SGLang's front: stamp them, and put our commands behind them.

        `messages` is changed in place. Only the rank that receives does anything; the others
        get its list.
        """
        if messages is None or receiver.recv_from_tokenizer is None:
            return
        if messages:
            now_s = time.perf_counter()
            for request in (request for message in messages for request in requests_in(message)):
                stamp_arrival(request, now_s)
                if self.telemetry is not None and not request.rid.startswith(_HEALTH_CHECK):
                    self.telemetry.arrived(request, now_s)
        if self.telemetry is not None:
            self._add_commands(messages, self.telemetry)
            now_s = time.perf_counter()
            if self.prefixes is not None and self.prefixes.is_due(now_s):
                messages.append(MarkPrefixes(now_s))
            costs = None if self.timer is None else self.timer.costs
            if self.patience is not None and costs is not None and self.telemetry.num_live:
                messages.append(Moment(now_s, costs))

    def _add_commands(self, messages: list[Any], telemetry: Telemetry) -> None:
        from sglang.srt.managers.io_struct import AbortReq

        for command in telemetry.take_commands():
            if isinstance(command, Cancel):
                # SGLang aborts every request whose id begins with the one given; the
                # coordinator's ids all have one length.
                ids = telemetry.requests_to_cancel(command)
                messages.extend(AbortReq(rid=request_id) for request_id in ids)
            elif isinstance(command, Retain | Release):
                # An engine that keeps nothing did not ask for these.
                if self.prefixes is not None or self.ahead is not None:
                    messages.append(retention_command(command, time.perf_counter()))
            elif isinstance(command, Prewarm):
                whole = self._parts.add(command, time.perf_counter())
                if whole is not None and self.ahead is not None:
                    messages.append(whole)
            else:
                messages.append(queue_command(command, time.perf_counter()))

    def before_input(self, scheduler: Any, messages: list[Any]) -> list[Any]:
        """Apply our commands on this rank; returns the messages that are for SGLang.

        A new list: with pipeline parallelism SGLang passes the old one on to the next stage.
        """
        telemetry = self.telemetry
        if telemetry is not None and telemetry.load_is_due(
            len(scheduler.running_batch.reqs), len(scheduler.waiting_queue)
        ):
            scheduler.load_inquirer.get_loads()
        if self.prefixes is not None or self.ahead is not None:
            messages = self._follow_prefixes(scheduler, messages)
        if not any(isinstance(message, QueueCommand | Moment) for message in messages):
            return messages
        rest = []
        for message in messages:
            if isinstance(message, QueueCommand):
                refusal = self.commands.apply(message, self.order)
                if telemetry is not None and isinstance(message, SetOrdering):
                    telemetry.ordering_set(message.ordering, dict(message.settings), refusal)
            elif isinstance(message, Moment):
                if self.patience is not None:
                    self.patience.at(message)
            else:
                rest.append(message)
        return rest

    def _follow_prefixes(self, scheduler: Any, messages: list[Any]) -> list[Any]:
        """Look at the requests and apply the commands about prefixes; returns the others.

        Behind them come requests of our own, for prefixes that are computed ahead.
        """
        prefixes, ahead = self.prefixes, self.ahead
        rest: list[Any] = []
        own: list[Any] = []
        for message in messages:
            if isinstance(message, PrewarmPrefix):
                if ahead is not None:
                    is_busy = bool(rest or own or scheduler.waiting_queue)
                    made = ahead.request(message, is_busy=is_busy)
                    own += [] if made is None else [made]
                continue
            if isinstance(message, RetentionCommand):
                if prefixes is not None:
                    prefixes.apply(message)
                if ahead is not None and isinstance(message, ReleasePrefixes):
                    ahead.release(message.workflow_id)
                continue
            rest.append(message)
            for request in requests_in(message):
                for follower in (prefixes, ahead):
                    if follower is not None:
                        follower.arrived(request)
        return rest + own


@functools.cache
def this_process() -> SchedulerProcess:
    """The objects of this process.

    Raises:
        ConfigError: the exported settings are missing or damaged.
    """
    config = PluginConfig.from_environment()
    return SchedulerProcess(PluginConfig() if config is None else config)


def hello_of(config: PluginConfig, scheduler: Any) -> Hello:
    """Who this worker is. `incarnation` is new in every call.

    Reads `server_args`, `schedule_policy`, `max_running_requests` and
    `max_total_num_tokens` of SGLang's scheduler.
    """
    args = scheduler.server_args
    return Hello(
        link_version=LINK_VERSION,
        worker_id=config.worker_id or "",
        incarnation=uuid.uuid4().hex,
        url=config.url or "",
        model=(args.served_model_name or args.model_path)[:512],
        hardware=config.hardware or device_name(),
        sglang_version=importlib.metadata.version("sglang"),
        plugin_version=__version__,
        max_running_requests=int(scheduler.max_running_requests),
        kv_capacity_tokens=int(scheduler.max_total_num_tokens),
        ordering=config.ordering or scheduler.schedule_policy,
    )


def device_name() -> str:
    """Name of this process's accelerator as a hardware name, "cpu" without one."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")[:64]


def _step_timer(config: PluginConfig) -> StepTimer:
    """Times steps; an emulated accelerator may read shared prefixes once."""
    if config.emulate is None:
        return StepTimer()
    from hexgen_sglang.plugin.emulation.repeated import RepeatedTokens, repeated_read_frac

    return StepTimer(repeated_read_frac(config), RepeatedTokens().count)


def _make_agents(config: PluginConfig, hello: Hello) -> WorkerAgents:
    """The agents, not started. Without a coordinator nothing that knows sockets is imported."""
    from hexgen_sglang.plugin.agent import WorkerAgent
    from hexgen_sglang.plugin.agents import WorkerAgents
    from hexgen_sglang.transport.zmq_link import ZmqWorkerEnd, load_worker_keys

    keys = load_worker_keys(Path(config.keys)) if config.keys else None
    features = None
    if config.retained_share or config.prewarm_share:
        features = Features(bool(config.retained_share), bool(config.prewarm_share))
    return WorkerAgents(
        [
            WorkerAgent(functools.partial(ZmqWorkerEnd, endpoint, keys), hello, features=features)
            for endpoint in config.coordinators
        ]
    )
