"""What it is worth to let a prefill wait for decodes that it would stall, in the simulator.

    .venv/bin/python launch/bench/prefill_waits.py --trace ../shared/traces/trace1.json --json FILE

The rule is that of `hexgen_sglang/policies/patience.py`, which `--hexgen-prefill-patience` turns on
in an engine: here with waits of at most 1, 4 and 16 prefills. For each load: `hexgen` without that
and with it, when all deadlines are 4 x the unloaded latency, and when those of every second
workflow are 2.5 x ("tight") and of the others 8 x. Means over the seeds.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import replace
from typing import Any

from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.sim.testbed import Latency, Testbed, measure_loads, options
from hexgen_sglang.workload.plan import Workload

TIGHT, RELAXED = 2.5, 8.0
PATIENCES = (0, 1, 4, 16)


def two_scales(workload: Workload) -> Workload:
    """The same workflows, with tight deadlines and relaxed ones in turn."""
    workflows = [
        replace(one, budget_s=one.unloaded_s * (TIGHT if one.index % 2 else RELAXED))
        for one in workload.workflows
    ]
    return replace(workload, workflows=tuple(workflows))


def figures(facts: RunFacts) -> dict[str, float]:
    """Of the measured workflows of one run; of two scales the odd ones have the tight one."""
    rows = facts.run.measured()
    met = {row.index: row.budget_s is not None and row.e2e_s <= row.budget_s for row in rows}
    found = Latency.of([row.e2e_s for row in rows])
    return {
        "p95_s": found.p95_s,
        "mean_s": found.mean_s,
        "attainment": statistics.mean(met.values()),
        "attainment_of_odd": statistics.mean(met[index] for index in met if index % 2),
    }


def rows_of(bed: Testbed, load: str, workflows: int, seeds: int) -> list[dict[str, Any]]:
    """One row for each kind of deadlines and each patience."""
    usual = [bed.workload(load, workflows, seed) for seed in range(seeds)]
    deadlines = {"4": usual, f"{TIGHT:g} and {RELAXED:g}": [two_scales(one) for one in usual]}
    rows = []
    for scale, workloads in deadlines.items():
        for patience in PATIENCES:
            system = f"coordinator:marginal_cost+hexgen[patience={patience}]"
            runs = [figures(bed.run(system, one)) for one in workloads]
            means = {name: statistics.mean(run[name] for run in runs) for name in runs[0]}
            row = {"load": load, "deadlines": scale, "patience": patience}
            rows.append({**row, **means, "runs": runs})
            print(json.dumps(row | means), flush=True)
    return rows


def main() -> int:
    """Run every load and write all rows."""
    args = options(__doc__, loads=["80%"], workflows=200).parse_args()

    def rows_at(bed: Testbed, load: str) -> list[dict[str, Any]]:
        return rows_of(bed, load, args.workflows, args.seeds)

    return measure_loads(args, "rows", rows_at)


if __name__ == "__main__":
    sys.exit(main())
