"""Tenants share by attained service: whoever had less of late, for its weight, goes first.

Rule: each tenant's attained service over its weight is compared with that of all of them together.
  order: of the tenants that wait, who had at most `1 + tolerance` times as much stands at level 0,
    and the ordering policy alone decides among those; the others stand at higher levels, one for
    each further factor of `1 + tolerance`, and the lower level goes first.
  room: who had more holds no more of each worker's memory and batch than others leave: what they
    used lately and a quarter more, up to their shares. It is held to half of it in any case, since
    full batches make everybody's steps slow, or to its share where that is more.
When to choose it: several tenants share workers, and none may crowd out another.
Reads (and how fresh): service as predicted when a request was placed, as counted when it ended.
Cost: a few operations for each tenant that waits.
Trade-offs: a tenant above its share waits although its deadlines are nearer, and although a worker
has room, for some half-lives after the others' last request: workers then do less in all. Nobody
starves: whoever waits and gets nothing sinks in level, and one request may always go.

After the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models"
(OSDI 2024), with counters that decay in place of counters that are lifted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from hexgen_sglang.policies.settings import positive

# An output token counts as so many prompt tokens; the paper's own ratio.
OUTPUT_WEIGHT = 2.0
# Counters grow with time instead of shrinking; beyond 2^40 they are scaled down.
_MOST_HALVINGS = 40.0
_FORGOTTEN = 1e-3
# A tenant counts as active with this part of what was attained lately.
_ACTIVE_FRAC = 0.01
# Others are left so many times what they used, so that they can grow.
_HEADROOM = 1.25
# More of a worker is not held by whoever is above its share.
_MOST_ROOM_FRAC = 0.5


def service(num_uncached_tokens: int, num_output_tokens: int) -> float:
    """What a request costs, in prompt tokens that were computed."""
    return num_uncached_tokens + OUTPUT_WEIGHT * num_output_tokens


class AttainedService:
    """What each tenant attained, halved every `half_life_s`.

    Args:
        weights: of tenants that have another than `weight`; above 0.
        weight: of the others.
        half_life_s: above 0.
        tolerance: see above; above 0.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        *,
        weight: float = 1.0,
        half_life_s: float = 60.0,
        tolerance: float = 0.05,
    ) -> None:
        self._weights = {k: positive(f"weight of {k}", w) for k, w in (weights or {}).items()}
        self._weight = positive("weight", weight)
        self._half_life_s = positive("half_life_s", half_life_s)
        self._step = math.log1p(positive("tolerance", tolerance))
        # As of `_at_s`: what comes later is entered larger, so that nothing need be halved.
        self._counters: dict[str, float] = {}
        self._at_s: float | None = None
        # The part of the counters that was attained elsewhere, by who told it.
        self._elsewhere: dict[str, dict[str, float]] = {}

    def note(self, tenant: str, amount: float, now_s: float) -> None:
        """The tenant was given service; a negative amount takes it back."""
        counter = self._counters.get(tenant, 0.0) + amount * 2.0 ** self._halvings(now_s)
        self._counters[tenant] = max(0.0, counter)

    def note_elsewhere(self, source: str, attained: Mapping[str, float], now_s: float) -> None:
        """Of other books about the same workers: what is left there, instead of what they said."""
        scale = 2.0 ** self._halvings(now_s)
        told = {tenant: scale * amount for tenant, amount in attained.items()}
        before = self._elsewhere.get(source, {})
        for tenant in told.keys() | before.keys():
            change = told.get(tenant, 0.0) - before.get(tenant, 0.0)
            self._counters[tenant] = max(0.0, self._counters.get(tenant, 0.0) + change)
        self._elsewhere[source] = told

    def all_attained(self, now_s: float) -> dict[str, float]:
        """What is left by now of all that each tenant was given by these books."""
        part = 2.0 ** -self._halvings(now_s)
        own = dict(self._counters)
        for told in self._elsewhere.values():
            for tenant, counter in told.items():
                own[tenant] = max(0.0, own.get(tenant, 0.0) - counter)
        return {tenant: part * counter for tenant, counter in own.items()}

    def share(self, tenant: str, tenants: Collection[str]) -> float:
        """The tenant's weight of all of theirs together, its own included; 0 to 1."""
        others = sum(self._weights.get(other, self._weight) for other in tenants if other != tenant)
        own = self._weights.get(tenant, self._weight)
        return own / (own + others)

    def room_frac(self, tenant: str, waiting: Collection[str]) -> float:
        """The part of each worker's memory and batch that the tenant may hold, above 0 to 1.

        `waiting`: tenants that wait; they are active whatever they attained.
        """
        total = sum(self._counters.values())
        own = self._counters.get(tenant, 0.0)
        active = {name for name, had in self._counters.items() if had >= _ACTIVE_FRAC * total}
        active |= {tenant, *waiting}
        share = self.share(tenant, active)
        if len(active) < 2 or total <= _FORGOTTEN or own <= share * total:
            return 1.0
        used = [
            min(self.share(name, active), _HEADROOM * self._counters.get(name, 0.0) / total)
            for name in active
            if name != tenant
        ]
        return max(share, min(_MOST_ROOM_FRAC, 1.0 - sum(used)))

    def levels(self, tenants: Collection[str]) -> dict[str, int]:
        """The level of each of these tenants; the lower one goes first.

        The same at any instant, as long as nothing is noted: all counters decay alike.
        """
        total = sum(self._counters.get(tenant, 0.0) for tenant in tenants)
        weights = {tenant: self._weights.get(tenant, self._weight) for tenant in tenants}
        if total <= _FORGOTTEN:
            return dict.fromkeys(tenants, 0)
        per_weight = total / sum(weights.values())
        return {
            tenant: self._level(self._counters.get(tenant, 0.0) / weights[tenant] / per_weight)
            for tenant in tenants
        }

    def _level(self, ratio: float) -> int:
        return max(0, math.floor(math.log(ratio) / self._step)) if ratio > 1.0 else 0

    def _halvings(self, now_s: float) -> float:
        """Half-lives since the counters' instant, which is moved before they overflow."""
        if self._at_s is None:
            self._at_s = now_s
        halvings = (now_s - self._at_s) / self._half_life_s
        if halvings < _MOST_HALVINGS:
            return halvings
        part = 2.0**-halvings
        self._counters = _left(self._counters, part)
        self._elsewhere = {name: _left(told, part) for name, told in self._elsewhere.items()}
        self._at_s = now_s
        return 0.0


def _left(counters: Mapping[str, float], part: float) -> dict[str, float]:
    """Counters times `part`, without those of which nothing is left."""
    scaled = ((tenant, part * counter) for tenant, counter in counters.items())
    return {tenant: counter for tenant, counter in scaled if counter > _FORGOTTEN}
