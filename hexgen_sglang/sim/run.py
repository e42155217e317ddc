"""Simulate one system on one workload: the same facts as a run of the bench.

Pure and deterministic: equal arguments give equal records, on any machine.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hexgen_sglang.bench.dispatchers import coordinator_config
from hexgen_sglang.bench.systems import Place, System
from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.policies.ordering import ORDERING
from hexgen_sglang.results import laws
from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.sim.clock import ARRIVAL, EventQueue
from hexgen_sglang.sim.coordinator_front import CoordinatorFront, Delays
from hexgen_sglang.sim.engine import Engine
from hexgen_sglang.sim.engine_request import EngineRequest
from hexgen_sglang.sim.fronts import Front, InTurn, Router
from hexgen_sglang.sim.queue_order import queue_order
from hexgen_sglang.sim.replay import Replay
from hexgen_sglang.workload.plan import Workload


@dataclass(frozen=True, slots=True)
class SimSettings:
    """What a simulation adds to workers, workload and system.

    Attributes:
        hop_s: of a request from whoever sends it to the engine's queue (HTTP, tokens), and of
            the answer back; at least 0.
        send_s: of the driver for each request; siblings leave it one after the other. At
            least 0.
        overhead_s: host time of each step that the accelerator has to wait for, by worker name;
            a worker that is not named has none; at least 0.
        delays: of reports to the coordinator.
        step_by_step: take every decode step by itself: slow, and the truth that the skipping
            has to meet.
        worker_names: in the order of the profiles; (): the profiles' names, with a number
            behind those that occur twice, as cluster files name them.
        coordinator: settings of a coordinator; policies and limits are the system's.
        make_engine: makes each worker, from the arguments of `Engine`; for measurements.
    """

    hop_s: float = 0.0
    send_s: float = 0.0
    overhead_s: Mapping[str, float] = field(default_factory=dict)
    delays: Delays = field(default_factory=Delays)
    step_by_step: bool = False
    worker_names: tuple[str, ...] = ()
    coordinator: CoordinatorConfig = field(default_factory=CoordinatorConfig)
    make_engine: Callable[..., Engine] = Engine

    def __post_init__(self) -> None:
        named = {f"overhead_s[{name}]": value for name, value in self.overhead_s.items()}
        for name, value in {"hop_s": self.hop_s, "send_s": self.send_s, **named}.items():
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name}={value}: must be finite and at least 0")


DEFAULT_SETTINGS = SimSettings()


def simulate(
    system: System,
    workload: Workload,
    profiles: Sequence[AcceleratorProfile],
    settings: SimSettings = DEFAULT_SETTINGS,
) -> RunFacts:
    """Run a workload on simulated workers, one for each profile.

    Every law is checked; `broken` of the result should be empty.

    Raises:
        ConfigError: no profile, another number of names than of profiles, a policy or setting
            that is not known, or a request that fits on no worker.
    """
    if not profiles:
        raise ConfigError("profiles=[]: at least one accelerator profile is needed")
    if settings.worker_names and len(set(settings.worker_names)) != len(profiles):
        raise ConfigError(
            f"worker_names={settings.worker_names}: must be {len(profiles)} different ones"
        )
    began_s = time.perf_counter()
    simulation = _Simulation(system, workload, profiles, settings)
    simulation.run()
    return simulation.facts(time.perf_counter() - began_s)


class _Simulation:
    """The parts of one run, wired together."""

    def __init__(
        self,
        system: System,
        workload: Workload,
        profiles: Sequence[AcceleratorProfile],
        settings: SimSettings,
    ) -> None:
        self._workload = workload
        self._settings = settings
        self._events = EventQueue()
        self._replay = Replay(system.name, workload, self._events, settings.hop_s, settings.send_s)
        ordering = system.engine.ordering
        order_settings = dict(ORDERING.defaults(ordering)) if ordering else {}
        self._by_request: dict[str, Engine] = {}
        names = settings.worker_names or worker_names(profiles)
        self._engines = [
            settings.make_engine(
                name,
                profile,
                queue_order(
                    system.engine.policy,
                    ordering,
                    order_settings,
                    holds_prefixes=system.engine.holds_prefixes,
                ),
                self._events,
                on_first_token=self._first_token,
                on_end=self._ended,
                on_change=self._changed,
                retained_share=system.engine.retained_share if system.linked else 0.0,
                prewarm_share=system.engine.prewarm_share if system.linked else 0.0,
                overhead_s=settings.overhead_s.get(name, 0.0),
                step_by_step=settings.step_by_step,
            )
            for name, profile in zip(names, profiles, strict=True)
        ]
        self._front = self._front_of(system)

    def run(self) -> None:
        """Until the last request has ended."""
        self._replay.start(self._front)
        self._events.run()

    def facts(self, wall_s: float) -> RunFacts:
        """The records, judged by the laws."""
        run = self._replay.record()
        broken = [*laws.broken_laws(self._workload, run), *self._broken_engines()]
        waits = self._front.waits_s if isinstance(self._front, CoordinatorFront) else []
        return RunFacts(
            run=run,
            broken=tuple(broken),
            emulation={
                engine.name: _summary(engine, self._settings.overhead_s.get(engine.name, 0.0))
                for engine in self._engines
            },
            prefixes=_prefixes(self._engines),
            dispatch_waits_s=tuple(waits),
            wall_s=wall_s,
        )

    def _front_of(self, system: System) -> Front:
        if system.place is Place.DRIVER:
            return InTurn(self._engines, self._send)
        if system.place is Place.SGLANG_ROUTER:
            seed = self._workload.settings.seed
            return Router(self._engines, self._send, system.dispatch, seed)
        config = coordinator_config(system, "", self._settings.coordinator, 1.0)
        return CoordinatorFront(
            config,
            self._engines,
            self._send,
            self._events,
            self._settings.delays,
            linked=system.linked,
        )

    def _send(self, engine: Engine, request: EngineRequest) -> None:
        """A request travels to an engine."""
        self._by_request[request.view.request_id] = engine
        if self._settings.hop_s:
            self._events.at(
                self._events.now_s + self._settings.hop_s,
                ARRIVAL,
                lambda: engine.submit(request),
            )
        else:
            engine.submit(request)

    def _first_token(self, request: EngineRequest, now_s: float) -> None:
        engine = self._by_request[request.view.request_id]
        self._replay.first_token(engine, request)
        self._front.first_token(request.view.request_id)

    def _ended(self, request: EngineRequest, now_s: float) -> None:
        engine = self._by_request.pop(request.view.request_id)
        self._front.ended(engine, request)
        self._replay.ended(engine, request)

    def _changed(self, engine: Engine) -> None:
        self._front.load_changed(engine)

    def _broken_engines(self) -> list[str]:
        """Laws of the engines: all memory is free or evictable in the end, no work is left."""
        broken = []
        for engine in self._engines:
            cache = engine.cache
            if not engine.is_idle or engine.running:
                broken.append(f"work conservation: {engine.name} has work left")
            free = engine.num_free + cache.num_evictable
            if free != engine.profile.capacity.kv_tokens.value:
                broken.append(f"conservation: {engine.name} has {free} KV tokens free in the end")
        return broken


def worker_names(profiles: Sequence[AcceleratorProfile]) -> list[str]:
    """A name for each worker: its profile's, numbered where several have it."""
    names = [profile.name for profile in profiles]
    numbered = []
    seen: dict[str, int] = {}
    for name in names:
        count = seen[name] = seen.get(name, -1) + 1
        numbered.append(f"{name}-{count}" if names.count(name) > 1 else name)
    return numbered


def _prefixes(engines: Sequence[Engine]) -> dict[str, float]:
    """What became of kept and prewarmed prefixes, as the bench counts it."""
    sums: Counter[str] = Counter()
    for engine in engines:
        if engine.retention is not None:
            kept = engine.retention.totals
            sums.update(
                retained_kept=kept.kept, retained_used=kept.used, retained_wasted=kept.wasted
            )
        if engine.ahead is not None:
            ahead = engine.ahead.totals
            sums.update(
                prewarmed_computed=ahead.computed,
                prewarmed_saved=ahead.saved,
                prewarmed_wasted=ahead.wasted,
            )
    return {name: float(tokens) for name, tokens in sums.items()}


def _summary(engine: Engine, overhead_s: float) -> dict[str, float]:
    """What the bench reads from an emulated accelerator; steps without their overhead."""
    totals = engine.totals
    waited_s = overhead_s * totals.steps
    busy_s = totals.busy_s - waited_s
    return {
        "busy_s": busy_s,
        "steps": totals.steps,
        "overhead_s": waited_s,
        "overhead_frac": waited_s / busy_s if busy_s > 0 else 0.0,
        "drift_frac": 0.0,
    }
