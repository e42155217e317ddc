"""What each part of the policy is worth, and what wrong beliefs cost it, in the simulator.

`ablation`: `hexgen` without one of its parts, P95 and mean over those of the whole.
`sensitivity`: `hexgen` while something is not as it is believed, over itself in the usual
conditions; and `least_load` + lpm and `paper`, over `hexgen` in the same ones. `untagged`: the same
requests, each by itself without a deadline and with nothing known of its stage, `least_load` + lpm
over `hexgen`. Seconds are of all measured workflows of all seeds together:

    .venv/bin/python launch/bench/policy_sensitivity.py --trace TRACE.json --json FILE.json
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from hexgen_sglang.core.errors import HexgenError
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import StepCosts
from hexgen_sglang.policies.estimators import StepCostFit
from hexgen_sglang.sim import coordinator_front
from hexgen_sglang.sim.engine import Engine
from hexgen_sglang.sim.host import Delays, HostTimes
from hexgen_sglang.sim.run import SimSettings
from hexgen_sglang.sim.testbed import Latency, Testbed
from hexgen_sglang.workload.prefixes import prompts_of
from hexgen_sglang.workload.trace import (
    PrefixPart,
    PrefixScope,
    Trace,
    TraceRequest,
    TraceStage,
    TraceWorkflow,
)

OURS = "hexgen"
LEAST_LOAD = "coordinator:least_load+lpm"
PAPER = "coordinator:paper[alpha=0.2]+hexgen[ordering=urgency;hold=off]"
ABLATIONS = {
    "prefix term": "coordinator:marginal_cost[prefix_trust=0]+hexgen",
    "imposed delay": "coordinator:marginal_cost[imposed_weight=0]+hexgen",
    "join-awareness": (
        "coordinator:marginal_cost[sibling_cost_frac=1;early_sibling_weight=1]+hexgen"
    ),
    "late binding": "coordinator:marginal_cost[binding=early]+hexgen",
    "waiting for a better worker": "coordinator:marginal_cost[may_wait=0]+hexgen",
    "working set": "coordinator:marginal_cost[working_set=0]+hexgen",
    "workflow order": "coordinator:marginal_cost+hexgen[ordering=fcfs]",
    "waiting for a prefix": "coordinator:marginal_cost+hexgen[hold=off]",
}
WRONG_BY = 0.3
SIGMA = 0.5
LATE_S = 0.5
MORE_REVISIONS, OF_WORKFLOWS = 3, 0.2

View = Callable[[RequestView], RequestView]


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is not as usual.

    Attributes:
        bed: the workers, and what the workflows are drawn from.
        settings: of the simulator.
        view: what policies see instead of a request's view.
        deadline_scale: of the workload; None: best effort.
    """

    bed: Testbed
    settings: SimSettings
    view: View = lambda view: view
    deadline_scale: float | None = 4.0


class WrongCosts(StepCostFit):
    """Step costs that are told wrong by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    def costs(self) -> StepCosts | None:
        """As measured, times the factor."""
        right = super().costs()
        if right is None:
            return None
        names = ("prefill_base_s", "prefill_token_s", "prefill_context_s")
        names += ("decode_base_s", "decode_request_s", "decode_context_s")
        return replace(right, **{name: getattr(right, name) * self._factor for name in names})


def with_wrong_costs() -> Callable[..., Engine]:
    """Makes engines that tell of steps 30 % slower than they are and 30 % faster, in turn."""
    made = 0

    def make(*args: Any, **fields: Any) -> Engine:
        nonlocal made
        engine = Engine(*args, **fields)
        made += 1
        engine.costs = WrongCosts(1 + WRONG_BY if made % 2 else 1 - WRONG_BY)
        return engine

    return make


def misjudged(view: RequestView) -> RequestView:
    """The expected length times a log-normal factor of mean 1, of the request's own."""
    if view.expected_output_tokens is None:
        return view
    factor = random.Random(view.request_id).lognormvariate(-(SIGMA**2) / 2, SIGMA)
    return replace(view, expected_output_tokens=max(1, round(factor * view.expected_output_tokens)))


def unlearned(view: RequestView) -> RequestView:
    """Nothing is known of lengths and of what remains."""
    return replace(
        view, expected_output_tokens=None, predicted_remaining_s=0.0, predicted_stage_s=0.0
    )


def revised_more(trace: Trace, seed: int = 0) -> Trace:
    """A fifth of the workflows revise three times as often."""
    draw = random.Random(seed)
    workflows = [
        _more_of(one, "revise") if draw.random() < OF_WORKFLOWS else one for one in trace.workflows
    ]
    return replace(trace, workflows=tuple(workflows))


