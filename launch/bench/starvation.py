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
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from hexgen_sglang.core.errors import HexgenError
from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.sim.testbed import Testbed


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
        bed = Testbed.of(args.cluster, args.trace)
        rate = bed.rate_per_s(args.load)
        load = rate / bed.capacity_per_s
        workload = bed.workload(args.load, round(args.hours * 3_600 * rate), seed=0)
        rows = []
        for ageing in args.ageing:
            coordinator = msgspec.structs.replace(bed.coordinator, demotion_ageing=ageing)
            began_s = time.perf_counter()
            settings = replace(bed.settings(), coordinator=coordinator)
            row = waits(bed.run(args.system, workload, settings))
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
