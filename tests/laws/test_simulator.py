"""Laws of the simulator: nothing lost, causes before effects, the same every time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hexgen_sglang.bench.systems import parse_system
from hexgen_sglang.core.accelerator import AcceleratorProfile, at_time_scale
from hexgen_sglang.core.accelerator_toml import profile_from_toml
from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.sim.engine import Engine, Prefill
from hexgen_sglang.sim.host import HostTimes
from hexgen_sglang.sim.run import SimSettings, simulate
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import Workload, WorkloadSettings, build_workload

ACCELERATORS = Path(__file__).parents[2] / "launch" / "configs" / "accelerators"
SYSTEMS = (
    "fcfs+round_robin",
    "lpm+round_robin",
    "priority+round_robin",
    "hrrn+round_robin",
    "sglang-router:cache_aware+lpm",
    "sglang-router:power_of_two+fcfs",
    "coordinator:least_tokens+fcfs",
    "coordinator:least_load+lpm",
    "paper",
    "hexgen",
    "hexgen-lite",
)


def profiles(*names: str) -> list[AcceleratorProfile]:
    """Profiles of the project by name."""
    return [
        profile_from_toml((ACCELERATORS / f"{name}.toml").read_text("utf-8"), name)
        for name in names
    ]


def workload(seed: int, rate_per_s: float, num_workflows: int) -> Workload:
    """Synthetic Text-to-SQL workflows for an A100 and an A6000."""
    return build_workload(
        load_trace("synthetic:40:3"),
        WorkloadSettings(rate_per_s=rate_per_s, num_workflows=num_workflows, seed=seed),
        profiles("a100", "a6000"),
    )


def cramped(profile: AcceleratorProfile, kv_tokens: int) -> AcceleratorProfile:
    """The same with less KV memory, so that admission and eviction have work."""
    capacity = profile.capacity
    less = msgspec.structs.replace(
        capacity, kv_tokens=msgspec.structs.replace(capacity.kv_tokens, value=kv_tokens)
    )
    return msgspec.structs.replace(profile, capacity=less)


class Watched(Engine):
    """An engine that is looked at whenever it has chosen what to do."""

    last_s = 0.0

    def _launch(self) -> None:
        super()._launch()
        now_s = self._events.now_s
        assert now_s >= self.last_s
        self.last_s = now_s
        assert self._step is not None or not self.waiting, "it stands still and requests wait"
        assert self.num_free >= 0, "it uses more KV slots than it has"
        running, _ = self.counts
        assert running <= self.profile.capacity.max_running_requests.value
        for step in (self._step, self._next):
            if isinstance(step, Prefill):
                assert step.num_tokens <= self.profile.prefill.chunk_tokens.value


@pytest.mark.parametrize("system", ["fcfs+round_robin", "lpm+round_robin", "paper", "hexgen"])
@pytest.mark.parametrize("kv_tokens", [24_000, 200_000])
def test_work_is_conserved_and_memory_never_overdrawn(system: str, kv_tokens: int) -> None:
    crew = [cramped(profile, kv_tokens) for profile in profiles("a100", "a6000")]
    load = workload(seed=5, rate_per_s=0.5, num_workflows=12)
    watching = simulate(parse_system(system), load, crew, SimSettings(make_engine=Watched))
    assert watching.broken == ()


KEEPS_PREFIXES = "coordinator:marginal_cost+hexgen[retain=0.5]"
PREWARMS = "coordinator:marginal_cost+hexgen[retain=0.3;prewarm=0.5]"


@settings(max_examples=14, deadline=None)
@given(
    st.sampled_from([*SYSTEMS, KEEPS_PREFIXES, PREWARMS]),
    st.integers(0, 50),
    st.sampled_from([0.02, 0.1, 0.5]),
    st.sampled_from([24_000, 60_000]),
)
def test_no_law_is_broken(system: str, seed: int, rate_per_s: float, kv_tokens: int) -> None:
    load = workload(seed, rate_per_s, 12)
    crew = [cramped(profile, kv_tokens) for profile in profiles("a100", "a6000")]
    facts = simulate(parse_system(system), load, crew)
    assert facts.broken == ()
    run = facts.run
    assert {request.request_id for request in run.requests} == {
        f"{planned.workflow_id}-{stage}-{sibling}"
        for planned in load.workflows
        for stage, sibling, _ in planned.workflow.requests()
    }
    assert all(workflow.completed for workflow in run.workflows)
    for request in run.requests:
        assert request.first_byte_s is not None
        assert request.due_s <= request.sent_s < request.first_byte_s <= request.end_s
        assert 0 <= request.cached_tokens < request.input_tokens


@pytest.mark.parametrize("system", [name for name in SYSTEMS if not name.startswith("hrrn")])
@pytest.mark.parametrize("host", [HostTimes(), HostTimes(0.15, 0.1, 0.01, {"a100": 0.002})])
def test_steps_taken_together_end_when_single_steps_do(system: str, host: HostTimes) -> None:
    load = workload(seed=1, rate_per_s=0.3, num_workflows=25)
    crew = profiles("a100", "a6000")
    together = simulate(parse_system(system), load, crew, SimSettings(host))
    single = simulate(parse_system(system), load, crew, SimSettings(host, step_by_step=True))
    ends = {request.request_id: request for request in single.run.requests}
    for request in together.run.requests:
        other = ends[request.request_id]
        assert request.end_s == pytest.approx(other.end_s, abs=1e-6)
        assert (request.worker, request.cached_tokens) == (other.worker, other.cached_tokens)


def test_a_request_alone_takes_what_the_profile_says() -> None:
    load = workload(seed=2, rate_per_s=0.001, num_workflows=3)
    (profile,) = profiles("a100")
    facts = simulate(parse_system("fcfs+round_robin"), load, [profile])
    for workflow in facts.run.workflows:
        # `unloaded_s` is a mean over an A100 and a slower A6000.
        assert workflow.e2e_s < workflow.unloaded_s


def test_more_load_never_makes_the_mean_faster() -> None:
    means = []
    for rate_per_s in (0.02, 0.2, 1.0):
        load = workload(seed=3, rate_per_s=rate_per_s, num_workflows=40)
        facts = simulate(parse_system("fcfs+round_robin"), load, profiles("a100", "a6000"))
        means.append(sum(one.e2e_s for one in facts.run.workflows) / 40)
    assert means == sorted(means)


def digest(facts: RunFacts) -> str:
    """Of the records, byte for byte."""
    return hashlib.blake2b(msgspec.json.encode(facts.run), digest_size=16).hexdigest()


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import test_simulator as laws
from hexgen_sglang.sim.run import simulate
load = laws.workload(4, 0.4, 15)
names = ("hexgen", "hexgen-lite", "paper", "sglang-router:power_of_two+fcfs")
crew = laws.profiles("a100", "a6000")
print([laws.digest(simulate(laws.parse_system(name), load, crew)) for name in names])
"""


