"""Objectives on runs whose figures can be told by hand."""

from __future__ import annotations

import math

import pytest

from hexgen_sglang.core.errors import ConfigError, LawViolation
from hexgen_sglang.results.records import RunRecord, WorkflowRecord
from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.tuner.objective import OBJECTIVES, parse_objective


def facts(
    latencies: list[float], budget_s: float | None = 10.0, *, completed: bool = True
) -> RunFacts:
    """Workflows that arrive at 0, 1, 2, ...; the first one is warm-up."""
    workflows = tuple(
        WorkflowRecord(
            index=index,
            workflow_id=f"w{index}",
            arrival_s=float(index),
            unloaded_s=1.0,
            budget_s=budget_s,
            warmup=index == 0,
            end_s=index + latency,
            completed=completed,
        )
        for index, latency in enumerate([1.0, *latencies])
    )
    return RunFacts(RunRecord("s", 0, 1.0, 1.0, workflows, ()))


# Latencies 1 to 19 behind the warm-up: ends at 2, 4, ..., 38; ten of them within 10 s.
RUN = facts([float(second) for second in range(1, 20)])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mean", 10.0),
        ("p95", 19.0),
        ("attainment", 10 / 19),
        ("goodput", 10 / (38 - 1)),
        ("goodput_per_usd", 10 / (38 - 1) * 3600 / 20),
    ],
)
def test_figures_are_what_their_definition_says(name: str, value: float) -> None:
    assert parse_objective(name).value(RUN, 20.0) == pytest.approx(value)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_effect_is_positive_exactly_when_the_figure_moves_its_way(name: str) -> None:
    objective = parse_objective(name)
    better, worse = (0.4, 0.5) if objective.less_is_better else (0.5, 0.4)
    assert objective.effect(better, worse) > 0 > objective.effect(worse, better)
    assert objective.effect(better, worse) == pytest.approx(-objective.effect(worse, better))
    assert objective.effect(0.5, 0.5) == 0


def test_gain_of_a_latency_is_a_factor_and_of_a_share_a_difference() -> None:
    p95, attainment = parse_objective("p95"), parse_objective("attainment")
    assert p95.gain(p95.effect(10.0, 25.0)) == pytest.approx(2.5)
    assert attainment.gain(attainment.effect(0.9, 0.7)) == pytest.approx(0.2)
    assert (p95.no_gain, attainment.no_gain) == (1.0, 0.0)


def test_broken_law_is_no_figure() -> None:
    broken = RunFacts(RUN.run, broken=("conservation: 1 requests never ended",))
    with pytest.raises(LawViolation, match="conservation"):
        parse_objective("mean").value(broken, 1.0)


def test_workflow_that_never_completed_is_no_latency() -> None:
    with pytest.raises(LawViolation, match="must complete"):
        parse_objective("p95").value(facts([1.0, 2.0], completed=False), 1.0)


@pytest.mark.parametrize("name", ["attainment", "goodput"])
def test_attainment_needs_deadlines(name: str) -> None:
    with pytest.raises(ConfigError, match="deadline"):
        parse_objective(name).value(facts([1.0], budget_s=None), 1.0)


def test_goodput_per_dollar_needs_a_price() -> None:
    with pytest.raises(ConfigError, match="price"):
        parse_objective("goodput_per_usd").value(RUN, 0.0)
    with pytest.raises(ConfigError, match="p95"):
        parse_objective("speed")
    assert math.isfinite(parse_objective("goodput_per_usd").value(RUN, 0.5))
