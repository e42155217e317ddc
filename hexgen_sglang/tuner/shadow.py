"""The tuner beside a coordinator: `python -m hexgen_sglang.tuner.shadow`, started by it.

Reads workflows from standard input, replays the newest ones in the simulator every so often,
and writes what it finds to standard output. A thread reads, so that the window and the watch
over a change go on during a search. Ends with its input. Applies nothing itself. All seconds are
the coordinator's: beside workers that emulate at a time scale, profiles are made that much faster.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from hexgen_sglang.bench.systems import System, parse_system
from hexgen_sglang.coordinator.tuning_messages import (
    ORDERING_PREFIX,
    Crew,
    CrewMember,
    Said,
    Start,
    line,
    to_tuner,
)
from hexgen_sglang.core.accelerator import AcceleratorProfile, at_time_scale
from hexgen_sglang.core.accelerator_toml import profile_from_toml
from hexgen_sglang.core.errors import ConfigError, HexgenError
from hexgen_sglang.protocol.observed import ObservedWorkflow
from hexgen_sglang.tuner.decide import Decider, DecideSettings, Decision, Kind
from hexgen_sglang.tuner.objective import parse_objective
from hexgen_sglang.tuner.runs import Runs
from hexgen_sglang.tuner.search import Race, race
from hexgen_sglang.tuner.space import (
    Settings,
    candidates,
    default_settings,
    known_settings,
    search_space,
    with_settings,
)
from hexgen_sglang.tuner.trials import SettingTrial
from hexgen_sglang.tuner.window import Observed, RecentWorkflows

log = logging.getLogger(__name__)

_LOWEST_PRIORITY = 19
# A proposal and the seeds of the next search must not meet: each search has seeds of its own.
_SEEDS_APART = 1_000


class Shadow:
    """Window, search and decisions of one coordinator. Safe to feed from another thread.

    Args:
        start: what is tuned.

    Raises:
        ConfigError: the system has nothing to search, or a profile cannot be read.
    """

    def __init__(self, start: Start) -> None:
        tuning = start.tuning
        self._tuning = tuning
        self._objective = parse_objective(tuning.objective)
        self._system = _system(start)
        ours = _searchable(start, self._system)
        space = search_space(self._system, [])
        self._space = {name: space[name] for name in space if name in ours}
        if not self._space:
            raise ConfigError(f"system {self._system.name!r} has nothing to search here")
        self._profiles = {name: _profile(path) for name, path in tuning.profiles.items()}
        self._window = RecentWorkflows(tuning.window_workflows, max_age_s=tuning.window_s)
        self._decider = Decider(
            default_settings(self._system, self._space),
            self._objective,
            DecideSettings(
                min_gain=tuning.min_gain,
                cool_down_s=tuning.cool_down_s,
                watch_workflows=tuning.watch_workflows,
            ),
        )
        self._crew: tuple[CrewMember, ...] = ()
        self._num_searches = 0
        self._lock = threading.Lock()

    @property
    def searched(self) -> tuple[str, ...]:
        """Names of the settings that are searched."""
        return tuple(self._space)

    def take(self, message: Crew | ObservedWorkflow) -> Said | None:
        """Take in news; a change to take back when live attainment fell."""
        with self._lock:
            if isinstance(message, Crew):
                self._crew = message.members
                return None
            self._window.add(message)
            if message.met is None:
                return None
            decision = self._decider.ended(message.arrival_s, message.met, message.end_s)
        return _said(decision) if decision.kind is Kind.RETURN else None

    def search(self, now_s: Callable[[], float] = time.monotonic) -> Said | None:
        """Replay the window under other settings; None while there is too little traffic.

        A search that cannot be made (no worker, no profile, no deadlines for an objective
        that needs them) is said as "failed", with the reason.
        """
        with self._lock:
            current = dict(self._decider.current)
            crew = self._crew
            if len(self._window) < self._tuning.min_workflows:
                return None
            window = self._window
            try:
                observed = window.observed()
            except ConfigError as error:
                return Said("failed", current, str(error)[:1_024])
        began_s = now_s()
        try:
            outcome = self._race(observed, crew_profiles(crew, self._profiles), current)
        except HexgenError as error:
            return Said("failed", current, str(error)[:1_024])
        with self._lock:
            if self._decider.current != current:
                return Said("keep", self._decider.current, "the settings changed meanwhile")
            return self._judge(outcome, now_s(), now_s() - began_s)

    def _race(
        self,
        observed: Observed,
        profiles: tuple[AcceleratorProfile, ...],
        current: dict[str, float],
    ) -> Race:
        tuning = self._tuning
        points = candidates(self._space, current, tuning.candidates)
        first = _SEEDS_APART * self._num_searches
        self._num_searches += 1
        trial = SettingTrial(
            self._system,
            observed.trace,
            observed.settings(tuning.workflows),
            profiles,
            tuning.objective,
            observed.budgets_s,
        )
        with Runs(trial, tuning.processes) as runs:
            return race(points, range(first, first + tuning.seeds), runs, self._objective)

    def _judge(self, outcome: Race, now_s: float, wall_s: float) -> Said:
        best = outcome.best
        if self._tuning.mode == "auto":
            decision = self._decider.propose(best.settings, best.gain, now_s)
        else:
            objection = self._decider.objection(best.settings, best.gain, now_s)
            decision = Decision(Kind.KEEP, best.settings, objection)
        said = _said(decision)
        if self._tuning.mode != "auto" and not decision.reason:
            said = msgspec.structs.replace(said, kind="advice", reason="would be better")
        gain = best.gain
        return msgspec.structs.replace(
            said,
            gain=_finite(gain.value),
            low=_finite(gain.low),
            high=_finite(gain.high),
            num_runs=outcome.num_runs,
            wall_s=wall_s,
        )


def crew_profiles(
    crew: Sequence[CrewMember], profiles: Mapping[str, AcceleratorProfile]
) -> tuple[AcceleratorProfile, ...]:
    """The profile of every worker, in the coordinator's seconds.

    Args:
        crew: the workers.
        profiles: by hardware name, in the seconds of the accelerators themselves.

    Raises:
        ConfigError: there is no worker, one's hardware has no profile, or it has not told whether
            it emulates.
    """
    if not crew:
        raise ConfigError("no worker takes requests")
    found = []
    for member in crew:
        hardware, time_scale = member.hardware, member.time_scale
        if hardware not in profiles:
            known = ", ".join(sorted(profiles))
            raise ConfigError(f"hardware {hardware!r} has no profile; there are: {known}")
        if time_scale is None:
            raise ConfigError(
                f"a worker of hardware {hardware!r} has not told whether, and how fast, it "
                "emulates (GET /server_info)"
            )
        found.append(at_time_scale(profiles[hardware], time_scale))
    return tuple(found)


def _system(start: Start) -> System:
    """The coordinator with its engines, under the settings in force."""
    stated = parse_system(
        f"coordinator:{start.dispatch}[binding={start.binding}]+{start.tuning.engine}"
    )
    ours = start.settings
    if not start.engines_told:
        ours = {name: ours[name] for name in ours if not name.startswith(ORDERING_PREFIX)}
    return with_settings(stated, ours)


def _searchable(start: Start, system: System) -> frozenset[str]:
    """Names of what the coordinator can change.

    Ordering settings are among them only where central queue and engines start alike, since
    they are simulated, and changed, as one.
    """
    ours = {name: start.settings[name] for name in start.settings if _is_ordering(name)}
    theirs = {name: value for name, value in known_settings(system).items() if _is_ordering(name)}
    if not ours or (start.ordering == system.engine.ordering and _are_alike(ours, theirs)):
        return frozenset(start.settings)
    log.warning(
        "ordering settings are not searched: the central queue is ordered by %s %s, and the "
        "engines, as tuning.engine states it, by %s %s",
        *(start.ordering, ours, system.engine.ordering or system.engine.policy, theirs),
    )
    return frozenset(start.settings.keys() - ours.keys())


def _are_alike(ours: Settings, theirs: Settings) -> bool:
    """Whether the values are one, but for the digits that a system's name leaves out."""
    return ours.keys() == theirs.keys() and all(
        math.isclose(ours[name], theirs[name], rel_tol=1e-9) for name in ours
    )


