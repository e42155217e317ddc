"""What an accelerator costs in time and money: profiles, and seconds predicted from them.

Read by the emulated accelerator, the estimators, the simulator and the bench, so that all of
them mean the same seconds. A profile states the source of every number. Nothing here waits,
measures or reads files; their text form is `accelerator_toml`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Generic, TypeVar

from msgspec import Meta, Struct, structs

T = TypeVar("T")
Text = Annotated[str, Meta(min_length=3, max_length=600)]
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._:/@+=-]+$")]
StepSeconds = Annotated[float, Meta(ge=0, le=60)]
TokenSeconds = Annotated[float, Meta(ge=0, le=1)]
NumTokens = Annotated[int, Meta(ge=1, le=2**31)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Money = Annotated[float, Meta(ge=0, le=100_000)]
Positive = Annotated[float, Meta(gt=0, le=86_400)]


class Sourced(Struct, Generic[T], frozen=True, forbid_unknown_fields=True):
    """A number and where it comes from.

    Attributes:
        value: in the unit of the field's name.
        source: measurement, publication, calculation or assumption, 3 to 600 characters.
    """

    value: T
    source: Text


class PrefillCost(Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds of a step that computes prompt tokens which are not in the prefix cache.

    base + per_token x tokens + per_token_per_1k_context x (sum over the tokens of the tokens
    each attends to) / 1,000. The last term is attention; it makes long prompts quadratic.

    Attributes:
        base_s: for a step of any size, 0 to 60.
        per_token_s: for each uncached token, 0 to 1; above 0.
        per_token_per_1k_context_s: for each uncached token and 1,000 attended ones, 0 to 1.
        chunk_tokens: most uncached tokens in one step (SGLang's chunked prefill size).
    """

    base_s: Sourced[StepSeconds]
    per_token_s: Sourced[TokenSeconds]
    per_token_per_1k_context_s: Sourced[TokenSeconds]
    chunk_tokens: Sourced[NumTokens]


