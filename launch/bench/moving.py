"""What taking waiting requests back from a worker is worth, when one gets slow and when none does.

    .venv/bin/python launch/bench/moving.py --trace ../shared/traces/trace1.json --json FILE

In the simulator: from a third to two thirds of the arrivals, every step of one worker takes
`--slower` times as long. For each load and each `move_overdue` (0: nothing is moved) with and
without that: P95 and mean workflow latency, attainment, and the requests that were moved.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.errors import HexgenError
from hexgen_sglang.sim.clock import MESSAGE
from hexgen_sglang.sim.engine import Engine
from hexgen_sglang.sim.engine_request import EngineRequest
from hexgen_sglang.sim.testbed import Testbed
from hexgen_sglang.workload.plan import Workload

CLUSTER = Path(__file__).parents[1] / "configs" / "clusters" / "hetero-1.toml"


def slower(profile: AcceleratorProfile, times: float) -> AcceleratorProfile:
    """The profile with every step so many times as long."""

    def scaled(part: Any) -> Any:
        names = [name for name in part.__struct_fields__ if name.endswith("_s")]
        changed = {}
        for name in names:
            number = getattr(part, name)
            changed[name] = msgspec.structs.replace(number, value=number.value * times)
        return msgspec.structs.replace(part, **changed)

    return msgspec.structs.replace(
        profile, prefill=scaled(profile.prefill), decode=scaled(profile.decode)
    )


class CountingEngine(Engine):
    """Counts what is taken back from it."""

    num_withdrawn = 0

    def withdraw(self, request: EngineRequest) -> bool:
        """See `Engine`."""
        is_back = super().withdraw(request)
        self.num_withdrawn += is_back
        return is_back


class Slowing:
    """Makes the engines of a run, one of which gets slow for a while."""

    def __init__(self, name: str, times: float, from_s: float, to_s: float) -> None:
        self._name, self._times, self._span = name, times, (from_s, to_s)
        self.engines: list[CountingEngine] = []

    def __call__(self, name: str, profile: AcceleratorProfile, *args: Any, **named: Any) -> Engine:
        """A new engine, with the arguments of `Engine`."""
        engine = CountingEngine(name, profile, *args, **named)
        self.engines.append(engine)
        events = args[1]
        if name == self._name and self._times != 1.0:
            for at_s, then in zip(self._span, (slower(profile, self._times), profile), strict=True):
                events.at(at_s, MESSAGE, lambda then=then: setattr(engine, "profile", then))
        return engine


def run(
    bed: Testbed, system: str, workload: Workload, times: float, overdue: float
) -> dict[str, float]:
    """Latencies, attainment and moves of one run."""
    arrivals = [planned.arrival_s for planned in workload.workflows]
    span = (arrivals[len(arrivals) // 3], arrivals[2 * len(arrivals) // 3])
    slowing = Slowing(bed.worker_names[0], times, *span)
    settings = replace(
        bed.settings(),
        coordinator=msgspec.structs.replace(bed.coordinator, move_overdue=overdue),
        make_engine=slowing,
    )
    facts = bed.run(system, workload, settings)
    rows = [row for row in facts.run.workflows if not row.warmup]
    taken = [row.end_s - row.arrival_s for row in rows]
    met = [row.budget_s is not None and row.end_s <= row.arrival_s + row.budget_s for row in rows]
    return {
        "p95_s": float(np.percentile(taken, 95)),
        "mean_s": statistics.mean(taken),
        "attainment": statistics.mean(met),
        "moved": sum(engine.num_withdrawn for engine in slowing.engines),
    }


def main() -> int:
    """Run every cell and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--cluster", type=Path, default=CLUSTER)
    parser.add_argument("--system", default="hexgen")
    parser.add_argument("--slower", type=float, nargs="+", default=[1.0, 4.0])
    parser.add_argument("--loads", type=float, nargs="+", default=[0.6, 0.8])
    parser.add_argument("--overdue", type=float, nargs="+", default=[0.0, 2.0, 4.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workflows", type=int, default=200)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    bed = Testbed.of(args.cluster, str(args.trace))
    cells = []
    print("load slower overdue     p95    mean attainment   moved")
    for load in args.loads:
        workloads = [bed.workload(f"{load:%}", args.workflows, seed) for seed in args.seeds]
        for times in args.slower:
            for overdue in args.overdue:
                rows = [run(bed, args.system, workload, times, overdue) for workload in workloads]
                means = {name: statistics.mean(row[name] for row in rows) for name in rows[0]}
                cell = {"load": load, "slower": times, "overdue": overdue, **means, "runs": rows}
                cells.append(cell)
                shown = f"{means['p95_s']:7.1f} {means['mean_s']:7.1f} {means['attainment']:10.3f}"
                shown += f" {means['moved']:7.1f}"
                print(f"{load:4.2f} {times:6.1f} {overdue:7.1f} {shown}", flush=True)
    if args.json is not None:
        plain = {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items()}
        args.json.write_text(json.dumps({"arguments": plain, "cells": cells}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except HexgenError as error:
        print(f"moving: {error}", file=sys.stderr)
        raise SystemExit(2) from error
