"""What one tenant may use: requests in a second, requests at once, tokens in a minute.

Counts with token buckets on the coordinator's monotonic clock; no I/O. Without API keys a
tenant's name is only what a caller says of itself, so all callers count as one tenant then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct

from hexgen_sglang.coordinator.http_errors import ApiError

# When a place will be free is not known; clients should not all come back in one instant.
_BUSY_RETRY_S = 1.0


class TenantLimits(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Limits of one tenant. None: no limit.

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


class Bucket:
    """A token bucket: `rate_per_s` flows in up to `capacity`; taking out may leave a debt.

    Args:
        rate_per_s: above 0.
        capacity: above 0; also what is there at first.
        now_s: the present instant.
    """

    def __init__(self, rate_per_s: float, capacity: float, now_s: float) -> None:
        self._rate_per_s = rate_per_s
        self._capacity = capacity
        self._level = capacity
        self._at_s = now_s

    def wait_s(self, wanted: float, now_s: float) -> float:
        """Seconds until `wanted` is there; 0.0 when it is. More than fits: until it is full."""
        missing = min(wanted, self._capacity) - self.level(now_s)
        return max(0.0, missing / self._rate_per_s)

    def take(self, amount: float, now_s: float) -> None:
        """Take out, or with a negative amount give back."""
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
        self._usage: dict[str, _TenantUsage] = {}

    def take(self, tenant: str | None, num_tokens: int) -> Lease:
        """Take a new request's share.

        Args:
            tenant: of the caller's key; None without keys.
            num_tokens: prompt and output tokens that it is expected to use.

        Raises:
            ApiError: 429 with Retry-After; nothing was taken.
        """
        now_s = self._clock()
        usage = self._usage.get(tenant or "")
        if usage is None:
            usage = _TenantUsage(self._named.get(tenant or "", self._each), now_s)
            self._usage[tenant or ""] = usage
        limits, who = usage.limits, "all callers" if tenant is None else f"tenant {tenant!r}"
        most = limits.max_concurrent
        if most is not None and usage.num_open >= most:
            raise _too_much(
                f"{who}: {usage.num_open} requests have not ended; at most {most} may at once",
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


def _too_much(message: str, limit: str, retry_after_s: float) -> ApiError:
    return ApiError(
        429,
        message,
        kind="rate_limit_error",
        code="tenant_limit",
        param=limit,
        retry_after_s=retry_after_s,
    )
