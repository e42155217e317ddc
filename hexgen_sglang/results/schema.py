"""The schema of the bench's `--json` file; the simulator writes the same.

Top-level figures are those of the first load; `loads` has an entry for each load, the first
included. How records become figures is `figures`.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from hexgen_sglang.results.records import RunRecord


class Ratio(Struct, frozen=True):
    """Baseline's figure / this system's, with the bounds of its 95 % interval; None: infinite."""

    value: float | None
    low: float | None
    high: float | None


class RunFacts(Struct, frozen=True):
    """One run: its records, and what was measured around it.

    Attributes:
        run: what the driver saw.
        broken: laws that did not hold, as sentences.
        emulation: by worker, see `engines.emulation_between`; {} for real workers.
        prefixes: prompt tokens of kept and of prewarmed prefixes, by what became of them; {} where
            a system has neither.
        dispatch_waits_s: of each request at the coordinator, before it went to a worker;
            () without a coordinator.
        wall_s: real seconds, from flush to last reading.
        machine_busy_frac: share of all cores in use meanwhile; None where unknown.
    """

    run: RunRecord
    broken: tuple[str, ...] = ()
    emulation: dict[str, dict[str, float]] = {}
    prefixes: dict[str, float] = {}
    dispatch_waits_s: tuple[float, ...] = ()
    wall_s: float = 0.0
    machine_busy_frac: float | None = None


class HostCosts(Struct, frozen=True):
    """What the host added to a run: means in emulated seconds (real ones times the time scale).

    Attributes:
        time_scale: emulated seconds in a real one.
        send_s: of the driver, between two siblings that it sends together.
        to_engine_s: of a request on its way to the worker's scheduler (HTTP, tokens, dispatcher),
            without its wait in a coordinator's queue; 0 where workers do not tell.
        back_s: of an answer on its way back.
        step_s: by worker: standstill of the accelerator before a step although there was work.
    """

    time_scale: float
    send_s: float
    to_engine_s: float
    back_s: float
    step_s: dict[str, float]


class SystemFigures(Struct, frozen=True):
    """All figures of one system at one load; seconds are emulated ones, None: not defined.

    `mean_s` to `p99_s`: workflow latency. `attainment`: by deadline scale. `scale_at_95`,
    `scale_at_99`: smallest scale with that attainment. `deadline_attainment`: of the
    deadlines that were sent. `ttft`, `queue`: mean and P95 over requests, queue as the engine
    tells. `dispatch_wait_mean_s`: at our coordinator, before that. `utilisation`: emulated
    step time / length of the run for emulated workers, else the share of it with a request
    in flight. `ratios`: against the baseline, above 1 is better; keys "mean", "p50", "p95",
    "p99" and, where both have one, "goodput". `host`: what the host added; None where nothing is
    emulated.
    """

    mean_s: float | None
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    attainment: dict[str, float]
    scale_at_95: float | None
    scale_at_99: float | None
    deadline_attainment: float | None
    prefix_hit_frac: float | None
    num_workflows: int
    num_requests: int
    ttft_mean_s: float | None
    ttft_p95_s: float | None
    queue_mean_s: float | None
    queue_p95_s: float | None
    dispatch_wait_mean_s: float | None
    tokens_per_s: dict[str, float]
    utilisation: dict[str, float]
    usd_per_1000_workflows: float | None
    retractions: int
    overhead_frac: float | None
    driver_lag_frac: float
    ratios: dict[str, Ratio]
    goodput_at_95_per_s: float | None = None
    goodput_is_bound: bool = True
    host: HostCosts | None = None
    prefixes: dict[str, float] = {}


class LoadResult(Struct, frozen=True):
    """Every system at one load.

    Attributes:
        rate: arrivals per second.
        label: as the user wrote the rate, e.g. "60%".
        valid, invalid_because: whether every law held, and which did not.
        overhead_frac: SGLang's CPU time that the emulated steps did not hide / their time.
        systems: by name.
    """

    rate: float
    label: str
    valid: bool
    invalid_because: tuple[str, ...]
    overhead_frac: float | None
    systems: dict[str, SystemFigures]


class BenchResult(Struct, frozen=True):
    """The whole `--json` file.

    Attributes:
        valid, invalid_because: whether every law held in every run, and which did not.
        cluster, trace: names.
        rate, overhead_frac, systems: of the first load.
        seeds: of the runs.
        baseline: the system that ratios compare with.
        capacity_per_s: the bound that loads in per cent refer to; see `workload/capacity.py`.
        time_scale: emulated seconds in a real one.
        loads: every load.
        settings: of the workload.
        versions: of packages that decide the outcome.
        profiles: by accelerator name: device, model, price, and how it was fitted.
        machine: what it ran on.
        command: that was given.
        wall_s: real seconds, all runs and starts.
    """

    valid: bool
    cluster: str
    trace: str
    rate: float
    seeds: tuple[int, ...]
    overhead_frac: float | None
    systems: dict[str, SystemFigures]
    invalid_because: tuple[str, ...]
    baseline: str
    capacity_per_s: float
    time_scale: float
    loads: tuple[LoadResult, ...]
    settings: dict[str, Any]
    versions: dict[str, str]
    profiles: dict[str, Any]
    machine: dict[str, Any]
    command: tuple[str, ...]
    wall_s: float
