"""What it is worth to let a prefill wait for decodes that it would stall, in the simulator.

    .venv/bin/python launch/bench/prefill_waits.py --trace ../shared/traces/trace1.json --json FILE

SGLang takes a prefill as soon as it fits, and everything that decodes there stands still meanwhile.
Here a prompt stays in the engine's queue, for at most so long as its own prefill takes, while

    prefill seconds x (weights of the decodes expected to end within d) > its own weight x d

for some d: the delay it spares others is more than what it waits. Weights are equal, or the
urgencies of `marginal_cost` (the share of its budget that a workflow will have used). For each
load: `hexgen` without that and with it, when all deadlines are 4 x the unloaded latency, and when
those of every second workflow are 2.5 x ("tight") and of the others 8 x. Means over the seeds.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hexgen_sglang.core.accelerator import decode_s, prefill_s
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.sim.decode_run import DecodeRun
from hexgen_sglang.sim.engine import Engine
from hexgen_sglang.sim.engine_request import EngineRequest
from hexgen_sglang.sim.testbed import Latency, Testbed, measure_loads, options
from hexgen_sglang.workload.plan import Workload

TIGHT, RELAXED = 2.5, 8.0
LEAST_URGENCY, MOST_URGENCY = 0.02, 10.0
UNKNOWN_TOKENS = 128

Weigh = Callable[[RequestView, float], float]


def equal(view: RequestView, now_s: float) -> float:
    """The same weight for each."""
    return 1.0


def urgency(view: RequestView, now_s: float) -> float:
    """As `marginal_cost` weighs a request with a deadline."""
    if view.deadline_s is None or not view.budget_s:
        return 1.0
    slack = (view.deadline_s - now_s - view.predicted_remaining_s) / view.budget_s
    return min(MOST_URGENCY, max(LEAST_URGENCY, 1.0 - slack))


class PatientEngine(Engine):
    """An engine whose prefills wait for decodes, by the rule above."""

    weigh: Weigh
    _is_waiting = False

    def _plan_prefill(self) -> Any:
        self._is_waiting = False
        return super()._plan_prefill()

    def _is_held(self, request: EngineRequest, in_progress: Sequence[EngineRequest]) -> bool:
        if super()._is_held(request, in_progress):
            return True
        waits = self._should_wait(request)
        self._is_waiting = self._is_waiting or waits
        return waits

    def _should_wait(self, request: EngineRequest) -> bool:
        num_fill, now_s = request.num_fill_tokens, self._events.now_s
        cached = self.cache.num_matched(request.fill, num_fill - 1)
        own_s = prefill_s(self.profile, [(num_fill - cached, cached)])
        if not self.running or now_s - request.queued_s >= own_s:
            return False
        context = sum(x.num_prompt_tokens + x.num_made_tokens for x in self.running)
        step_s = decode_s(self.profile, len(self.running), context)
        own_weight = self.weigh(request.view, now_s)
        ends = sorted((step_s * _expected_left(x), self.weigh(x.view, now_s)) for x in self.running)
        spared = 0.0
        for end_s, weight in ends:
            spared += weight * own_s
            if end_s > own_s:
                return False
            if spared > own_weight * end_s:
                return True
        return False

    def _steps_ahead(self, run: DecodeRun) -> int:
        steps = super()._steps_ahead(run)
        return min(2, steps) if self._is_waiting else steps


def _expected_left(request: EngineRequest) -> int:
    """Output tokens still to come, as far as the engine may know."""
    expected = request.view.expected_output_tokens or UNKNOWN_TOKENS
    return max(1, expected - request.num_made_tokens)


def maker(weigh: Weigh) -> Callable[..., Engine]:
    """Makes patient engines with these weights."""

    def make(*args: Any, **named: Any) -> Engine:
        engine = PatientEngine(*args, **named)
        engine.weigh = weigh
        return engine

    return make


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
    """One row for each kind of deadlines and each way."""
    usual = [bed.workload(load, workflows, seed) for seed in range(seeds)]
    deadlines = {"4": usual, f"{TIGHT:g} and {RELAXED:g}": [two_scales(one) for one in usual]}
    ways = {"off": Engine, "equal weights": maker(equal), "urgency": maker(urgency)}
    rows = []
    for scale, workloads in deadlines.items():
        for way, make_engine in ways.items():
            settings = replace(bed.settings(), make_engine=make_engine)
            runs = [figures(bed.run("hexgen", one, settings)) for one in workloads]
            means = {name: statistics.mean(run[name] for run in runs) for name in runs[0]}
            rows.append({"load": load, "deadlines": scale, "way": way, **means, "runs": runs})
            print(json.dumps({key: rows[-1][key] for key in rows[-1] if key != "runs"}), flush=True)
    return rows


def main() -> int:
    """Run every load and write all rows."""
    args = options(__doc__, loads=["80%"], workflows=200).parse_args()

    def rows_at(bed: Testbed, load: str) -> list[dict[str, Any]]:
        return rows_of(bed, load, args.workflows, args.seeds)

    return measure_loads(args, "rows", rows_at)


if __name__ == "__main__":
    sys.exit(main())
