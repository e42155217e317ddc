"""The tuner beside a simulated coordinator, and the bench that changes the traffic on it."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hexgen_sglang.bench.plan import cluster_profiles
from hexgen_sglang.bench.systems import parse_system
from hexgen_sglang.cluster.config import load_cluster
from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.coordinator.tuned_settings import AdjustablePolicy
from hexgen_sglang.coordinator.tuning_config import Mode, TuningConfig
from hexgen_sglang.coordinator.workflows import Workflow
from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.policies.dispatch import DispatchPolicy
from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.sim.beside import SettingsOf
from hexgen_sglang.sim.clock import EventQueue
from hexgen_sglang.sim.run import SimSettings, simulate
from hexgen_sglang.tuner.online import SimulatedTuner
from hexgen_sglang.tuner.space import with_settings
from hexgen_sglang.workload.capacity import capacity_per_s
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import Workload, WorkloadSettings, build_workload
from hexgen_sglang.workload.trace import TraceRequest, TraceStage, TraceWorkflow

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "launch" / "configs"
BENCH = ROOT / "launch" / "bench" / "online_tuning.py"
spec = importlib.util.spec_from_file_location("online_tuning", BENCH)
assert spec is not None
assert spec.loader is not None
bench = importlib.util.module_from_spec(spec)
sys.modules["online_tuning"] = bench  # its data classes look themselves up
spec.loader.exec_module(bench)

PROFILES = cluster_profiles(load_cluster(CONFIGS / "clusters/hetero-1.toml"), None)
CREW = tuple(profile.name for profile in PROFILES)
# Nothing but speed counts: everything goes to an A100, and the others stand still.
SYSTEM = parse_system("coordinator:paper[alpha=1.0]+fcfs")


@cache
def crowd() -> Workload:
    trace = load_trace("synthetic:15")
    rate = capacity_per_s(trace, PROFILES)
    return build_workload(trace, WorkloadSettings(rate, 40, warmup_frac=0.0), PROFILES)


@cache
def run(mode: Mode) -> tuple[SimulatedTuner, RunFacts]:
    tuning = TuningConfig(
        mode=mode,
        profiles={name: str(CONFIGS / f"accelerators/{name}.toml") for name in CREW},
        engine="fcfs",
        objective="mean",
        every_s=25.0,
        min_workflows=4,
        candidates=2,
        seeds=3,
        workflows=12,
        cool_down_s=60.0,
    )
    tuner = SimulatedTuner(tuning, CREW, len(crowd().workflows), search_s=5.0)
    return tuner, simulate(SYSTEM, crowd(), PROFILES, SimSettings(beside=tuner))


class ChangedAtOnce:
    """Changes settings before the first workflow comes."""

    def __init__(self, settings: dict[str, float]) -> None:
        self.settings = settings

    def begin(self, config: CoordinatorConfig, events: EventQueue) -> DispatchPolicy:
        self.policy = AdjustablePolicy(config.dispatch, config.dispatch_settings)
        return self.policy

    def serving(self, settings_of: SettingsOf) -> None:
        settings_of(self.policy).change(self.settings)

    def ended(self, workflow: Workflow) -> None:
        """Nothing."""


def half_best_effort() -> Workload:
    """More than the workers take at once, every second workflow without a deadline."""
    trace = load_trace("synthetic:15")
    load = build_workload(trace, WorkloadSettings(2.0, 30, warmup_frac=0.0), PROFILES[2:])
    planned = [
        replace(one, budget_s=None) if one.index % 2 else one  # ranks by its assumed slack
        for one in load.workflows
    ]
    return replace(load, workflows=tuple(planned))


@pytest.mark.parametrize(
    ("system", "changes"),
    [
        # Requests wait in the engines.
        ("coordinator:least_tokens+hexgen", {"ordering.best_effort_slack_s": 600.0}),
        # They wait in the central queue.
        ("hexgen", {"ordering.best_effort_slack_s": 600.0}),
        ("hexgen", {"working_set": 0.02, "caution": 3.0}),
    ],
)
def test_changed_settings_are_those_of_a_system_that_started_with_them(
    system: str, changes: dict[str, float]
) -> None:
    load, crew = half_best_effort(), tuple(small(profile) for profile in PROFILES[2:])
    usual = parse_system(system)
    beside = SimSettings(beside=ChangedAtOnce(changes))
    changed = simulate(usual, load, crew, beside)
    started = simulate(with_settings(usual, changes), load, crew)
    plain = simulate(usual, load, crew)
    ends = [[one.end_s for one in facts.run.workflows] for facts in (changed, started, plain)]
    assert changed.broken == started.broken == ()
    assert ends[0] == ends[1]
    assert ends[0] != ends[2]


def small(profile: AcceleratorProfile) -> AcceleratorProfile:
    """The same with four requests at once, so that others wait."""
    limit = msgspec.structs.replace(profile.capacity.max_running_requests, value=4)
    capacity = msgspec.structs.replace(profile.capacity, max_running_requests=limit)
    return msgspec.structs.replace(profile, capacity=capacity)


def mean_s(facts: RunFacts) -> float:
    return sum(one.e2e_s for one in facts.run.workflows) / len(facts.run.workflows)


def test_a_bad_setting_is_found_applied_and_pays() -> None:
    _, untouched = run("off")
    tuner, tuned = run("auto")
    assert tuned.broken == untouched.broken == ()
    applied = [(at_s, said) for at_s, said in tuner.said if said.kind == "apply"]
    assert applied
    assert applied[0][0] >= 30.0  # the first search begins after 25 s and takes 5
    assert applied[0][1].settings["alpha"] < 1.0
    assert mean_s(tuned) < 0.97 * mean_s(untouched)
    changes = [at_s for at_s, said in tuner.said if said.kind in ("apply", "return")]
    assert tuner.num_changes == len(changes) <= 3


def test_advice_changes_nothing_and_off_searches_nothing() -> None:
    off, untouched = run("off")
    advised, same = run("advise")
    assert off.said == []
    assert {said.kind for _, said in advised.said} <= {"advice", "keep", "failed"}
    assert any(said.kind == "advice" for _, said in advised.said)
    assert advised.num_changes == 0
    assert [one.end_s for one in same.run.workflows] == [
        one.end_s for one in untouched.run.workflows
    ]


def test_a_loop_becomes_a_longer_chain_and_what_waited_waits_for_its_end() -> None:
    one = (TraceRequest(10, 2),)
    workflow = TraceWorkflow(
        "w",
        "sql",
        (
            TraceStage("draft", one),
            TraceStage("revise", one, after=(0,), tool_s=1.0),
            TraceStage("vote", one, after=(0, 1)),
        ),
    )
    longer = bench.with_longer_loops(workflow, 3)
    assert [stage.name for stage in longer.stages] == ["draft", *["revise"] * 3, "vote"]
    assert [stage.after for stage in longer.stages] == [(), (0,), (1,), (2,), (0, 3)]
    assert bench.with_longer_loops(workflow, 1) == workflow


def revising(number: int) -> TraceWorkflow:
    stages = (
        TraceStage("draft", (TraceRequest(400 + number, 50),)),
        TraceStage("revise", (TraceRequest(600, 40),), after=(0,)),
    )
    return TraceWorkflow(str(number), "sql", stages)


def test_the_second_half_comes_twice_as_fast_and_loops_longer() -> None:
    trace = bench.replace(
        load_trace("synthetic:3"), workflows=tuple(revising(number) for number in range(8))
    )
    load, change_s = bench.changing_workload(trace, PROFILES, load=0.5, each=40, seed=1)
    first, second = load.workflows[:40], load.workflows[40:]
    assert [one.index for one in load.workflows] == list(range(80))
    assert len({one.workflow_id for one in load.workflows}) == 80
    assert all(one.arrival_s <= change_s for one in first)
    assert all(one.arrival_s > change_s for one in second)
    pace = (second[-1].arrival_s - change_s) / first[-1].arrival_s
    assert 0.3 < pace < 0.8
    assert {len(one.workflow.stages) for one in first} == {2}
    assert {len(one.workflow.stages) for one in second} == {4}
    assert not any(one.warmup for one in second)
    facts = simulate(parse_system("fcfs+round_robin"), load, PROFILES)
    shares: dict[str, Any] = bench.attainments(facts, change_s)
    assert set(shares) == {"before", "after", "settled"}
    assert all(0 <= share <= 1 for share in shares.values())


def test_a_trace_without_revisions_is_refused() -> None:
    trace = bench.replace(
        load_trace("synthetic:3"),
        workflows=(TraceWorkflow("w", "sql", (TraceStage("draft", (TraceRequest(10, 2),)),)),),
    )
    with pytest.raises(ConfigError, match="no stage begins with revise"):
        bench.changing_workload(trace, PROFILES, load=0.5, each=4, seed=1)


def emulated(time_scale: float) -> Any:
    files = {"a100": "a100.toml"}
    tuning = TuningConfig(profiles=files, every_s=120.0, window_s=300.0, cool_down_s=60.0)
    cluster = load_cluster(CONFIGS / "clusters/hetero-1.toml")
    trial = bench.Trial(cluster, PROFILES, load_trace("synthetic:3"), tuning, 0.5, 4, 10.0)
    return bench.EmulatedTrial(trial, time_scale, Path("unused"))


def test_beside_emulated_workers_the_tuner_is_given_real_seconds() -> None:
    system = parse_system("coordinator:paper+hexgen[ordering=urgency;best_effort_slack_s=14]")
    tuning = emulated(7.0).tuning_of(system, "auto")
    assert (tuning.every_s, tuning.window_s, tuning.cool_down_s) == pytest.approx(
        (120 / 7, 300 / 7, 60 / 7)
    )
    assert (tuning.mode, tuning.engine) == (
        "auto",
        "hexgen[ordering=urgency;best_effort_slack_s=2]",
    )
    assert emulated(7.0).tuning_of(parse_system("coordinator:paper+lpm"), "auto").engine == "lpm"
    # What the workers and the coordinator are started with is what the tuner is told of them, but
    # for the digits of a name.
    odd = emulated(7.3).tuning_of(parse_system("hexgen"), "auto").engine
    stated = dict(parse_system(f"coordinator:paper+{odd}").engine.ordering_settings)
    assert stated == pytest.approx({"best_effort_slack_s": 30 / 7.3}, rel=1e-9)


@pytest.mark.parametrize("name", ["hexgen-lite", "lpm+round_robin"])
def test_where_no_tuner_could_run_no_worker_is_started(name: str) -> None:
    with pytest.raises(ConfigError, match="only a linked coordinator has a tuner"):
        emulated(5.0)((name, "auto", 0))
