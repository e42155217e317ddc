"""Simulate one system on one workload: the same facts as a run of the bench.

Pure and deterministic: equal arguments give equal records, on any machine.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hexgen_sglang.bench.dispatchers import coordinator_config
from hexgen_sglang.bench.systems import Place, System
from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.results import laws
from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.sim.beside import Beside, Nobody
from hexgen_sglang.sim.clock import ARRIVAL, MESSAGE, Action, EventQueue
from hexgen_sglang.sim.coordinator_front import CoordinatorFront
from hexgen_sglang.sim.engine import Engine
from hexgen_sglang.sim.engine_request import EngineRequest
from hexgen_sglang.sim.fronts import Front, InTurn, Router
from hexgen_sglang.sim.host import HostTimes
from hexgen_sglang.sim.queue_order import queue_order
from hexgen_sglang.sim.replay import Replay
from hexgen_sglang.workload.plan import Workload


@dataclass(frozen=True, slots=True)
class SimSettings:
    """What a simulation adds to workers, workload and system.

    Attributes:
        host: what the host adds to the accelerators' time.
        step_by_step: take every decode step by itself: slow, and the truth that the skipping
            has to meet.
        worker_names: in the order of the profiles; (): the profiles' names, with a number
            behind those that occur twice, as cluster files name them.
        coordinator: settings of a coordinator; policies and limits are the system's.
        beside: runs beside a coordinator; one run may use it.
        make_engine: makes each worker, from the arguments of `Engine`; for measurements.
    """

    host: HostTimes = field(default_factory=HostTimes)
    step_by_step: bool = False
    worker_names: tuple[str, ...] = ()
    coordinator: CoordinatorConfig = field(default_factory=CoordinatorConfig)
    beside: Beside = field(default_factory=Nobody)
    make_engine: Callable[..., Engine] = Engine


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
        host = settings.host
        # A front of its own stands half way between driver and engines.
        share = 0.0 if system.place is Place.DRIVER else 0.5
        self._to_engine_s = (1 - share) * host.to_engine_s
        self._to_front_s = (1 - share) * host.back_s if share else 0.0
        self._replay = Replay(system.name, workload, self._events, host, share * host.to_engine_s)
        ordering = system.engine.ordering
        order_settings = dict(system.engine.ordering_settings)
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
                    patience=system.engine.patience if system.linked else 0.0,
                ),
                self._events,
                on_first_token=self._first_token,
                on_end=self._ended,
                on_change=self._changed,
                retained_share=system.engine.retained_share if system.linked else 0.0,
                prewarm_share=system.engine.prewarm_share if system.linked else 0.0,
                overhead_s=host.step_s.get(name, 0.0),
                times_steps=system.place is Place.COORDINATOR and system.linked,
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
                engine.name: _summary(engine, self._settings.host.step_s.get(engine.name, 0.0))
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
            self._settings.host.delays,
            linked=system.linked,
            beside=self._settings.beside,
        )

    def _send(self, engine: Engine, request: EngineRequest) -> None:
        """A request travels to an engine."""
        self._by_request[request.view.request_id] = engine
        if self._to_engine_s:
            arrival_s = self._events.now_s + self._to_engine_s
            self._events.at(arrival_s, ARRIVAL, lambda: engine.submit(request))
        else:
            engine.submit(request)

    def _first_token(self, request: EngineRequest, now_s: float) -> None:
        engine = self._by_request[request.view.request_id]
        self._replay.first_token(engine, request)
        request_id = request.view.request_id
        self._tell_front(lambda: self._front.first_token(request_id))

    def _ended(self, request: EngineRequest, now_s: float) -> None:
        engine = self._by_request.pop(request.view.request_id)
        self._tell_front(lambda: self._front.ended(engine, request))
        self._replay.ended(engine, request)

    def _tell_front(self, action: Action) -> None:
        """A part of an answer passes the front, on its way to the driver."""
        if self._to_front_s:
            self._events.at(self._events.now_s + self._to_front_s, MESSAGE, action)
        else:
            action()

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
