"""What is compared: systems by name. A system is engine policy x dispatch policy x place.

A name has one of these forms; settings in brackets, separated by ";", are optional:

    ENGINE+round_robin                      the driver sends to the engines in turn
    sglang-router:POLICY+ENGINE             the sglang-router program in front of them
    coordinator:DISPATCH[k=v;...]+ENGINE    our coordinator in front of them

ENGINE is how an engine orders its queue: fcfs, lpm, hrrn, priority (SGLang's own code), or
hexgen (our plugin; hexgen[ordering=NAME] for another ordering than least_slack, with its numeric
settings, hold=off to compute prefixes that are being computed already, patience=N to let a prompt
wait for tight decodes, for at most N of its own prefills, retain=SHARE to keep
prefixes between stages in that share of the KV memory, prewarm=SHARE to compute a next stage's
known prefix ahead, with that share for what is not used yet). POLICY is
round_robin, power_of_two or cache_aware. DISPATCH is a name of our registry with its numeric
settings; `binding=early` sends each request at once, as the published dispatch policies do,
`binding=late` keeps it in the coordinator until a worker has room, and a workflow's first until
its context will fit (`working_set=0`: not for that). `link=off` leaves it without the plugins'
reports, as in front of stock SGLang.

`paper`, `hexgen` and `hexgen-lite` are short names; see `SHORT_NAMES`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.policies.dispatch import DISPATCH
from hexgen_sglang.policies.ordering import ORDERING
from hexgen_sglang.policies.patience import MOST_PATIENCE

DEFAULT_ORDERING = "least_slack"

# The published policies choose a worker when a request comes; only ours may wait.
_EARLY = frozenset(
    {"round_robin", "least_requests", "least_tokens", "least_load", "paper", "hexgen_lite"}
)
# Policies for workers without our plugin: nothing of theirs is heard but HTTP.
_UNLINKED = frozenset({"hexgen_lite"})


class Place(StrEnum):
    """Where the worker of a request is chosen."""

    DRIVER = "driver"
    SGLANG_ROUTER = "sglang-router"
    COORDINATOR = "coordinator"


class Binding(StrEnum):
    """When the coordinator chooses it."""

    EARLY = "early"
    LATE = "late"


# SGLang's flags for each of its own queue orders. `priority` gets each workflow's deadline as
# the priority of its requests, the use of it that can compete on latency.
ENGINE_FLAGS: dict[str, tuple[str, ...]] = {
    "fcfs": (),
    "lpm": (),
    "hrrn": (),
    "priority": ("--enable-priority-scheduling", "--schedule-low-priority-values-first"),
    "hexgen": (),
}
_SCHEDULE_POLICY = {"priority": "fcfs"}

ROUTER_POLICIES = ("cache_aware", "power_of_two", "round_robin")

SHORT_NAMES = {
    # HexGen-Flow as published: its dispatch, and urgency in each engine's queue.
    "paper": "coordinator:paper+hexgen[ordering=urgency;hold=off]",
    # The best of ours.
    "hexgen": "coordinator:marginal_cost+hexgen",
    # The same score in front of stock SGLang: no plugin, no reports, no central queue.
    "hexgen-lite": "coordinator:hexgen_lite+fcfs",
}


@dataclass(frozen=True, slots=True)
class Engine:
    """How every engine of a system orders its queue.

    Attributes:
        policy: key of `ENGINE_FLAGS`.
        ordering: our ordering policy; "" unless `policy` is "hexgen".
        holds_prefixes: a request waits while a prefix that it needs is being computed.
        patience: the longest wait of a prompt for decodes that it would stall, in prefills of its
            own; 0: none. Only behind a linked coordinator.
        retained_share: of the KV memory, for the prefixes of workflows between two stages and
            for templates; 0: none are kept. Only behind a linked coordinator.
        prewarm_share: of it, for prefixes computed ahead and not used yet; 0: none are. Likewise.
        ordering_settings: of our ordering policy, by name, in real terms (not time-scaled);
            without those that are the policy's defaults.
    """

    policy: str
    ordering: str = ""
    holds_prefixes: bool = False
    patience: float = 0.0
    retained_share: float = 0.0
    prewarm_share: float = 0.0
    ordering_settings: tuple[tuple[str, float], ...] = ()

    @property
    def schedule_policy(self) -> str:
        """Value of SGLang's --schedule-policy."""
        return _SCHEDULE_POLICY.get(self.policy, self.policy)

    @property
    def flags(self) -> tuple[str, ...]:
        """Further flags for launch_server."""
        return ENGINE_FLAGS[self.policy]

    @property
    def name(self) -> str:
        """Short name for messages, logs and folders."""
        if not self.ordering:
            return self.policy
        name = f"{self.policy}-{self.ordering}"
        name += "".join(f"-{key}-{value:g}" for key, value in self.ordering_settings)
        name += "" if self.holds_prefixes else "-no-hold"
        name += f"-patience-{self.patience:g}" if self.patience else ""
        if self.retained_share:
            name += f"-retain-{self.retained_share:g}"
        return f"{name}-prewarm-{self.prewarm_share:g}" if self.prewarm_share else name

    @property
    def text(self) -> str:
        """As a system's name states it."""
        parts = []
        if self.ordering not in ("", DEFAULT_ORDERING):
            parts.append(f"ordering={self.ordering}")
        parts += [f"{name}={value:.10g}" for name, value in self.ordering_settings]
        if self.ordering and not self.holds_prefixes:
            parts.append("hold=off")
        if self.patience:
            parts.append(f"patience={self.patience:.10g}")
        if self.retained_share:
            parts.append(f"retain={self.retained_share:.10g}")
        if self.prewarm_share:
            parts.append(f"prewarm={self.prewarm_share:.10g}")
        return self.policy + (f"[{';'.join(parts)}]" if parts else "")

    @property
    def needs_link(self) -> str:
        """The setting that only a linked coordinator can serve; "" without one."""
        if self.patience:
            return f"patience={self.patience:g}"
        if self.retained_share:
            return f"retain={self.retained_share:g}"
        return f"prewarm={self.prewarm_share:g}" if self.prewarm_share else ""


