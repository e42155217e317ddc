"""The oldest request under lasting overload, with hopeless workflows standing back: does it end?

Simulates hours of Poisson arrivals above capacity and writes, for each ageing (0: demotion off),
the longest wait of a request for its first token, the longest stay of a workflow, beside the wait
that a queue in order of arrival would have had in the end: (load - 1) / load of the time.

    .venv/bin/python launch/bench/starvation.py --trace TRACE.json --ageing 0 2 --json FILE.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from hexgen_sglang.bench.plan import cluster_profiles
from hexgen_sglang.bench.systems import parse_system
from hexgen_sglang.cluster.config import load_cluster
from hexgen_sglang.core.errors import HexgenError
from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.sim.run import SimSettings, simulate
from hexgen_sglang.workload.capacity import capacity_per_s
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import WorkloadSettings, build_workload


def waits(facts: RunFacts) -> dict[str, Any]:
    """What the worst-off request and workflow had to wait."""
    run = facts.run
    first = [request.ttft_s for request in run.requests if request.ttft_s is not None]
    stays = sorted(workflow.e2e_s for workflow in run.workflows)
    met = [
        workflow.e2e_s <= workflow.budget_s
        for workflow in run.workflows
        if workflow.budget_s is not None
    ]
    return {
        "workflows": len(run.workflows),
        "ended": sum(workflow.completed for workflow in run.workflows),
        "longest_request_wait_s": max(first),
        "longest_workflow_s": stays[-1],
        "p50_workflow_s": stays[len(stays) // 2],
        "p99_workflow_s": stays[round(0.99 * (len(stays) - 1))],
        "attainment": sum(met) / len(met) if met else None,
        "after_last_arrival_s": run.span_s - run.workflows[-1].arrival_s,
        "valid": not facts.broken,
    }


def main() -> int:
    """Simulate, once for each ageing, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--cluster", type=Path, default=Path("launch/configs/clusters/hetero-1.toml")
    )
    parser.add_argument("--trace", required=True)
    parser.add_argument("--system", default="hexgen")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--load", default="110%")
    parser.add_argument("--ageing", type=float, nargs="+", default=[2.0])
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    try:
        cluster = load_cluster(args.cluster)
        profiles = cluster_profiles(cluster, None)
        trace = load_trace(args.trace)
        load = float(args.load.removesuffix("%")) / 100
        rate = load * capacity_per_s(trace, profiles)
        number = round(args.hours * 3_600 * rate)
        workload = build_workload(trace, WorkloadSettings(rate, number), profiles)
        rows = []
        for ageing in args.ageing:
            coordinator = msgspec.structs.replace(cluster.coordinator, demotion_ageing=ageing)
            began_s = time.perf_counter()
            settings = SimSettings(coordinator=coordinator)
            row = waits(simulate(parse_system(args.system), workload, profiles, settings))
            rows.append({"ageing": ageing, **row, "wall_s": time.perf_counter() - began_s})
            print(json.dumps(rows[-1]), flush=True)
    except HexgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = {
        "cluster": args.cluster.stem,
        "trace": Path(args.trace).stem,
        "system": args.system,
        "hours": args.hours,
        "load": args.load,
        "wait_in_order_of_arrival_s": max(0.0, (load - 1) / load * args.hours * 3_600),
        "rows": rows,
    }
    args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
