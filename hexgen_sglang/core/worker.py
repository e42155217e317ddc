"""What a dispatch policy may know of one worker: what was counted here, what was reported.

Immutable snapshots, made by the coordinator's worker directory (and by the simulator) for
each decision.
"""

from __future__ import annotations

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
