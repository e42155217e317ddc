"""Requests without tags beside workflows with deadlines: what either gets, in the simulator.

    .venv/bin/python launch/bench/mixed_traffic.py --trace ../shared/traces/trace1.json --json FILE

Every second workflow is sent by a client that does not say which requests belong together, nor a
deadline. For each load, and for each kind's requests and whole workflows: P95 and mean seconds
under `hexgen`, and those under `least_load` + lpm over them, of all measured ones of all seeds
together. The least and the largest ratio of P95 of a single seed stand beside them.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import replace
from typing import Any
from unittest import mock

from hexgen_sglang.sim.coordinator_front import CoordinatorFront
from hexgen_sglang.sim.fronts import Asked
from hexgen_sglang.sim.testbed import Latency, Testbed, measure_loads, options
from hexgen_sglang.workload.plan import Workload

OURS, LEAST_LOAD = "hexgen", "coordinator:least_load+lpm"


def is_silent(workflow: int) -> bool:
    """Whether the workflow with this index sends no tags."""
    return workflow % 2 == 1


def without_tag(asked: Asked) -> Asked:
    """The same request of a client that sends no tag."""
    return replace(
        asked,
        workflow_id=asked.request_id,
        workflow_type="",
        stage="",
        siblings=1,
        sibling_index=0,
        final=True,
        budget_s=None,
    )


def seconds_of(bed: Testbed, system: str, workload: Workload) -> dict[str, list[float]]:
    """Of each measured request and workflow of one run, by kind."""
    silent = {one.workflow_id for one in workload.workflows if is_silent(one.index)}
    take = CoordinatorFront.take

    def taken(front: CoordinatorFront, asked: Asked) -> None:
        take(front, without_tag(asked) if asked.workflow_id in silent else asked)

    with mock.patch.object(CoordinatorFront, "take", taken):
        run = bed.run(system, workload).run
    found: dict[str, list[float]] = defaultdict(list)
    kinds = {one.index: "untagged" if is_silent(one.index) else "tagged" for one in run.workflows}
    for workflow in run.measured():
        found[f"{kinds[workflow.index]} workflows"].append(workflow.e2e_s)
    for request in run.measured_requests():
        found[f"{kinds[request.workflow]} requests"].append(request.end_s - request.sent_s)
    return found


def rows_of(bed: Testbed, load: str, workflows: int, seeds: int) -> list[dict[str, Any]]:
    """One row for each kind."""
    runs = []
    for seed in range(seeds):
        workload = bed.workload(load, workflows, seed)
        runs.append([seconds_of(bed, system, workload) for system in (OURS, LEAST_LOAD)])
    rows = []
    for kind in sorted(runs[0][0]):
        ours, other = (Latency.of([s for run in runs for s in run[at][kind]]) for at in (0, 1))
        single = [Latency.of(run[1][kind]).over(Latency.of(run[0][kind])) for run in runs]
        p95 = [ratios["p95_ratio"] for ratios in single]
        rows.append(
            {
                "load": load,
                "kind": kind,
                "p95_s": ours.p95_s,
                "mean_s": ours.mean_s,
                **other.over(ours, "least_load_"),
                "least_load_p95_ratio_of_a_seed": [min(p95), max(p95)],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> int:
    """Run every load, print a line for each kind, and write all."""
    args = options(__doc__, loads=["80%"], workflows=300).parse_args()

    def rows_at(bed: Testbed, load: str) -> list[dict[str, Any]]:
        return rows_of(bed, load, args.workflows, args.seeds)

    return measure_loads(args, "rows", rows_at)


if __name__ == "__main__":
    sys.exit(main())
