"""What refusing workflows for their deadlines keeps for those that are admitted, in the simulator.

    .venv/bin/python launch/bench/admission.py --trace ../shared/traces/trace1.json --json FILE

One cluster, one system; loads as shares of the capacity bound. For each load and each stated
attainment (0: nothing is refused): the share of workflows that were refused, the attainment of
those admitted and of those sent, and how many ended in time, in those that did without refusals.
Warm-up is left out. A refused workflow is given up by its driver.
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

from hexgen_sglang.bench.systems import parse_system
from hexgen_sglang.core.errors import HexgenError
from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.sim.run import simulate
from hexgen_sglang.sim.testbed import Testbed

CLUSTER = Path(__file__).parents[1] / "configs" / "clusters" / "hetero-1.toml"
_REFUSED = "requests never ended"


def run_row(facts: RunFacts) -> dict[str, float]:
    """Counts of one run, warm-up apart.

    Raises:
        HexgenError: another law was broken than that refused requests do not end.
    """
    broken = [sentence for sentence in facts.broken if _REFUSED not in sentence]
    if broken:
        raise HexgenError("; ".join(broken))
    begun = {request.workflow for request in facts.run.requests}
    rows = [record for record in facts.run.workflows if not record.warmup]
    met = [
        row.completed and row.budget_s is not None and row.end_s <= row.arrival_s + row.budget_s
        for row in rows
    ]
    num_begun = sum(row.index in begun for row in rows)
    return {
        "sent": len(rows),
        "refused_frac": 1 - num_begun / len(rows),
        "admitted_attainment": sum(met) / max(1, num_begun),
        "sent_attainment": sum(met) / len(rows),
    }


def cell(bed: Testbed, args: argparse.Namespace, load: float, attainment: float) -> dict[str, Any]:
    """Means over the seeds of one load and stated attainment."""
    coordinator = msgspec.structs.replace(bed.coordinator, admission_attainment=attainment or None)
    settings = replace(bed.settings(), coordinator=coordinator)
    rows = []
    for seed in args.seeds:
        workload = bed.workload(
            f"{load:%}", args.workflows, seed, deadline_scale=args.deadline_scale
        )
        facts = simulate(parse_system(args.system), workload, bed.profiles, settings)
        rows.append(run_row(facts))
    means = {name: statistics.mean(row[name] for row in rows) for name in rows[0]}
    return {"load": load, "stated": attainment, **means, "runs": rows}


def main() -> int:
    """Run every cell and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--cluster", type=Path, default=CLUSTER)
    parser.add_argument("--system", default="hexgen")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.7, 0.9, 1.1, 1.5])
    parser.add_argument("--attainments", type=float, nargs="+", default=[0.0, 0.9, 0.95])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workflows", type=int, default=300)
    parser.add_argument("--deadline-scale", type=float, default=4.0)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    bed = Testbed.of(args.cluster, str(args.trace))
    cells = []
    print("load stated refused admitted  sent")
    for load in args.loads:
        for attainment in args.attainments:
            row = cell(bed, args, load, attainment)
            cells.append(row)
            shown = (row["refused_frac"], row["admitted_attainment"], row["sent_attainment"])
            print(f"{load:4.2f} {attainment:6.2f}", *(f"{x:7.3f}" for x in shown), flush=True)
    if args.json is not None:
        plain = {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items()}
        args.json.write_text(json.dumps({"arguments": plain, "cells": cells}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except HexgenError as error:
        print(f"admission: {error}", file=sys.stderr)
        raise SystemExit(2) from error