def _more_of(workflow: TraceWorkflow, name: str) -> TraceWorkflow:
    """Every stage of that name comes three times, one after the other."""
    stages: list[TraceStage] = []
    last_of: list[int] = []  # where the last copy of each old stage is
    for stage in workflow.stages:
        after = tuple(last_of[before] for before in stage.after)
        for copy in range(MORE_REVISIONS if stage.name == name else 1):
            stages.append(replace(stage, after=(len(stages) - 1,) if copy else after))
        last_of.append(len(stages) - 1)
    return replace(workflow, stages=tuple(stages))


def untagged(trace: Trace) -> Trace:
    """Every request is a workflow of one stage of which nothing is known; prefixes stay.

    A prefix that the requests of one workflow share is named after that workflow.
    """
    workflows = []
    for number, workflow in enumerate(trace.workflows):
        prompts = prompts_of(workflow, "0", "0")
        for stage, sibling, request in workflow.requests():
            parts = tuple(
                PrefixPart(
                    PrefixScope.TEMPLATE,
                    segment.key.replace("workflow/0", f"w{number}"),
                    segment.num_tokens,
                )
                for segment in prompts[stage][sibling]
                if not segment.key.startswith("own/")
            )
            alone = TraceRequest(request.num_input_tokens, request.num_output_tokens, parts)
            workflows.append(
                TraceWorkflow(workflow.workflow_id, "untagged", (TraceStage("untagged", (alone,)),))
            )
    return replace(trace, workflows=tuple(workflows))


def latency(system: str, conditions: Conditions, load: str, workflows: int, seeds: int) -> Latency:
    """Of all measured workflows of all seeds."""
    latencies: list[float] = []
    seen = coordinator_front.request_view

    def view(*given: Any) -> RequestView:
        return conditions.view(seen(*given))

    for seed in range(seeds):
        workload = conditions.bed.workload(
            load, workflows, seed, deadline_scale=conditions.deadline_scale
        )
        with mock.patch.object(coordinator_front, "request_view", view):
            facts = conditions.bed.run(system, workload, conditions.settings)
        latencies += [one.e2e_s for one in facts.run.measured()]
    return Latency.of(latencies)


def rows_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each load and each thing tried."""
    bed = Testbed.of(args.cluster, args.trace)
    settings = bed.settings()
    usual = Conditions(bed, settings)
    wrong = {
        "profiles wrong by 30 %": replace(
            usual, settings=replace(settings, make_engine=with_wrong_costs())
        ),
        "lengths misjudged, sigma 0.5": replace(usual, view=misjudged),
        "20 % of workflows revise 3 times as often": replace(
            usual, bed=replace(bed, trace=revised_more(bed.trace))
        ),
        "reports 500 ms late": replace(
            usual, settings=replace(settings, host=HostTimes(delays=Delays(report_s=LATE_S)))
        ),
    }
    requests = untagged(bed.trace)
    per_workflow = len(requests.workflows) / len(bed.trace.workflows)
    capacity = bed.capacity_per_s * per_workflow
    single_bed = replace(bed, trace=requests, capacity_per_s=capacity)
    single = Conditions(single_bed, settings, unlearned, deadline_scale=None)
    rows: list[dict[str, Any]] = []

    def note(kind: str, name: str, load: str, **values: float) -> None:
        rows.append({"kind": kind, "name": name, "load": load, **values})
        print(kind, name, load, {key: round(value, 3) for key, value in values.items()}, flush=True)

    for load in args.loads:

        def run(
            system: str, conditions: Conditions, *, load: str = load, times: float = 1.0
        ) -> Latency:
            count = round(args.workflows * times)
            return latency(system, conditions, load, count, args.seeds)

        whole = run(OURS, usual)
        note("usual", "hexgen", load, p95_s=whole.p95_s, mean_s=whole.mean_s)
        for name, system in ABLATIONS.items():
            note("ablation", name, load, **run(system, usual).over(whole))
        blind = run(OURS, replace(usual, view=unlearned))
        note("ablation", "learned lengths and remaining work", load, **blind.over(whole))
        for name, conditions in wrong.items():
            ours = run(OURS, conditions)
            others = {"least_load_": LEAST_LOAD, "paper_": PAPER}
            ratios = [run(system, conditions).over(ours, key) for key, system in others.items()]
            note("sensitivity", name, load, **ours.over(whole), **ratios[0], **ratios[1])
        ours = run(OURS, single, times=per_workflow)
        other = run(LEAST_LOAD, single, times=per_workflow)
        note("untagged", "every request", load, p95_s=ours.p95_s, **other.over(ours, "least_load_"))
    return rows


def main() -> int:
    """Run everything and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--cluster", type=Path, default=Path("launch/configs/clusters/hetero-1.toml")
    )
    parser.add_argument("--trace", required=True)
    parser.add_argument("--loads", nargs="+", default=["60%", "80%"])
    parser.add_argument("--workflows", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    try:
        rows = rows_of(args)
    except HexgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = {
        "cluster": args.cluster.stem,
        "trace": Path(args.trace).stem,
        "workflows": args.workflows,
        "seeds": args.seeds,
        "rows": rows,
    }
    args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
