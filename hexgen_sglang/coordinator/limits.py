"""What one tenant may use: requests in a second, requests at once, tokens in a minute.

Counts with token buckets on the coordinator's monotonic clock; no I/O. Without API keys a
tenant's name is only what a caller says of itself, so all callers count as one tenant then.

Coordinators beside each other hold a tenant to its limits together: each tells the others what the
tenant used there (`Used`), and takes that out of its own buckets. What two accept before they
hear of each other is more than the limit, and a debt that both let the tenant wait for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct

from hexgen_sglang.coordinator.http_errors import ApiError

# When a place will be free is not known; clients should not all come back in one instant.
_BUSY_RETRY_S = 1.0
# Other coordinators are told of the tenants that were here last.
MOST_TOLD = 4_096

_Sum = Annotated[int, Meta(ge=0, le=2**53)]


class TenantLimits(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Limits of one tenant, of all coordinators together. None: no limit.

    Attributes:
        requests_per_s: accepted requests, in the long run.
        burst: requests that may come at once after a pause; None: those of one second.
        max_concurrent: requests accepted and not ended.
        tokens_per_min: prompt and output tokens. A request is charged with what it is
            expected to use when it comes, and with what it did use when it ends.
        weight: share of the workers that is the tenant's while others wait, too, relative to
            theirs (see `tenant_shares`); None: 1.
    """

    requests_per_s: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    burst: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    max_concurrent: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    tokens_per_min: Annotated[int, Meta(ge=1, le=2**40)] | None = None
    weight: Annotated[float, Meta(gt=0, le=1e6)] | None = None


class Used(Struct, frozen=True, array_like=True):
    """What a tenant used at one coordinator; a newer one may tell more, at the end.

    Attributes:
        num_open: requests accepted and not ended, now.
        num_requests, num_tokens: that were counted against its limits since the coordinator began.
    """

    num_open: _Sum = 0
    num_requests: _Sum = 0
    num_tokens: _Sum = 0


class Bucket:
    """A token bucket: `rate_per_s` flows in up to `capacity`; taking out may leave a debt.

    Args:
        rate_per_s: above 0.
        capacity: above 0; also what is there at first.
        now_s: the present instant.

    Attributes:
        taken: what was taken out here, less what was given back.
    """

    def __init__(self, rate_per_s: float, capacity: float, now_s: float) -> None:
        self.taken = 0
        self._rate_per_s = rate_per_s
        self._capacity = capacity
        self._level = capacity
        self._at_s = now_s

    def wait_s(self, wanted: float, now_s: float) -> float:
        """Seconds until `wanted` is there; 0.0 when it is. More than fits: until it is full."""
        missing = min(wanted, self._capacity) - self.level(now_s)
        return max(0.0, missing / self._rate_per_s)

    def take(self, amount: int, now_s: float) -> None:
        """Take out, or with a negative amount give back."""
        self.taken += amount
        self.take_elsewhere(amount, now_s)

    def take_elsewhere(self, amount: int, now_s: float) -> None:
        """The same for what another coordinator took out."""
        self._level = min(self._capacity, self.level(now_s) - amount)

    def level(self, now_s: float) -> float:
        """What is there; negative while there is a debt."""
        inflow = max(0.0, now_s - self._at_s) * self._rate_per_s
        self._level = min(self._capacity, self._level + inflow)
        self._at_s = max(self._at_s, now_s)
        return self._level


@dataclass(slots=True, eq=False)
class Lease:
    """One accepted request's share of its tenant's limits; end it once, either way."""

    _usage: _TenantUsage
    _charged: int
    _clock: Callable[[], float]
    _is_over: bool = False

    def settle(self, num_tokens: int | None) -> None:
        """The request ended; it used so many tokens (None: unknown, what was charged stays)."""
        if self._is_over:
            return
        self._is_over = True
        self._usage.num_open -= 1
        if num_tokens is not None and self._usage.tokens is not None:
            self._usage.tokens.take(num_tokens - self._charged, self._clock())

    def give_back(self) -> None:
        """The request was not accepted after all: as if it had never come."""
        if not self._is_over and self._usage.requests is not None:
            self._usage.requests.take(-1, self._clock())
        self.settle(0)


