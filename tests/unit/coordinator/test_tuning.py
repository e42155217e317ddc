"""What the coordinator tells its tuner, and what it does with what it hears."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import msgspec
import pytest

from hexgen_sglang.coordinator.config import (
    CoordinatorConfig,
    CoordinatorFile,
    as_toml,
    load_config,
)
from hexgen_sglang.coordinator.metrics import Metrics
from hexgen_sglang.coordinator.queue import CentralQueue
from hexgen_sglang.coordinator.tuned_settings import AdjustablePolicy, TunedSettings
from hexgen_sglang.coordinator.tuning import Tuning, crew_of, observed_workflow
from hexgen_sglang.coordinator.tuning_config import Objective, TuningConfig
from hexgen_sglang.coordinator.tuning_messages import (
    Crew,
    CrewMember,
    Said,
    Start,
    from_tuner,
    line,
    to_tuner,
)
from hexgen_sglang.coordinator.worker import Worker
from hexgen_sglang.coordinator.workflows import Outcome, Workflow, WorkflowTracker
from hexgen_sglang.coordinator.working_set import WorkingSet
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import WorkerView
from hexgen_sglang.policies.dispatch import Candidate
from hexgen_sglang.policies.estimators import StageEstimates
from hexgen_sglang.policies.ordering import ORDERING
from hexgen_sglang.protocol.tag import WorkflowTag
from hexgen_sglang.tuner.objective import OBJECTIVES

TUNING = TuningConfig(mode="auto", profiles={"a100": "a100.toml"})
PAPER = CoordinatorConfig(
    dispatch="paper", dispatch_settings={"alpha": 0.4}, binding="early", tuning=TUNING
)


def tuned_settings(
    config: CoordinatorConfig, policy: AdjustablePolicy | None = None
) -> TunedSettings:
    """Those of a coordinator whose workers have no link."""
    return TunedSettings(
        config,
        policy or AdjustablePolicy(config.dispatch, config.dispatch_settings),
        WorkingSet(0.0),
        CentralQueue(ORDERING.create(config.ordering), 10, 1_000, lambda: 1.0),
        None,
        lambda: None,
    )


def tuner_of(config: CoordinatorConfig, metrics: Metrics | None = None) -> Tuning:
    crew = (CrewMember("a100", 1.0),)
    return Tuning(
        config, tuned_settings(config), None, lambda: crew, metrics or Metrics(), lambda: 50.0
    )


def ended_workflow(outcome: Outcome = Outcome.COMPLETED, **counts: int | None) -> Workflow:
    """Two stages of a workflow with a deadline, through the real tracker."""
    ended: list[Workflow] = []
    tracker = WorkflowTracker(StageEstimates(), 100, 60.0, {}, ended.append)
    for number, (stage, start_s, end_s) in enumerate([("draft", 5.0, 7.0), ("judge", 7.5, 9.0)]):
        tag = WorkflowTag("w", "sql", stage, budget_ms=10_000, final=stage == "judge")
        workflow, record = tracker.accept(tag, f"r{number}", start_s)
        record.prompt_tokens, record.output_tokens, record.cached_tokens = 100, 10, 40
        for name, value in counts.items():
            setattr(record, name, value)
        tracker.close(workflow, record, outcome, end_s)
    return ended[0]


def test_ended_workflow_is_told_with_lengths_and_times_only() -> None:
    seen = observed_workflow(ended_workflow())
    assert seen is not None
    assert (seen.workflow_type, seen.arrival_s, seen.budget_s, seen.met) == ("sql", 5.0, 10.0, True)
    assert [(one.stage, one.start_s, one.end_s) for one in seen.requests] == [
        ("draft", 0.0, 2.0),
        ("judge", 2.5, 4.0),
    ]
    assert [(one.input_tokens, one.output_tokens, one.cached_tokens) for one in seen.requests] == [
        (100, 10, 40)
    ] * 2
    assert to_tuner(line(seen)) == seen


def test_late_workflow_is_told_as_missed() -> None:
    workflow = ended_workflow()
    workflow.deadline_s = workflow.started_s + 3.9
    seen = observed_workflow(workflow)
    assert seen is not None
    assert seen.met is False


@pytest.mark.parametrize(
    ("outcome", "counts"),
    [
        (Outcome.FAILED, {}),
        (Outcome.DISCONNECTED, {}),
        (Outcome.COMPLETED, {"prompt_tokens": None}),
        (Outcome.COMPLETED, {"output_tokens": 0}),
        (Outcome.COMPLETED, {"prompt_tokens": 2_000_000}),
    ],
)
def test_workflow_that_is_not_wholly_known_is_not_told(
    outcome: Outcome, counts: dict[str, int | None]
) -> None:
    assert observed_workflow(ended_workflow(outcome, **counts)) is None


def test_cancelled_workflow_is_not_told() -> None:
    workflow = ended_workflow()
    workflow.is_cancelled = True
    assert observed_workflow(workflow) is None


def test_policy_decides_under_its_new_settings_at_once() -> None:
    policy = AdjustablePolicy("paper", {"alpha": 1.0})
    fast = WorkerView(
        "fast",
        prefill_tokens_per_s=4_000,
        decode_tokens_per_s=50,
        num_pending_decode_tokens=5_000,
    )
    slow = WorkerView("slow", prefill_tokens_per_s=1_000, decode_tokens_per_s=20)
    request = RequestView("r", "w", 0.0, num_prompt_tokens=500)
    candidates = [Candidate(fast), Candidate(slow)]
    assert policy.pick(request, candidates) == "fast"
    policy.adjust({"alpha": 0.1})
    assert policy.pick(request, candidates) == "slow"
    assert policy.settings["alpha"] == 0.1
    with pytest.raises(ConfigError, match="alpha"):
        policy.adjust({"alpha": 7.0})
    assert policy.settings["alpha"] == 0.1
    assert policy.pick(request, candidates) == "slow"


def test_what_the_tuner_says_is_used_counted_and_shown() -> None:
    metrics = Metrics()
    tuning = tuner_of(PAPER, metrics)
    assert tuning.is_down
    for kind, alpha in (("advice", 0.9), ("keep", 0.8), ("apply", 0.2), ("failed", 0.7)):
        tuning.hear(Said(kind, {"alpha": alpha}, "because"))  # type: ignore[arg-type]
    assert tuning.report()["settings"]["alpha"] == 0.2
    tuning.hear(Said("return", {"alpha": 0.4}, "attainment fell"))
    report = tuning.report()
    assert report["settings"]["alpha"] == 0.4
    assert report["engines"] is None
    assert report["counts"] == dict.fromkeys(("advice", "keep", "apply", "failed", "return"), 1)
    assert [said["kind"] for said in report["said"]][-1] == "return"
    tuning.show()
    shown = metrics.exposition()
    assert b'hexgen_tuning_total{kind="apply"} 1.0' in shown
    assert b'hexgen_tuning_setting{setting="alpha"} 0.4' in shown


def test_settings_that_are_refused_change_nothing() -> None:
    tuning = tuner_of(PAPER)
    for settings in ({"alpha": 40.0}, {"alpha": 0.1, "ordering.best_effort_slack_s": 9.0}):
        tuning.hear(Said("apply", settings, "because"))
    assert tuning.report()["settings"]["alpha"] == 0.4


def test_the_crew_is_told_with_the_speed_at_which_each_emulates() -> None:
    workers = [
        Worker("w1", "http://h:1", "link", hardware="l40s", time_scale=5.0),
        Worker("w2", "http://h:2", "link", hardware="a100"),
    ]
    crew = crew_of(workers)
    assert crew == (CrewMember("a100", None), CrewMember("l40s", 5.0))
    assert crew == crew_of(reversed(workers))


def test_tuner_that_is_off_is_not_down() -> None:
    tuning = tuner_of(CoordinatorConfig())
    assert not tuning.is_on
    assert not tuning.is_down
    tuning.ended(ended_workflow())
    assert tuning.report()["num_workflows"] == 0


@pytest.mark.parametrize(
    "message",
    [
        Start(TUNING, "paper", "early", {"alpha": 0.4}, "least_slack", engines_told=True),
        Crew((CrewMember("a100", None), CrewMember("a6000", 5.0))),
    ],
)
def test_messages_survive_the_pipe(message: Start | Crew) -> None:
    assert to_tuner(line(message)) == message


def test_answer_survives_the_pipe_and_nonsense_does_not() -> None:
    said = Said("apply", {"alpha": 0.2}, "gain", 1.3, 1.1, None, 18, 2.5)
    assert from_tuner(line(said)) == said
    for raw in (b'{"kind":"explode","settings":{},"reason":""}', b"{", b"[]"):
        with pytest.raises(msgspec.DecodeError):
            from_tuner(raw)


def test_configuration_is_read_back_as_printed(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.toml"
    file = CoordinatorFile(coordinator=CoordinatorConfig(dispatch="paper", tuning=TUNING))
    path.write_text(as_toml(file), encoding="utf-8")
    assert load_config(path) == file


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('mode = "auto"', "needs profiles"),
        ('mode = "always"', "mode"),
        ("candidates = 1", "candidates"),
        ("min_workflows = 600", "window_workflows=500"),
        ("speed = 1", "speed"),
    ],
)
def test_wrong_tuning_is_refused(tmp_path: Path, table: str, message: str) -> None:
    path = tmp_path / "coordinator.toml"
    path.write_text(f"[coordinator.tuning]\n{table}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_objectives_are_those_of_the_search() -> None:
    assert set(get_args(Objective)) == set(OBJECTIVES)