def test_equal_seeds_give_equal_bytes_under_any_hash_seed() -> None:
    seen = set()
    for hash_seed in ("0", "1", "4711"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(Path(__file__).parent)],
            env=dict(os.environ) | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        seen.add(done.stdout)
    assert len(seen) == 1


@pytest.mark.parametrize("system", ["fcfs+round_robin", "lpm+round_robin"])
def test_workers_that_emulate_faster_are_faster_by_just_that(system: str) -> None:
    """The time scale is a power of two: nothing is rounded, so that no decision falls otherwise."""
    scale = 4.0
    usual, fast = profiles("a100", "a6000"), profiles("a100", "a6000")
    fast = [at_time_scale(profile, scale) for profile in fast]
    trace = load_trace("synthetic:40:3")
    slow_load = WorkloadSettings(rate_per_s=0.5, num_workflows=30)
    fast_load = WorkloadSettings(rate_per_s=0.5 * scale, num_workflows=30)
    slow_run = simulate(parse_system(system), build_workload(trace, slow_load, usual), usual).run
    fast_run = simulate(parse_system(system), build_workload(trace, fast_load, fast), fast).run
    assert sum(one.e2e_s for one in slow_run.workflows) > 30 * 10
    assert [one.e2e_s for one in fast_run.workflows] == pytest.approx(
        [one.e2e_s / scale for one in slow_run.workflows], rel=1e-9
    )
    assert [one.budget_s for one in fast_run.workflows] == pytest.approx(
        [(one.budget_s or 0.0) / scale for one in slow_run.workflows]
    )
