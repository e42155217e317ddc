"""Which settings of a system are searched, over which ranges, and which points.

A setting has the name that the system's name gives it: those of the dispatch policy their own,
the coordinator's working set `working_set`, and those of the ordering policy, by which engines
and central queue order alike, `ordering.` before their own. What an engine takes only when it is
started (which ordering, `hold`, `retain`, `prewarm`) is none of them, since a running one could
not be given it. Settings and defaults come from the registries of policies; ranges are declared
here and can be replaced on the command line. Pure and without randomness: equal spaces give
equal points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from hexgen_sglang.bench.systems import (
    Binding,
    Place,
    System,
    check_working_set,
    with_ordering_settings,
)
from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.coordinator.tuning_messages import (
    ORDERING_PREFIX,
    WORKING_SET,
    split_ordering,
)
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.policies.dispatch import DISPATCH
from hexgen_sglang.policies.ordering import ORDERING

Settings = dict[str, float]


@dataclass(frozen=True, slots=True)
class Range:
    """Values of one setting, ends included.

    Attributes:
        low, high: finite, low < high.
        is_log: equal steps are equal factors; needs low > 0.
    """

    low: float
    high: float
    is_log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"range {self}: must be two finite numbers, the smaller first")
        if self.is_log and self.low <= 0:
            raise ConfigError(f"range {self}: a range in equal factors must start above 0")

    def __str__(self) -> str:
        return f"{self.low:g}:{self.high:g}" + (":log" if self.is_log else "")

    def at(self, share: float) -> float:
        """The value at a share of the way, 0 to 1, to four significant digits."""
        if self.is_log:
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + share * (self.high - self.low)
        return min(max(float(f"{value:.4g}"), self.low), self.high)


# (dispatch policy, setting) -> what is worth searching. A setting that is not here is searched
# by `_around` what the system has, within what the policy accepts.
RANGES: dict[tuple[str, str], Range] = {
    ("paper", "alpha"): Range(0.0, 0.9),
    ("least_load", "barrier_s"): Range(0.1, 30.0, is_log=True),
    ("marginal_cost", "prefix_trust"): Range(0.3, 1.0),
    ("marginal_cost", "imposed_weight"): Range(0.25, 4.0, is_log=True),
    ("marginal_cost", "sibling_cost_frac"): Range(0.01, 0.5, is_log=True),
    ("marginal_cost", "early_sibling_weight"): Range(0.2, 1.0),
    ("marginal_cost", "least_urgency"): Range(0.01, 0.5, is_log=True),
    ("marginal_cost", "caution"): Range(0.5, 4.0),
    ("hexgen_lite", "prefix_trust"): Range(0.3, 1.0),
    ("hexgen_lite", "imposed_weight"): Range(0.25, 4.0, is_log=True),
    ("hexgen_lite", "sibling_cost_frac"): Range(0.01, 0.5, is_log=True),
    ("hexgen_lite", "early_sibling_weight"): Range(0.2, 1.0),
    ("hexgen_lite", "least_urgency"): Range(0.01, 0.5, is_log=True),
    ("hexgen_lite", "caution"): Range(0.5, 4.0),
    ("earliest_completion", "prefix_trust"): Range(0.0, 1.0),
    ("earliest_completion", "batch_cost_frac"): Range(0.005, 0.3, is_log=True),
    ("earliest_completion", "tie_s"): Range(0.001, 1.0, is_log=True),
}

# Half the memory for contexts of workflows in progress, to four times as many as fit unshared.
_WORKING_SETS = Range(0.5, 4.0, is_log=True)
# They only fill in until a first request of the kind has ended; searched when asked for.
_PREFIX_OF_UNKNOWN = "default_"
# `may_wait` is a choice of two that a running dispatcher cannot change.
_UNSEARCHED = frozenset({("least_load", "stale_after_s"), ("marginal_cost", "may_wait")})
_FACTOR = 4.0


def search_space(system: System, wanted: Iterable[str]) -> dict[str, Range]:
    """The settings of the system to search, with their ranges.

    Args:
        system: behind a coordinator.
        wanted: `name`, `name=low:high` or `name=low:high:log`, each name once. None given:
            every setting but those that only stand in for what is not known yet, a working
            set without limit, and what is 0 and has no declared range.

    Raises:
        ConfigError: the system has nothing to search, a name is unknown or there twice, or a
            range is malformed or not within what the policy accepts.
    """
    if system.place is not Place.COORDINATOR:
        raise ConfigError(
            f"system {system.name!r}: only a coordinator's dispatch policy has settings to search"
        )
    known = known_settings(system)
    asked = list(wanted)
    stated = [text.partition("=")[0] for text in asked]
    for name in stated:
        if name not in known:
            names = ", ".join(known) or "none"
            raise ConfigError(f"search {name!r}: {system.name!r} has the settings: {names}")
        if stated.count(name) > 1:
            raise ConfigError(f"search {name!r}: is there twice")
    if not asked:
        asked = [name for name in known if _is_searched(system, name)]
    if not asked:
        raise ConfigError(f"system {system.name!r} has nothing to search")
    return {text.partition("=")[0]: _range(system, text) for text in asked}


def known_settings(system: System) -> Settings:
    """Every setting that may be searched, by name, as the system has it.

    What its name does not state is the policy's default, and the coordinator's for the working
    set. There is none with early binding.
    """
    known = {**DISPATCH.defaults(system.dispatch), **system.settings}
    if system.binding is Binding.LATE:
        default = CoordinatorConfig().working_set
        known[WORKING_SET] = default if system.working_set is None else system.working_set
    engine = system.engine
    if engine.ordering:
        own = {**ORDERING.defaults(engine.ordering), **dict(engine.ordering_settings)}
        known.update({ORDERING_PREFIX + name: value for name, value in own.items()})
    return known


def _is_searched(system: System, name: str) -> bool:
    if name.startswith(_PREFIX_OF_UNKNOWN) or (system.dispatch, name) in _UNSEARCHED:
        return False
    return (system.dispatch, name) in RANGES or known_settings(system)[name] > 0


def _range(system: System, text: str) -> Range:
    """The range that was asked for, else the declared one, else one around the default."""
    name, equals, values = text.partition("=")
    if not equals:
        declared = _WORKING_SETS if name == WORKING_SET else RANGES.get((system.dispatch, name))
        return declared or _around(system, name)
    parts = values.split(":")
    is_log = len(parts) == 3 and parts[2] == "log"
    try:
        if len(parts) != 2 + is_log:
            raise ValueError(values)
        found = Range(float(parts[0]), float(parts[1]), is_log)
    except ValueError as error:
        raise ConfigError(f"search {text!r}: must be name=low:high or name=low:high:log") from error
    for end in (found.low, found.high):
        try:
            with_settings(system, {name: end})
        except ConfigError as error:
            raise ConfigError(f"search {text!r}: {error}") from error
    return found


def _around(system: System, name: str) -> Range:
    """A quarter of what the system has to four times it, as far as the policy accepts."""
    present = known_settings(system)[name]
    if present <= 0:
        raise ConfigError(
            f"search {name!r}: its value {present:g} suggests no range; state one: {name}=low:high"
        )
    ends = [present / _FACTOR, present * _FACTOR]
    for index, end in enumerate(ends):
        ends[index] = end if _accepts(system, name, end) else present
    if ends[0] == ends[1]:
        raise ConfigError(f"search {name!r}: state a range: {name}=low:high")
    return Range(ends[0], ends[1], is_log=True)


def _accepts(system: System, name: str, value: float) -> bool:
    try:
        with_settings(system, {name: value})
    except ConfigError:
        return False
    return True


def default_settings(system: System, space: Mapping[str, Range]) -> Settings:
    """What the searched settings are without a search."""
    known = known_settings(system)
    return {name: known[name] for name in space}


def candidates(space: Mapping[str, Range], default: Settings, count: int) -> tuple[Settings, ...]:
    """`count` different points, the default first; one fewer when a lattice point is on it.

    One setting: the default and an even grid over the range, ends included. Several: points
    of a lattice that fills the space evenly and has every setting at `count` different values.

    Args:
        space: at least one setting.
        default: of the same settings; it may lie outside the ranges.
        count: at least 2.

    Raises:
        ConfigError: the count is too small.
    """
    if count < 2:
        raise ConfigError(f"candidates={count}: must be at least 2, the default and another")
    if len(space) == 1:
        ((name, values),) = space.items()
        return (default, *_grid(name, values, default[name], count - 1))
    rows = (
        {
            name: values.at(share)
            for (name, values), share in zip(space.items(), shares, strict=True)
        }
        for shares in _lattice(count - 1, len(space))
    )
    return (default, *(row for row in rows if row != default))


def _grid(name: str, values: Range, default: float, count: int) -> list[Settings]:
    """`count` even points without the default; one more is laid when the default is on it."""
    for steps in (count, count + 1):
        shares = [index / (steps - 1) for index in range(steps)] if steps > 1 else [0.5]
        points = [values.at(share) for share in shares]
        others = [point for point in points if point != default]
        if len(others) >= count:
            return [{name: point} for point in others[:count]]
    return [{name: point} for point in others]


def _lattice(count: int, dimensions: int) -> list[list[float]]:
    """`count` points of a lattice of rank 1, each coordinate above 0 and below 1.

    Its size is the least prime from `count` on; its generator (1, a, a^2, ...) is the one
    whose points are farthest apart on the torus, the least such a.
    """
    size = next(n for n in range(max(count, 3), 2 * count + 4) if _is_prime(n))
    vectors = [[pow(a, k, size) for k in range(dimensions)] for a in range(1, size)]
    best = max(vectors, key=lambda vector: _nearest(vector, size))
    return [[(i * step % size + 0.5) / size for step in best] for i in range(1, count + 1)]


def _nearest(vector: Sequence[int], size: int) -> int:
    """Least squared distance between two points of the lattice, in units of 1/size."""
    steps = [[i * step % size for step in vector] for i in range(1, size)]
    return min(sum(min(step, size - step) ** 2 for step in point) for point in steps)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def with_settings(system: System, settings: Settings) -> System:
    """The system with other settings, named after them.

    Raises:
        ConfigError: there is no such setting, or a policy refuses its value.
    """
    ordering, rest = split_ordering(settings)
    working_set = rest.pop(WORKING_SET, system.working_set)
    if working_set is not None:
        check_working_set(working_set)
    merged = {**system.settings, **rest}
    DISPATCH.create(system.dispatch, **merged)
    engine = with_ordering_settings(
        system.engine, {**dict(system.engine.ordering_settings), **ordering}
    )
    found = replace(system, engine=engine, settings=merged, working_set=working_set)
    return replace(found, name=system_name(found))


def system_name(system: System) -> str:
    """The long name that `parse_system` reads back as this system."""
    parts = [f"{name}={value:.10g}" for name, value in sorted(system.settings.items())]
    parts.append(f"binding={system.binding}")
    parts.append(f"link={'on' if system.linked else 'off'}")
    if system.working_set is not None:
        parts.append(f"working_set={system.working_set:.10g}")
    return f"coordinator:{system.dispatch}[{';'.join(parts)}]+{system.engine.text}"
