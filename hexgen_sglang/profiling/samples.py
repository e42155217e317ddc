"""What was measured of a worker: plain numbers, before any fit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PrefillSample:
    """Seconds of one request's prefill, in as many steps as the chunk size makes of it."""

    num_uncached: int
    num_cached: int
    seconds: float


@dataclass(frozen=True, slots=True)
class DecodeSample:
    """One decode step of a steady batch.

    Attributes:
        num_requests: in the batch, all of them decoding.
        num_context_tokens: of all of them together, mean over the measured steps.
        seconds: mean of the steps.
    """

    num_requests: int
    num_context_tokens: float
    seconds: float


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What the worker says of itself.

    Attributes:
        model: served name. sglang_version: as reported.
        kv_tokens, chunk_tokens, max_running_requests, context_tokens, tensor_parallel: the
            engine's own limits; at least 1.
        time_scale: of an emulated accelerator; 1.0 for a real one.
    """

    model: str
    sglang_version: str
    kv_tokens: int
    chunk_tokens: int
    max_running_requests: int
    context_tokens: int
    tensor_parallel: int
    time_scale: float
