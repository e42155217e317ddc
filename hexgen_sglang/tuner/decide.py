"""When a live setting is changed, and when it is changed back. Pure: a rule, no clock, no I/O.

A proposal is applied only when the interval of its gain excludes no gain, the gain is worth a
change (`min_gain`, hysteresis), the last change is `cool_down_s` ago, and the setting was not
returned from lately. Then live attainment is watched until `watch_workflows` workflows with a
deadline have ended: when it is surely below what it was before the change, the setting before
comes back and the new one is banned, each time twice as long. A watch ends after `watch_s` at
the latest. What arrived before the change
ended under both settings, so it counts for neither.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import NormalDist

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.results.statistics import Interval
from hexgen_sglang.tuner.objective import Objective
from hexgen_sglang.tuner.space import Settings


@dataclass(frozen=True, slots=True)
class DecideSettings:
    """How careful to be.

    Attributes:
        min_gain: least expected gain worth a change: a share for relative objectives (0.05:
            5 % better), else in the objective's unit; at least 0.
        cool_down_s: least time between two changes, a return excepted; at least 0.
        watch_workflows: workflows with a deadline that judge a change; at least 10.
        watch_s: longest watch, after which a change stays; above 0.
        ban_s: how long a setting that was returned from is not tried again, doubled each
            time; above 0.
        confidence: that attainment fell before a setting is returned, between 0.5 and 1.
    """

    min_gain: float = 0.05
    cool_down_s: float = 120.0
    watch_workflows: int = 50
    watch_s: float = 900.0
    ban_s: float = 1_800.0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        limits = (
            ("min_gain", self.min_gain, 0.0, math.inf),
            ("cool_down_s", self.cool_down_s, 0.0, math.inf),
            ("watch_workflows", self.watch_workflows, 10, math.inf),
            ("watch_s", self.watch_s, 1e-9, math.inf),
            ("ban_s", self.ban_s, 1e-9, math.inf),
            ("confidence", self.confidence, 0.5, 0.999_999),
        )
        for name, value, low, high in limits:
            if not (low <= value <= high and math.isfinite(value)):
                raise ConfigError(f"{name}={value}: must be {low:g} to {high:g}, finite")


class Kind(StrEnum):
    """What to do now."""

    KEEP = "keep"
    APPLY = "apply"
    RETURN = "return"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, with which settings from now on, and why in a few words."""

    kind: Kind
    settings: Settings
    reason: str


@dataclass(slots=True)
class _Ban:
    until_s: float
    length_s: float


@dataclass(slots=True)
class _Watch:
    """A change under observation."""

    before: Settings
    since_s: float
    met_before: tuple[bool, ...]
    met_after: list[bool] = field(default_factory=list)