class DecodeCost(Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds of a step that gives every running request one more token.

    base + per_request x requests + per_1k_context_tokens x (sum of their contexts) / 1,000.

    An engine that reads a prefix once for all requests of the batch that share it pays only
    repeated_read_frac for each token that such a request holds beyond the first.

    Attributes:
        base_s: reading the weights, 0 to 60; above 0.
        per_request_s: for each request of the batch, 0 to 60.
        per_1k_context_tokens_s: for reading 1,000 tokens of KV cache, 0 to 1.
        repeated_read_frac: of that for a token that another request of the batch reads as well,
            0 to 1; None: such a token is read again for each.
    """

    base_s: Sourced[StepSeconds]
    per_request_s: Sourced[StepSeconds]
    per_1k_context_tokens_s: Sourced[TokenSeconds]
    repeated_read_frac: Sourced[Fraction] | None = None


class Capacity(Struct, frozen=True, forbid_unknown_fields=True):
    """What fits on the accelerator at once.

    Attributes:
        kv_tokens: KV cache, in tokens; prefix cache and running requests share it.
        max_running_requests: the engine's batch limit.
    """

    kv_tokens: Sourced[NumTokens]
    max_running_requests: Sourced[Annotated[int, Meta(ge=1, le=65_536)]]


class Price(Struct, frozen=True, forbid_unknown_fields=True):
    """What an hour costs, all GPUs of the worker together, in US dollars: yours to edit."""

    usd_per_hour: Sourced[Money]


class Jitter(Struct, frozen=True, forbid_unknown_fields=True):
    """Steps that vary: log-normal factors with mean 1.

    Attributes:
        relative_sigma: standard deviation over mean, 0 (none) to 1.
        seed: of the sequence of factors.
    """

    relative_sigma: Sourced[Fraction]
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0


class Check(Struct, frozen=True, forbid_unknown_fields=True):
    """One figure that the profile predicts, beside the published or measured one.

    Attributes:
        what: the figure and where it comes from.
        known_s: as published or measured, above 0.
        predicted_s: by this profile, above 0.
        relative_error: (predicted - known) / known.
    """

    what: Text
    known_s: Positive
    predicted_s: Positive
    relative_error: Annotated[float, Meta(ge=-1, le=1_000)]


class Fit(Struct, frozen=True, forbid_unknown_fields=True):
    """How the numbers were made, and how well they meet what is known.

    Attributes:
        method: in one or two sentences.
        checks: at most 1,000 figures.
        prefill_mape, decode_mape: mean absolute relative error of measured steps, when the
            profile comes from measurements of its own; None otherwise.
    """

    method: Text
    checks: Annotated[tuple[Check, ...], Meta(max_length=1_000)] = ()
    prefill_mape: Annotated[float, Meta(ge=0, le=1_000)] | None = None
    decode_mape: Annotated[float, Meta(ge=0, le=1_000)] | None = None


class AcceleratorProfile(Struct, frozen=True, forbid_unknown_fields=True):
    """One worker's accelerator (one GPU, or several that serve one model together).

    Attributes:
        name: short, e.g. "a100"; workers of one name are alike.
        model: which model these seconds are for.
        device: what it is, in words.
        tensor_parallel: GPUs over which the model is split; information only.
        prefill, decode, capacity, price, fit: see there.
        jitter: None: every step takes exactly what is predicted.
    """

    name: Name
    model: Text
    device: Text
    tensor_parallel: Sourced[Annotated[int, Meta(ge=1, le=1_024)]]
    prefill: PrefillCost
    decode: DecodeCost
    capacity: Capacity
    price: Price
    fit: Fit
    jitter: Jitter | None = None

    def __post_init__(self) -> None:
        for field, number in (
            ("prefill.per_token_s", self.prefill.per_token_s.value),
            ("decode.base_s", self.decode.base_s.value),
        ):
            if number <= 0:
                raise ValueError(f"{field}={number}: must be above 0")
        if self.prefill.chunk_tokens.value > self.capacity.kv_tokens.value:
            raise ValueError(
                f"prefill.chunk_tokens={self.prefill.chunk_tokens.value}: must be at most "
                f"capacity.kv_tokens={self.capacity.kv_tokens.value}"
            )


def at_time_scale(profile: AcceleratorProfile, time_scale: float) -> AcceleratorProfile:
    """The profile of a worker that emulates it faster, in the seconds of whoever watches it.

    `time_scale`: the profile's seconds in one of the watcher's, above 0. Nothing but step times
    changes; the price stays one of the profile's hours.
    """
    if time_scale == 1:
        return profile

    def scaled(seconds: Sourced[float]) -> Sourced[float]:
        return structs.replace(seconds, value=seconds.value / time_scale)

    prefill, decode = profile.prefill, profile.decode
    return structs.replace(
        profile,
        prefill=structs.replace(
            prefill,
            base_s=scaled(prefill.base_s),
            per_token_s=scaled(prefill.per_token_s),
            per_token_per_1k_context_s=scaled(prefill.per_token_per_1k_context_s),
        ),
        decode=structs.replace(
            decode,
            base_s=scaled(decode.base_s),
            per_request_s=scaled(decode.per_request_s),
            per_1k_context_tokens_s=scaled(decode.per_1k_context_tokens_s),
        ),
    )


def attended_tokens(num_uncached: int, num_cached: int) -> float:
    """Sum over the uncached tokens of how many tokens each attends to, itself included.

    The i-th of `num_uncached` tokens (i from 1) after `num_cached` cached ones attends to
    num_cached + i tokens; the sum is num_uncached x (num_cached + (num_uncached + 1) / 2).
    """
    return num_uncached * (num_cached + (num_uncached + 1) / 2)


def prefill_s(profile: AcceleratorProfile, chunks: Iterable[tuple[int, int]]) -> float:
    """Seconds of one prefill step over `chunks`: (uncached tokens, cached tokens) a request.

    Counts are 0 or above. Without chunks it is the step's base.
    """
    return profile.prefill.base_s.value + _chunks_s(profile, chunks)


def decode_s(
    profile: AcceleratorProfile,
    num_requests: int,
    num_context_tokens: int,
    num_repeated_tokens: int = 0,
) -> float:
    """Seconds of one decode step of `num_requests` whose contexts sum to `num_context_tokens`.

    `num_repeated_tokens` of these another request of the batch holds as well.
    """
    num_read = tokens_read(profile, num_context_tokens, num_repeated_tokens)
    return profile.decode.base_s.value + _batch_s(profile, num_requests, num_read)


def tokens_read(
    profile: AcceleratorProfile, num_context_tokens: int, num_repeated_tokens: int
) -> float:
    """Context tokens of a decode step, repeated ones at the share that they cost."""
    frac = profile.decode.repeated_read_frac
    if frac is None:
        return num_context_tokens
    return num_context_tokens - (1.0 - frac.value) * num_repeated_tokens


def mixed_s(
    profile: AcceleratorProfile,
    chunks: Iterable[tuple[int, int]],
    num_decoding: int,
    num_context_tokens: int,
) -> float:
    """Seconds of a step that computes `chunks` and also decodes `num_decoding` requests.

    The larger of the two bases is paid once: both kinds of work read the weights only once.
    """
    base_s = max(profile.prefill.base_s.value, profile.decode.base_s.value)
    batch_s = _batch_s(profile, num_decoding, num_context_tokens)
    return base_s + _chunks_s(profile, chunks) + batch_s


def request_s(profile: AcceleratorProfile, num_prompt_tokens: int, num_output_tokens: int) -> float:
    """Seconds of one request alone on the worker, nothing cached, prefill in chunks.

    `num_output_tokens` at least 1; the prefill yields the first of them.
    """
    total_s = 0.0
    for start in range(0, num_prompt_tokens, profile.prefill.chunk_tokens.value):
        size = min(profile.prefill.chunk_tokens.value, num_prompt_tokens - start)
        total_s += prefill_s(profile, [(size, start)])
    steps = num_output_tokens - 1
    # Contexts grow by one a step: prompt + 1, ..., prompt + steps.
    context_tokens = steps * num_prompt_tokens + steps * (steps + 1) // 2
    constant_s = profile.decode.base_s.value + profile.decode.per_request_s.value
    reading_s = profile.decode.per_1k_context_tokens_s.value * context_tokens / 1_000
    return total_s + steps * constant_s + reading_s


def _chunks_s(profile: AcceleratorProfile, chunks: Iterable[tuple[int, int]]) -> float:
    cost = profile.prefill
    tokens, attended = 0, 0.0
    for num_uncached, num_cached in chunks:
        tokens += num_uncached
        attended += attended_tokens(num_uncached, num_cached)
    attention_s = cost.per_token_per_1k_context_s.value * attended / 1_000
    return cost.per_token_s.value * tokens + attention_s


def _batch_s(profile: AcceleratorProfile, num_requests: int, num_context_tokens: float) -> float:
    cost = profile.decode
    reading_s = cost.per_1k_context_tokens_s.value * num_context_tokens / 1_000
    return cost.per_request_s.value * num_requests + reading_s
