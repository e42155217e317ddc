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
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from hexgen_sglang.core.accelerator import AcceleratorProfile, Sourced
from hexgen_sglang.core.errors import ConfigError, HexgenError
from hexgen_sglang.sim.testbed import Testbed


def sharing(profiles: Sequence[AcceleratorProfile], frac: float) -> tuple[AcceleratorProfile, ...]:
    """The profiles, with that share of a read for each repeated token."""
    if not 0 <= frac <= 1:
        raise ConfigError(f"frac={frac}: must be 0 to 1")
    stated = Sourced(frac, "assumed, to see what sharing would be worth")
    return tuple(
        msgspec.structs.replace(
            profile, decode=msgspec.structs.replace(profile.decode, repeated_read_frac=stated)
        )
        for profile in profiles
    )


def measure(
    cluster: Path, trace: str, load: str, seed: int, workflows: int, fracs: Sequence[float]
) -> dict[str, Any]:
    """One cell: seconds of the workflows after the warm-up, without sharing and for each share."""
    bed = Testbed.of(cluster, trace)
    workload = bed.workload(load, workflows, seed)
    shared = {f"{frac:g}": replace(bed, profiles=sharing(bed.profiles, frac)) for frac in fracs}
    found: dict[str, Any] = {"trace": Path(trace).stem, "load": load, "seed": seed}
    for way, reading in ({"read again": bed} | shared).items():
        facts = reading.run("hexgen", workload)
        took = sorted(one.end_s - one.arrival_s for one in facts.run.workflows if not one.warmup)
        found[way] = {
            "mean_s": round(sum(took) / len(took), 2),
            "p95_s": round(took[math.ceil(0.95 * len(took)) - 1], 2),
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