@dataclass(frozen=True, slots=True)
class System:
    """One row of the comparison.

    Attributes:
        name: as the user wrote it; key of the results.
        engine: order inside the engines; systems with equal engines can share running workers.
        place: where dispatch happens.
        dispatch: policy name at that place.
        settings: of a coordinator's dispatch policy, in real terms (not time-scaled).
        binding: when a coordinator chooses; EARLY elsewhere.
        linked: a coordinator hears the workers' plugins, not only their HTTP.
        working_set: a coordinator's setting of that name; None: as the cluster file says.
    """

    name: str
    engine: Engine
    place: Place
    dispatch: str
    settings: dict[str, float] = field(default_factory=dict)
    binding: Binding = Binding.EARLY
    linked: bool = True
    working_set: float | None = None

    @property
    def central_ordering(self) -> str:
        """Which of our policies orders the coordinator's own queue: as the engine does, and by
        arrival where the engine's order is SGLang's.
        """
        return self.engine.ordering or "fcfs"


def parse_systems(text: str) -> list[System]:
    """Systems from a list of names separated by commas, in that order.

    Raises:
        ConfigError: empty, a name twice, or what `parse_system` raises.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"systems={text!r}: must name at least one")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"systems={text!r}: {name!r} is there twice")
    return [parse_system(name) for name in names]


def parse_system(name: str) -> System:
    """The system of that name.

    Raises:
        ConfigError: the form or a part of it is unknown; the message says what is known.
    """
    left, plus, right = SHORT_NAMES.get(name, name).rpartition("+")
    if not plus:
        raise ConfigError(
            f"system {name!r}: must be ENGINE+round_robin, sglang-router:POLICY+ENGINE, "
            f"coordinator:DISPATCH+ENGINE, or one of {', '.join(SHORT_NAMES)}"
        )
    place, colon, policy = left.partition(":")
    if not colon:
        if right != "round_robin":
            raise ConfigError(
                f"system {name!r}: {right!r} behind an engine must be round_robin; other "
                "policies need a place: sglang-router:POLICY+ENGINE or coordinator:..."
            )
        return System(name, _alone(name, _engine(name, left)), Place.DRIVER, "round_robin")
    engine = _engine(name, right)
    if place == Place.SGLANG_ROUTER:
        if policy not in ROUTER_POLICIES:
            raise ConfigError(
                f"system {name!r}: policy {policy!r}: must be one of {', '.join(ROUTER_POLICIES)}"
            )
        return System(name, _alone(name, engine), Place.SGLANG_ROUTER, policy)
    if place == Place.COORDINATOR:
        return _with_coordinator(name, policy, engine)
    raise ConfigError(f"system {name!r}: {place!r}: must be sglang-router or coordinator")


def _engine(system: str, text: str) -> Engine:
    policy, settings = _split(system, text)
    if policy not in ENGINE_FLAGS:
        raise ConfigError(
            f"system {system!r}: engine {policy!r}: must be one of {', '.join(ENGINE_FLAGS)}"
        )
    ordering = settings.pop("ordering", DEFAULT_ORDERING) if policy == "hexgen" else ""
    if ordering and ordering not in ORDERING:
        raise ConfigError(
            f"system {system!r}: ordering={ordering}: must be one of {', '.join(ORDERING)}"
        )
    hold = settings.pop("hold", "on") if policy == "hexgen" else "off"
    if hold not in ("on", "off"):
        raise ConfigError(f"system {system!r}: hold={hold}: must be on or off")
    patience = retained = prewarmed = 0.0
    own: dict[str, float] = {}
    if policy == "hexgen":
        patience = _within(system, "patience", settings.pop("patience", "0"), MOST_PATIENCE)
        retained = _within(system, "retain", settings.pop("retain", "0"), 1.0)
        prewarmed = _within(system, "prewarm", settings.pop("prewarm", "0"), 1.0)
        known = [name for name in settings if name in ORDERING.defaults(ordering)]
        own = _numbers(system, {name: settings.pop(name) for name in known})
    if settings:
        raise ConfigError(f"system {system!r}: engine {policy!r} has no {', '.join(settings)}")
    engine = Engine(policy, ordering, hold == "on", patience, retained, prewarmed)
    try:
        return with_ordering_settings(engine, own)
    except ConfigError as error:
        raise ConfigError(f"system {system!r}: {error}") from error


def with_ordering_settings(engine: Engine, settings: Mapping[str, float]) -> Engine:
    """The engine with these settings of its ordering policy, and the policy's for all others.

    Raises:
        ConfigError: there is no such setting, or the policy refuses its value.
    """
    if not settings:
        return replace(engine, ordering_settings=())
    if not engine.ordering:
        raise ConfigError(f"{', '.join(settings)}: engine {engine.policy!r} has no such settings")
    ORDERING.create(engine.ordering, **settings)
    default = ORDERING.defaults(engine.ordering)
    own = sorted((name, value) for name, value in settings.items() if value != default[name])
    return replace(engine, ordering_settings=tuple(own))


def _alone(system: str, engine: Engine) -> Engine:
    """The engine, if it needs nobody to tell it about workflows."""
    if engine.needs_link:
        raise ConfigError(f"system {system!r}: {engine.needs_link}: needs a coordinator")
    return engine


def _within(system: str, name: str, text: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise ConfigError(f"system {system!r}: {name}={text}: must be a number from 0 to {most:g}")
    return value


def _with_coordinator(name: str, text: str, engine: Engine) -> System:
    dispatch, raw = _split(name, text)
    if dispatch not in DISPATCH:
        raise ConfigError(
            f"system {name!r}: dispatch {dispatch!r}: must be one of {', '.join(DISPATCH)}"
        )
    default = Binding.EARLY if dispatch in _EARLY else Binding.LATE
    binding = raw.pop("binding", default)
    if binding not in list(Binding):
        raise ConfigError(f"system {name!r}: binding={binding}: must be early or late")
    link = raw.pop("link", "off" if dispatch in _UNLINKED else "on")
    if link not in ("on", "off"):
        raise ConfigError(f"system {name!r}: link={link}: must be on or off")
    if engine.needs_link and link == "off":
        raise ConfigError(f"system {name!r}: {engine.needs_link}: needs link=on")
    settings = _numbers(name, raw)
    working_set = settings.pop("working_set", None)
    try:
        if working_set is not None:
            check_working_set(working_set)
        DISPATCH.create(dispatch, **settings)
    except ConfigError as error:
        raise ConfigError(f"system {name!r}: {error}") from error
    return System(
        name,
        engine,
        Place.COORDINATOR,
        dispatch,
        settings,
        Binding(binding),
        link == "on",
        working_set,
    )


def check_working_set(value: float) -> None:
    """Raise ConfigError unless it is a coordinator's setting of that name."""
    if not 0 <= value <= 1_000:
        raise ConfigError(f"working_set={value}: must be 0 to 1000")


def _numbers(system: str, raw: Mapping[str, str]) -> dict[str, float]:
    numbers = {}
    for key, value in raw.items():
        try:
            numbers[key] = float(value)
        except ValueError as error:
            raise ConfigError(f"system {system!r}: {key}={value!r}: must be a number") from error
    return numbers


def _split(system: str, text: str) -> tuple[str, dict[str, str]]:
    """`name[k=v;k=v]` as name and settings."""
    match = re.fullmatch(r"([A-Za-z0-9_.-]+)(?:\[([^\[\]]*)\])?", text)
    if match is None:
        raise ConfigError(f"system {system!r}: {text!r}: must be a name with optional [k=v;...]")
    settings: dict[str, str] = {}
    for part in filter(None, (match.group(2) or "").split(";")):
        key, equals, value = part.partition("=")
        if not equals or not key or not value:
            raise ConfigError(f"system {system!r}: {part!r}: must be key=value")
        settings[key.strip()] = value.strip()
    return match.group(1), settings
