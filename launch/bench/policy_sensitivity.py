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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from hexgen_sglang.bench.plan import cluster_profiles
from hexgen_sglang.bench.systems import parse_system
from hexgen_sglang.cluster.config import load_cluster
from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.errors import HexgenError, LawViolation
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import StepCosts
from hexgen_sglang.policies.estimators import StepCostFit
from hexgen_sglang.sim import coordinator_front
from hexgen_sglang.sim.engine import Engine
from hexgen_sglang.sim.host import Delays, HostTimes
from hexgen_sglang.sim.run import DEFAULT_SETTINGS, SimSettings, simulate
from hexgen_sglang.workload.capacity import capacity_per_s
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import WorkloadSettings, build_workload
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
        trace: what the workflows are drawn from.
        view: what policies see instead of a request's view.
        settings: of the simulator.
        deadline_scale: of the workload; None: best effort.
    """

    trace: Trace
    view: View = lambda view: view
    settings: SimSettings = DEFAULT_SETTINGS
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


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of workflows."""

    p95_s: float
    mean_s: float

    def over(self, other: Latency, name: str = "") -> dict[str, float]:
        """Both as a multiple of another's, under keys with a name in front."""
        return {
            f"{name}p95_ratio": self.p95_s / other.p95_s,
            f"{name}mean_ratio": self.mean_s / other.mean_s,
        }


def latency(
    system: str,
    conditions: Conditions,
    profiles: Sequence[AcceleratorProfile],
    rate_per_s: float,
    args: argparse.Namespace,
    workflows: int,
) -> Latency:
    """Of all measured workflows of all seeds.

    Raises:
        LawViolation: a law of the simulator broke.
    """
    latencies: list[float] = []
    seen = coordinator_front.request_view

    def view(*given: Any) -> RequestView:
        return conditions.view(seen(*given))

    for seed in range(args.seeds):
        settings = WorkloadSettings(
            rate_per_s, workflows, seed, deadline_scale=conditions.deadline_scale
        )
        workload = build_workload(conditions.trace, settings, profiles)
        with mock.patch.object(coordinator_front, "request_view", view):
            facts = simulate(parse_system(system), workload, profiles, conditions.settings)
        if facts.broken:
            raise LawViolation("; ".join(facts.broken))
        latencies += [one.e2e_s for one in facts.run.measured()]
    return Latency(float(np.percentile(latencies, 95)), float(np.mean(latencies)))


def rows_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each load and each thing tried."""
    cluster = load_cluster(args.cluster)
    profiles = cluster_profiles(cluster, None)
    trace = load_trace(args.trace)
    usual = Conditions(trace)
    wrong = {
        "profiles wrong by 30 %": replace(
            usual, settings=SimSettings(make_engine=with_wrong_costs())
        ),
        "lengths misjudged, sigma 0.5": replace(usual, view=misjudged),
        "20 % of workflows revise 3 times as often": replace(usual, trace=revised_more(trace)),
        "reports 500 ms late": replace(
            usual, settings=SimSettings(host=HostTimes(delays=Delays(report_s=LATE_S)))
        ),
    }
    single = Conditions(untagged(trace), unlearned, deadline_scale=None)
    per_workflow = len(single.trace.workflows) / len(trace.workflows)
    capacity = capacity_per_s(trace, profiles)
    rows: list[dict[str, Any]] = []

    def note(kind: str, name: str, load: str, **values: float) -> None:
        rows.append({"kind": kind, "name": name, "load": load, **values})
        print(kind, name, load, {key: round(value, 3) for key, value in values.items()}, flush=True)

    for load in args.loads:
        rate = float(load.removesuffix("%")) / 100 * capacity

        def run(
            system: str, conditions: Conditions, *, rate: float = rate, times: float = 1.0
        ) -> Latency:
            count = round(args.workflows * times)
            return latency(system, conditions, profiles, rate * times, args, count)

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
