"""What a dispatch policy may know of one worker: what was counted here, what was reported.

Immutable snapshots, made by the coordinator's worker directory (and by the simulator) for
each decision.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum


class WorkerState(StrEnum):
    """Life of a worker as the coordinator sees it."""

    STARTING = "starting"  # registered, first health check outstanding
    READY = "ready"  # takes requests
    DRAINING = "draining"  # finishes what it has, takes nothing new
    UNREACHABLE = "unreachable"  # health check, heartbeat or request failed


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """Load as the worker itself last reported it, with its age.

    Attributes:
        num_running: requests in the engine's running batch.
        num_waiting: requests in the engine's waiting queue.
        num_waiting_tokens: uncached prompt tokens of the waiting requests.
        num_kv_tokens_used: KV cache slots held by requests (not by evictable prefixes).
        age_s: seconds since the report arrived; older than a few heartbeats means unknown.
    """

    num_running: int
    num_waiting: int
    num_waiting_tokens: int
    num_kv_tokens_used: int
    age_s: float


@dataclass(frozen=True, slots=True)
class StepCosts:
    """What a worker's steps take, as far as it is known; all seconds at least 0.

    A prefill step takes prefill_base_s + uncached tokens x (prefill_token_s + attended tokens x
    prefill_context_s); a decode step takes decode_base_s + requests x decode_request_s + context
    tokens x decode_context_s. A context token that another request of the batch holds as well
    counts as decode_repeated_frac of one. See `core.accelerator` for the same terms in profiles.
    """

    prefill_base_s: float
    prefill_token_s: float
    prefill_context_s: float
    decode_base_s: float
    decode_request_s: float
    decode_context_s: float
    decode_repeated_frac: float = 1.0

    def prefill_s(self, num_uncached: float, num_cached: float) -> float:
        """One prompt's prefill by itself."""
        attended = num_cached + num_uncached / 2
        return self.prefill_base_s + num_uncached * (
            self.prefill_token_s + attended * self.prefill_context_s
        )

    def decode_s(
        self, num_requests: float, num_context_tokens: float, num_repeated_tokens: float = 0.0
    ) -> float:
        """One decode step; `num_repeated_tokens` of the context another request holds as well."""
        num_read = num_context_tokens - (1.0 - self.decode_repeated_frac) * num_repeated_tokens
        return (
            self.decode_base_s
            + num_requests * self.decode_request_s
            + num_read * self.decode_context_s
        )


@dataclass(slots=True, eq=False)
class InFlight:
    """A request on a worker's hands: sent there, its end not heard of.

    Attributes:
        request_id, workflow_id, stage: whose it is.
        num_prompt_tokens, num_uncached_tokens: as estimated when it was sent.
        expected_output_tokens: at least 1.
        sent_s: instant of dispatch.
        deadline_s, budget_s, predicted_remaining_s: of its workflow, as in `RequestView`.
        siblings: of its stage.
        first_token_s: when its first token was heard of; None before, and where nobody tells.
        streams: its answer comes token by token, so that its first token will be heard of.
    """

    request_id: str
    workflow_id: str
    stage: str
    num_prompt_tokens: int
    num_uncached_tokens: int
    expected_output_tokens: int
    sent_s: float
    deadline_s: float | None
    budget_s: float | None
    predicted_remaining_s: float
    siblings: int
    first_token_s: float | None = None
    streams: bool = True


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker at the instant of a dispatch decision.

    Attributes:
        worker_id: unique and stable over restarts of the coordinator.
        hardware: name such as "a100"; "" when unknown. Workers of one name are alike.
        state: only READY workers are candidates; the directory filters.
        num_in_flight: requests sent there and not finished (counted, exact).
        num_in_flight_tokens: their prompt plus expected output tokens (counted).
        num_pending_prefill_tokens: uncached prompt tokens sent there whose request has not
            shown a first token (counted; estimated before the engine tells).
        num_pending_decode_tokens: expected output tokens still to come (estimated).
        max_running_requests: engine's batch limit; None when not reported.
        kv_capacity_tokens: engine's KV cache size in tokens; None when not reported.
        prefill_tokens_per_s: learned or profiled prefill rate, above 0; None when unknown.
        decode_tokens_per_s: learned or profiled decode rate of one request in a batch of the
            usual size, above 0; None when unknown.
        usual_batch: mean number of requests in flight when that decode rate was measured.
        tokens_per_s: prompt plus output tokens finished per busy second; None when unknown.
        load: the engine's own last report; None when it never reported.
        version: another one whenever requests came, went or showed a first token there.
        now_s: instant of this view, on the clock of the requests' instants.
        in_flight: what `num_in_flight` counts; not to be changed.
        costs: of its steps, learned or from a profile; None when unknown.
        decode_stall: time between two tokens of a request / the step alone, since prefills of
            others come between; at least 1.
    """

    worker_id: str
    hardware: str = ""
    state: WorkerState = WorkerState.READY
    num_in_flight: int = 0
    num_in_flight_tokens: int = 0
    num_pending_prefill_tokens: int = 0
    num_pending_decode_tokens: int = 0
    max_running_requests: int | None = None
    kv_capacity_tokens: int | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    usual_batch: float = 1.0
    tokens_per_s: float | None = None
    load: WorkerLoad | None = None
    version: int = 0
    now_s: float = 0.0
    in_flight: Collection[InFlight] = ()
    costs: StepCosts | None = None
    decode_stall: float = 1.0