class Decider:
    """Keeps the settings in force and decides about changes. All instants on one clock.

    Args:
        initial: the settings in force.
        objective: of the proposals' gains.
        rule: how careful to be.

    Attributes:
        current: the settings in force.
        num_applied, num_returned: changes so far.
    """

    def __init__(
        self, initial: Settings, objective: Objective, rule: DecideSettings | None = None
    ) -> None:
        self.current = dict(initial)
        self.num_applied = 0
        self.num_returned = 0
        self._objective = objective
        self._rule = rule or DecideSettings()
        self._changed_s: float | None = None
        self._recent: deque[bool] = deque(maxlen=self._rule.watch_workflows)
        self._watch: _Watch | None = None
        self._bans: dict[tuple[tuple[str, float], ...], _Ban] = {}

    @property
    def is_watching(self) -> bool:
        """Whether a change is still being judged."""
        return self._watch is not None

    def propose(self, settings: Settings, gain: Interval, now_s: float) -> Decision:
        """The best setting of a search over recent traffic, with its gain over `current`."""
        refusal = self.objection(settings, gain, now_s)
        if refusal:
            return self._keep(refusal)
        before, self.current = self.current, dict(settings)
        self._watch = _Watch(before, now_s, tuple(self._recent))
        self._recent.clear()
        self._changed_s = now_s
        self.num_applied += 1
        return Decision(Kind.APPLY, dict(settings), f"gain {_told(gain)} over the present one")

    def ended(self, arrival_s: float, met: bool, now_s: float) -> Decision:
        """A workflow with a deadline ended; `arrival_s`: when it had begun."""
        if self._changed_s is not None and arrival_s < self._changed_s:
            return self._keep("began under other settings")
        self._recent.append(met)
        watch = self._watch
        if watch is None:
            return self._keep("nothing to judge")
        watch.met_after.append(met)
        fell = surely_below(watch.met_after, watch.met_before, self._rule.confidence)
        if fell:
            return self._return(watch, now_s)
        if len(watch.met_after) >= self._rule.watch_workflows:
            self._watch = None
            return self._keep("attainment held; the change stays")
        return self._keep("watching")

    def objection(self, settings: Settings, gain: Interval, now_s: float) -> str:
        """Why a proposal is not applied; "" when nothing speaks against it."""
        if self._watch is not None and now_s >= self._watch.since_s + self._rule.watch_s:
            self._watch = None
        none = self._objective.no_gain
        ban = self._bans.get(_key(settings))
        if settings == self.current:
            return "it is in force"
        if not gain.low > none:
            return f"gain {_told(gain)} is not sure"
        if gain.value < none + self._rule.min_gain:
            return f"gain {_told(gain)} is not worth a change"
        if self._watch is not None:
            return "the last change is being judged"
        if self._changed_s is not None and now_s < self._changed_s + self._rule.cool_down_s:
            return "the last change is too recent"
        if ban is not None and now_s < ban.until_s:
            return "live attainment fell under it lately"
        return ""

    def _return(self, watch: _Watch, now_s: float) -> Decision:
        key = _key(self.current)
        length_s = 2 * self._bans[key].length_s if key in self._bans else self._rule.ban_s
        self._bans[key] = _Ban(now_s + length_s, length_s)
        share_before = sum(watch.met_before) / len(watch.met_before)
        share_after = sum(watch.met_after) / len(watch.met_after)
        self.current = watch.before
        self._watch = None
        self._recent.clear()
        self._changed_s = now_s
        self.num_returned += 1
        return Decision(
            Kind.RETURN,
            dict(watch.before),
            f"attainment fell from {share_before:.1%} to {share_after:.1%}",
        )

    def _keep(self, reason: str) -> Decision:
        return Decision(Kind.KEEP, dict(self.current), reason)


# With fewer on either side no share is sure.
_LEAST = 10


def surely_below(after: list[bool], before: tuple[bool, ...], confidence: float) -> bool:
    """Whether the share of True in `after` is below that in `before` beyond chance.

    The upper end of Newcombe's interval of the difference, from the two Wilson intervals,
    lies below 0. The test is made after every workflow, so it is made at a confidence of
    1 - (1 - confidence) / 10: a handful of independent looks fit into one watch.
    """
    if len(after) < _LEAST or len(before) < _LEAST:
        return False
    z = NormalDist().inv_cdf(1 - (1 - confidence) / 10)
    share_after, _, high_after = _wilson(sum(after), len(after), z)
    share_before, low_before, _ = _wilson(sum(before), len(before), z)
    margin = math.hypot(high_after - share_after, share_before - low_before)
    return share_after - share_before + margin < 0


def _wilson(hits: int, count: int, z: float) -> tuple[float, float, float]:
    """Share with the ends of its Wilson interval."""
    share = hits / count
    weight = z * z / count
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / count + weight / count / 4) / (1 + weight)
    return share, middle - half, middle + half


def _key(settings: Settings) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(settings.items()))


def _told(gain: Interval) -> str:
    return f"{gain.value:.3g} [{gain.low:.3g}, {gain.high:.3g}]"
