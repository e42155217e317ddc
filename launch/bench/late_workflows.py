"""What makes the latest workflows of a run late, in the simulator.

    .venv/bin/python launch/bench/late_workflows.py --trace TRACE.json --json FILE.json

For each load, over all measured workflows of all seeds: mean seconds of the latest 5 % and of all,
along the last request of each stage: `first_s` until the first token of the first stage, so what
they wait at the door; `prefill_s` until that of the later stages, waiting included; `decode_s` from
there to the stage's end, prefills of others in between included, in which `decode_tokens` were
made. Then by size, in percentiles of the unloaded latency: the mean of latency over
unloaded latency, and the share of the latest 5 % that is of that size.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from hexgen_sglang.results.records import RequestRecord, RunRecord, WorkflowRecord
from hexgen_sglang.sim.testbed import Testbed, measure_loads, options

SIZES = ((0, 50), (50, 80), (80, 95), (95, 100))
LATE = 95


def path_of(requests: Sequence[RequestRecord]) -> list[RequestRecord]:
    """The request of each stage that ended last; of workflows whose stages follow one another."""
    last: dict[int, RequestRecord] = {}
    for request in requests:
        if request.stage not in last or request.end_s > last[request.stage].end_s:
            last[request.stage] = request
    return [last[stage] for stage in sorted(last)]


def seconds_of(workflow: WorkflowRecord, requests: Sequence[RequestRecord]) -> dict[str, float]:
    """Where the time of one workflow went."""
    path = path_of(requests)
    until_first = [(one.first_byte_s or one.end_s) - one.due_s for one in path]
    return {
        "latency_s": workflow.e2e_s,
        "unloaded_s": workflow.unloaded_s,
        "first_s": until_first[0],
        "prefill_s": sum(until_first[1:]),
        "decode_s": sum(one.end_s - (one.first_byte_s or one.end_s) for one in path),
        "decode_tokens": float(sum(one.output_tokens for one in path)),
    }


def rows_of_run(run: RunRecord) -> list[dict[str, float]]:
    """Of each measured workflow."""
    requests: dict[int, list[RequestRecord]] = defaultdict(list)
    for request in run.requests:
        requests[request.workflow].append(request)
    return [seconds_of(one, requests[one.index]) for one in run.measured()]


def summary(rows: Sequence[dict[str, float]]) -> dict[str, Any]:
    """What the docstring says."""
    table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    is_late = table["latency_s"] >= np.percentile(table["latency_s"], LATE)
    size = table["unloaded_s"]
    by_size = []
    for low, high in SIZES:
        least, most = np.percentile(size, [low, high])
        of_size = (size >= least) & ((size < most) | (high == 100))
        by_size.append(
            {
                "percentiles": [low, high],
                "slowdown": float(np.mean((table["latency_s"] / size)[of_size])),
                "share_of_late": float(np.mean(of_size[is_late])),
            }
        )
    return {
        "late": {name: float(np.mean(column[is_late])) for name, column in table.items()},
        "all": {name: float(np.mean(column)) for name, column in table.items()},
        "by_size": by_size,
    }


def main() -> int:
    """Run every load, print what was found, and write all."""
    parser = options(__doc__, loads=["70%", "90%"], workflows=300)
    parser.add_argument("--system", default="hexgen")
    args = parser.parse_args()

    def cell_at(bed: Testbed, load: str) -> list[dict[str, Any]]:
        rows = []
        for seed in range(args.seeds):
            workload = bed.workload(load, args.workflows, seed)
            rows += rows_of_run(bed.run(args.system, workload).run)
        cell = {"load": load, **summary(rows)}
        print(json.dumps(cell), flush=True)
        return [cell]

    return measure_loads(args, "cells", cell_at)


if __name__ == "__main__":
    sys.exit(main())