class _TenantUsage:
    """What one tenant has used."""

    def __init__(self, limits: TenantLimits, now_s: float) -> None:
        self.limits = limits
        self.num_open = 0
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        if limits.requests_per_s is not None:
            burst = limits.burst or max(1.0, limits.requests_per_s)
            self.requests = Bucket(limits.requests_per_s, burst, now_s)
        if limits.tokens_per_min is not None:
            self.tokens = Bucket(limits.tokens_per_min / 60, limits.tokens_per_min, now_s)

    @property
    def is_limited(self) -> bool:
        """Whether anything of it is counted."""
        counted = self.requests, self.tokens, self.limits.max_concurrent
        return any(one is not None for one in counted)

    @property
    def used(self) -> Used:
        """What it used here."""
        requests, tokens = (
            bucket.taken if bucket else 0 for bucket in (self.requests, self.tokens)
        )
        return Used(self.num_open, requests, tokens)

    def note_elsewhere(self, before: Used, used: Used, now_s: float) -> None:
        """What it used at another coordinator became more, or what was taken there was too much."""
        if self.requests is not None:
            self.requests.take_elsewhere(used.num_requests - before.num_requests, now_s)
        if self.tokens is not None:
            self.tokens.take_elsewhere(used.num_tokens - before.num_tokens, now_s)


class Limiter:
    """Holds every tenant to its limits. As many entries as tenants have keys.

    Args:
        each: limits of a tenant that is not named in `named`.
        named: limits by tenant, instead of `each`.
        clock: monotonic seconds.
    """

    def __init__(
        self, each: TenantLimits, named: dict[str, TenantLimits], clock: Callable[[], float]
    ) -> None:
        self._each = each
        self._named = named
        self._clock = clock
        self._usage: dict[str, _TenantUsage] = {}  # who was here last is last
        self._elsewhere: dict[str, Mapping[str, Used]] = {}

    def take(self, tenant: str | None, num_tokens: int) -> Lease:
        """Take a new request's share.

        Args:
            tenant: of the caller's key; None without keys.
            num_tokens: prompt and output tokens that it is expected to use.

        Raises:
            ApiError: 429 with Retry-After; nothing was taken.
        """
        now_s = self._clock()
        name = tenant or ""
        usage = self._usage_of(name, now_s)
        self._usage[name] = self._usage.pop(name)
        limits, who = usage.limits, "all callers" if tenant is None else f"tenant {tenant!r}"
        most = limits.max_concurrent
        num_open = usage.num_open + self._num_open_elsewhere(name)
        if most is not None and num_open >= most:
            raise _too_much(
                f"{who}: {num_open} requests have not ended; at most {most} may at once",
                "max_concurrent",
                _BUSY_RETRY_S,
            )
        if usage.requests is not None and (wait_s := usage.requests.wait_s(1, now_s)):
            raise _too_much(
                f"{who}: at most {limits.requests_per_s:g} requests in a second",
                "requests_per_s",
                wait_s,
            )
        if usage.tokens is not None and (wait_s := usage.tokens.wait_s(num_tokens, now_s)):
            raise _too_much(
                f"{who}: at most {limits.tokens_per_min} tokens in a minute; this request is "
                f"expected to use {num_tokens}",
                "tokens_per_min",
                wait_s,
            )
        usage.num_open += 1
        if usage.requests is not None:
            usage.requests.take(1, now_s)
        if usage.tokens is not None:
            usage.tokens.take(num_tokens, now_s)
        return Lease(usage, num_tokens, self._clock)

    def used(self) -> dict[str, Used]:
        """What tenants that have limits used here; of the last `MOST_TOLD` of them."""
        newest = (row for row in reversed(self._usage.items()) if row[1].is_limited)
        return {name: usage.used for name, usage in itertools.islice(newest, MOST_TOLD)}

    def note_elsewhere(self, coordinator_id: str, used: Mapping[str, Used]) -> None:
        """Another coordinator tells what tenants used there.

        What it tells first is where counting begins: who was not there yet when those requests came
        did not let the tenant wait for them.
        """
        now_s = self._clock()
        known = self._elsewhere.get(coordinator_id)
        for name, told in used.items():
            is_new = known is not None and len(known) < MOST_TOLD
            before = (known or {}).get(name, Used() if is_new else told)
            self._usage_of(name, now_s).note_elsewhere(before, told, now_s)
        self._elsewhere[coordinator_id] = used

    def forget_elsewhere(self, coordinator_id: str) -> None:
        """That coordinator is gone, or has begun anew: nothing of tenants is open there."""
        self._elsewhere.pop(coordinator_id, None)

    def _usage_of(self, name: str, now_s: float) -> _TenantUsage:
        usage = self._usage.get(name)
        if usage is None:
            usage = _TenantUsage(self._named.get(name, self._each), now_s)
            self._usage[name] = usage
        return usage

    def _num_open_elsewhere(self, name: str) -> int:
        told = (used.get(name) for used in self._elsewhere.values())
        return sum(one.num_open for one in told if one is not None)


def _too_much(message: str, limit: str, retry_after_s: float) -> ApiError:
    return ApiError(
        429,
        message,
        kind="rate_limit_error",
        code="tenant_limit",
        param=limit,
        retry_after_s=retry_after_s,
    )
