"""Shared by the unit tests: a profile to be worked out by hand, and runs as if served perfectly."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hexgen_sglang.core.accelerator import (
    AcceleratorProfile,
    Capacity,
    DecodeCost,
    Fit,
    PrefillCost,
    Price,
    Sourced,
)
from hexgen_sglang.results.records import RequestRecord, RunRecord, WorkflowRecord
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import Workload, WorkloadSettings, build_workload


def linear(
    prefill_token_s: float = 0.001,
    step_s: float = 0.1,
    context_1k_s: float = 0.0,
    kv_tokens: int = 100_000,
    chunk_tokens: int = 50_000,
    usd_per_hour: float = 1.0,
    name: str = "linear",
) -> AcceleratorProfile:
    """No base, no attention term, one price for each uncached token and each step."""
    kv_tokens = max(kv_tokens, 1)
    return AcceleratorProfile(
        name=name,
        model="none",
        device="made up for tests",
        tensor_parallel=Sourced(1, "made up"),
        prefill=PrefillCost(
            Sourced(0.0, "made up"),
            Sourced(prefill_token_s, "made up"),
            Sourced(0.0, "made up"),
            Sourced(min(chunk_tokens, kv_tokens), "made up"),
        ),
        decode=DecodeCost(
            Sourced(step_s, "made up"), Sourced(0.0, "made up"), Sourced(context_1k_s, "made up")
        ),
        capacity=Capacity(Sourced(kv_tokens, "made up"), Sourced(64, "made up")),
        price=Price(Sourced(usd_per_hour, "made up")),
        fit=Fit("made up"),
    )


@pytest.fixture(scope="session")
def linear_profile() -> Callable[..., AcceleratorProfile]:
    """The factory above."""
    return linear


@pytest.fixture(scope="session")
def workload(linear_profile: Callable[..., AcceleratorProfile]) -> Workload:
    """Ten synthetic workflows with deadlines."""
    settings = WorkloadSettings(rate_per_s=0.5, num_workflows=10, seed=1)
    return build_workload(load_trace("synthetic:6"), settings, [linear_profile()])


@pytest.fixture
def served(workload: Workload) -> RunRecord:
    """A run in which every request takes one second, half of its prompt cached."""
    return serve(workload, request_s=1.0)


@pytest.fixture(name="serve")
def serve_fixture() -> Callable[..., RunRecord]:
    """The function below."""
    return serve


def serve(workload: Workload, request_s: float, system: str = "perfect") -> RunRecord:
    """Records of a run without queues, sent exactly when due."""
    requests, workflows = [], []
    for planned in workload.workflows:
        ends: list[float] = []
        for index, stage in enumerate(planned.workflow.stages):
            start = max((ends[before] for before in stage.after), default=planned.arrival_s)
            due = start + stage.tool_s
            for sibling, asked in enumerate(stage.requests):
                requests.append(
                    RequestRecord(
                        request_id=f"{planned.workflow_id}-{index}-{sibling}",
                        workflow=planned.index,
                        stage=index,
                        stage_name=stage.name,
                        sibling=sibling,
                        due_s=due,
                        sent_s=due,
                        first_byte_s=due + request_s / 4,
                        end_s=due + request_s,
                        worker=f"w{sibling % 2}",
                        input_tokens=asked.num_input_tokens,
                        cached_tokens=asked.num_input_tokens // 2,
                        output_tokens=asked.num_output_tokens,
                    )
                )
            ends.append(due + request_s)
        workflows.append(
            WorkflowRecord(
                planned.index,
                planned.workflow_id,
                planned.arrival_s,
                planned.unloaded_s,
                planned.budget_s,
                planned.warmup,
                max(ends),
                True,
            )
        )
    settings = workload.settings
    return RunRecord(
        system, settings.seed, settings.rate_per_s, 1.0, tuple(workflows), tuple(requests)
    )
