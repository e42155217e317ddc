"""What it would be worth to read a prefix once for all requests of a decode batch that share it.

    .venv/bin/python launch/bench/shared_reads.py --trace ../shared/traces/trace1.json --json FILE

In the simulator, under the system `hexgen`: the accelerator profiles of a cluster as they are,
where each request reads its own context in every step, and with an assumed share of a read for
each token that another request of the batch holds as well (`decode.repeated_read_frac`). The share
is an assumption, not a measurement: 0 is a kernel that shares for nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from hexgen_sglang.bench.loads import parse_loads
from hexgen_sglang.bench.plan import cluster_profiles
from hexgen_sglang.bench.systems import parse_system
from hexgen_sglang.cluster.config import load_cluster
from hexgen_sglang.core.accelerator import AcceleratorProfile, Sourced
from hexgen_sglang.core.errors import ConfigError, HexgenError
from hexgen_sglang.sim.run import SimSettings, simulate
from hexgen_sglang.workload.capacity import capacity_per_s
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import WorkloadSettings, build_workload


def sharing(profiles: Sequence[AcceleratorProfile], frac: float) -> list[AcceleratorProfile]:
    """The profiles, with that share of a read for each repeated token."""
    if not 0 <= frac <= 1:
        raise ConfigError(f"frac={frac}: must be 0 to 1")
    stated = Sourced(frac, "assumed, to see what sharing would be worth")
    return [
        msgspec.structs.replace(
            profile, decode=msgspec.structs.replace(profile.decode, repeated_read_frac=stated)
        )
        for profile in profiles
    ]


def measure(
    cluster: Path, trace: str, load: str, seed: int, workflows: int, fracs: Sequence[float]
) -> dict[str, Any]:
    """One cell: seconds of the workflows after the warm-up, without sharing and for each share."""
    config = load_cluster(cluster)
    profiles, loaded = cluster_profiles(config, None), load_trace(trace)
    (asked,) = parse_loads(load, capacity_per_s(loaded, profiles))
    settings = WorkloadSettings(rate_per_s=asked.rate_per_s, num_workflows=workflows, seed=seed)
    workload = build_workload(loaded, settings, profiles)
    names = tuple(name for row in config.workers for name in row.names())
    sim = SimSettings(worker_names=names, coordinator=config.coordinator)
    ways = {"read again": profiles} | {f"{frac:g}": sharing(profiles, frac) for frac in fracs}
    found: dict[str, Any] = {"trace": Path(trace).stem, "load": load, "seed": seed}
    for way, crew in ways.items():
        facts = simulate(parse_system("hexgen"), workload, crew, sim)
        took = sorted(one.end_s - one.arrival_s for one in facts.run.workflows if not one.warmup)
        found[way] = {
            "mean_s": round(sum(took) / len(took), 2),
            "p95_s": round(took[math.ceil(0.95 * len(took)) - 1], 2),
            "broken": list(facts.broken),
        }
    return found


def main() -> None:
    """Measure every cell, print a line for each, and write all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cluster", type=Path, default=Path("launch/configs/clusters/hetero-1.toml")
    )
    parser.add_argument("--trace", required=True, help="as for the bench")
    parser.add_argument("--loads", default="70%,90%", help="shares of the capacity")
    parser.add_argument("--fracs", default="0.5,0.1,0", help="shares of a read, 0 to 1")
    parser.add_argument("--workflows", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    fracs = [float(text) for text in args.fracs.split(",")]
    cells = []
    for load, seed in itertools.product(args.loads.split(","), range(args.seeds)):
        cells.append(measure(args.cluster, args.trace, load, seed, args.workflows, fracs))
        print(json.dumps(cells[-1]), flush=True)
    report = {"command": " ".join(["python", *sys.argv]), "cells": cells}
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except HexgenError as error:
        raise SystemExit(f"shared_reads: {error}") from error