def _is_ordering(name: str) -> bool:
    return name.startswith(ORDERING_PREFIX)


def _said(decision: Decision) -> Said:
    return Said(decision.kind.value, decision.settings, decision.reason)


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def _profile(path: str) -> AcceleratorProfile:
    try:
        return profile_from_toml(Path(path).read_text("utf-8"), path)
    except OSError as error:
        raise ConfigError(f"tuning.profiles: {path}: {error.strerror}") from error


def serve(lines: Iterable[bytes], write: Callable[[bytes], None]) -> None:
    """Follow a coordinator until its lines end.

    Raises:
        ConfigError: the start cannot be used.
        msgspec.DecodeError: a line is no message.
    """
    incoming = iter(lines)
    start = to_tuner(next(incoming))
    if not isinstance(start, Start):
        raise ConfigError(f"the first message is {type(start).__name__}: must be Start")
    shadow = Shadow(start)
    over = threading.Event()
    failed: list[BaseException] = []

    def read() -> None:
        try:
            for raw in incoming:
                message = to_tuner(raw)
                if isinstance(message, Start):
                    raise ConfigError("a second Start")
                said = shadow.take(message)
                if said is not None:
                    write(line(said))
        except Exception as error:  # noqa: BLE001  (raised again by the main thread)
            failed.append(error)
        finally:
            over.set()

    reader = threading.Thread(target=read, name="reader", daemon=True)
    reader.start()
    while not over.wait(start.tuning.every_s):
        said = shadow.search()
        if said is not None:
            write(line(said))
    reader.join()
    if failed:
        raise failed[0]


def _stand_back() -> None:
    """Take only time that no other process wants; a search's processes inherit it."""
    os.nice(_LOWEST_PRIORITY)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def main() -> None:
    """The process: lowest priority, standard input and output, until SIGTERM or its input ends."""
    _stand_back()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # At once: the interpreter's own end would wait for the thread that reads. A search's processes
    # watch this one and leave with it.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    lock = threading.Lock()

    def write(raw: bytes) -> None:
        with lock:
            sys.stdout.buffer.write(raw)
            sys.stdout.buffer.flush()

    try:
        serve(sys.stdin.buffer, write)
    except (HexgenError, msgspec.DecodeError) as error:
        log.error("%s", error)
        raise SystemExit(2) from error
    except BrokenPipeError:
        raise SystemExit(0) from None


if __name__ == "__main__":
    main()
