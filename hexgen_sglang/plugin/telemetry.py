"""What a worker tells the coordinator, and what it is told, seen from SGLang's scheduler thread.

Lives in the one scheduler process of an engine that receives requests from the front. Nothing
here waits, opens anything or grows without bound: the agent behind it has the socket and a
thread of its own.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from hexgen_sglang.plugin.request_view import TagReader
from hexgen_sglang.protocol.messages import (
    Cancel,
    CoordinatorMessage,
    Load,
    OrderingSet,
    RequestFinished,
    StageFinished,
    StepTimes,
    WorkerMessage,
)

MAX_LIVE_REQUESTS = 65_536
MAX_REQUEST_ID = 128
MAX_REFUSAL = 512
MIN_LOAD_INTERVAL_S = 0.05


class Agent(Protocol):
    """The part of `WorkerAgent` that the scheduler thread uses; every call returns at once."""

    def report_load(self, load: Load) -> None:
        """Send this load, unless a newer one comes before it could be sent."""
        ...

    def report(self, message: WorkerMessage) -> None:
        """Send this message after those before it; under pressure the oldest is dropped."""
        ...

    def take_commands(self) -> list[CoordinatorMessage]:
        """What the coordinator asked for since the last call."""
        ...


@dataclass(slots=True)
class _Live:
    """A request inside the engine: the instant it came, and its place in a workflow."""

    arrival_s: float
    workflow_id: str | None
    stage: str | None


@dataclass(slots=True)
class _StageShare:
    """What this worker has of one stage of one workflow."""

    first_arrival_s: float
    siblings: int
    num_live: int = 0
    num_ended: int = 0


class Telemetry:
    """Follows the requests of one engine and reports loads, ends of requests and of stages.

    Owned by the scheduler thread. `clock` gives seconds of `time.perf_counter`.

    Attributes:
        num_forgotten: requests that were never seen to end and made room for newer ones.
        num_unnameable: requests whose id does not fit the wire and which are not reported.
    """

    def __init__(self, agent: Agent, clock: Callable[[], float] = time.perf_counter) -> None:
        self._agent = agent
        self._clock = clock
        self._tags = TagReader()
        self._live: OrderedDict[str, _Live] = OrderedDict()
        self._stages: dict[tuple[str, str], _StageShare] = {}
        self._last_counts = (0, 0)
        self._last_load_s = float("-inf")
        self.num_forgotten = 0
        self.num_unnameable = 0

    @property
    def num_live(self) -> int:
        """Requests inside the engine."""
        return len(self._live)

    def arrived(self, request: Any, now_s: float) -> None:
        """A request for the model came in from SGLang's front."""
        if not 1 <= len(request.rid) <= MAX_REQUEST_ID:
            self.num_unnameable += 1
            return
        tag = self._tags.read(request)
        live = _Live(now_s, tag and tag.workflow_id, tag and tag.stage)
        if request.rid in self._live:  # the front refuses a second use of an id
            return
        self._live[request.rid] = live
        if tag is not None and tag.stage is not None:
            share = self._stages.setdefault(
                (tag.workflow_id, tag.stage), _StageShare(now_s, tag.siblings)
            )
            share.num_live += 1
        if len(self._live) > MAX_LIVE_REQUESTS:
            _, oldest = self._live.popitem(last=False)
            self.num_forgotten += 1
            self._leave_stage(oldest, now_s)

    def ended(self, req: Any, *, aborted: bool) -> None:
        """A request was answered for the last time. Told again of the same one, does nothing."""
        live = self._live.pop(req.rid, None)
        if live is None:
            return
        now_s = self._clock()
        stats = req.time_stats
        num_output_tokens = len(req.output_ids)
        first_token_s = stats.prefill_finished_time if num_output_tokens else 0.0
        self._agent.report(
            RequestFinished(
                request_id=req.rid,
                workflow_id=live.workflow_id,
                stage=live.stage,
                prompt_tokens=len(req.origin_input_ids),
                cached_tokens=max(0, req.cached_tokens),
                output_tokens=num_output_tokens,
                queue_ms=_since_ms(live.arrival_s, stats.forward_entry_time or now_s),
                ttft_ms=_since_ms(live.arrival_s, first_token_s) if first_token_s else 0.0,
                e2e_ms=_since_ms(live.arrival_s, now_s),
                aborted=aborted,
            )
        )
        self._leave_stage(live, now_s)

    def _leave_stage(self, live: _Live, now_s: float) -> None:
        if live.workflow_id is None or live.stage is None:
            return
        share = self._stages[live.workflow_id, live.stage]
        share.num_live -= 1
        share.num_ended += 1
        if share.num_live:
            return
        del self._stages[live.workflow_id, live.stage]
        self._agent.report(
            StageFinished(
                workflow_id=live.workflow_id,
                stage=live.stage,
                num_requests=share.num_ended,
                siblings=share.siblings,
                e2e_ms=_since_ms(share.first_arrival_s, now_s),
            )
        )

    def load_is_due(self, num_running: int, num_waiting: int) -> bool:
        """Whether these counts are news and the last report is at least 50 ms old."""
        if (num_running, num_waiting) == self._last_counts:
            return False
        return self._clock() - self._last_load_s >= MIN_LOAD_INTERVAL_S

    def load(self, snapshot: Any) -> None:
        """Report SGLang's own load snapshot."""
        self._last_counts = (snapshot.num_running_reqs, snapshot.num_waiting_reqs)
        self._last_load_s = self._clock()
        self._agent.report_load(
            Load(
                num_running=max(0, snapshot.num_running_reqs),
                num_waiting=max(0, snapshot.num_waiting_reqs),
                num_waiting_tokens=max(0, snapshot.num_waiting_uncached_tokens),
                num_kv_tokens_used=max(0, snapshot.num_used_tokens),
            )
        )

    def steps(self, times: StepTimes | None) -> None:
        """Report what steps cost; None: nothing is due."""
        if times is not None:
            self._agent.report(times)

    def ordering_set(self, ordering: str, settings: dict[str, float], refusal: str) -> None:
        """Report that the queue is ordered so from now on, or why it is not."""
        self._agent.report(OrderingSet(ordering, settings, refusal[:MAX_REFUSAL]))

    def take_commands(self) -> list[CoordinatorMessage]:
        """What the coordinator asked for since the last call; usually nothing."""
        return self._agent.take_commands()

    def requests_to_cancel(self, cancel: Cancel) -> list[str]:
        """Ids of the requests in the engine that the command means, oldest first."""
        if cancel.request_id is not None:
            return [cancel.request_id] if cancel.request_id in self._live else []
        return [
            request_id
            for request_id, live in self._live.items()
            if live.workflow_id == cancel.workflow_id
        ]


def _since_ms(start_s: float, end_s: float) -> float:
    return max(0.0, end_s - start_s) * 1000
