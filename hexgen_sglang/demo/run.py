"""Runs the demo: starts a cluster, asks the questions at once, watches, records, stops all.

Runs in the command line's process. What is recorded comes from the coordinator's own routes
and the agent's answers; `demo.report` makes the report of it.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hexgen_sglang.client import CoordinatorClient
from hexgen_sglang.cluster.config import resolve_model
from hexgen_sglang.cluster.running import Cluster
from hexgen_sglang.cluster.signals import termination_raises
from hexgen_sglang.cluster.worker import WorkerSpec
from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.core.errors import ProcessError
from hexgen_sglang.demo.live import Flow, View
from hexgen_sglang.demo.page import outcome_words
from hexgen_sglang.demo.report import Report, WorkflowFacts, build_report
from hexgen_sglang.text2sql.answer import Answer, Question
from hexgen_sglang.text2sql.events import AgentEvent, EventKind
from hexgen_sglang.text2sql.execution import Execution, SqlOutcome
from hexgen_sglang.text2sql.sample import SampleQuestion, ensure_sample_database, sample_questions
from hexgen_sglang.text2sql.sandbox import Sandbox

# Deadlines as shares of the middle one, in turn: tight, middle, relaxed.
DEADLINE_SHARES = (0.5, 1.0, 2.0)
# A batch that a core decodes well; what does not fit waits in the coordinator's queue, where
# it can still go to either worker and be overtaken by something more urgent.
MAX_RUNNING_REQUESTS = 8
ASK_LIMIT_S = 540.0
POLL_S = 0.5
STOP_GRACE_S = 5.0
END_TOLD_S = 5.0


@dataclass(frozen=True)
class DemoSettings:
    """What to run.

    Attributes:
        model_path: "default", "tiny", a folder, or what SGLang accepts.
        num_workers: SGLang servers, each pinned to a core in turn.
        num_questions: of the sample's 24, all asked at once.
        deadline_s: the middle deadline; tight ones are half, relaxed ones twice that.
        folder: for logs; the report goes there too.
    """

    model_path: str
    num_workers: int
    num_questions: int
    deadline_s: float
    folder: Path


def run_demo(settings: DemoSettings, view: View) -> Report:
    """Run it all; what was started is stopped when this returns or raises.

    Raises:
        ProcessError: something that was started died, or the questions took too long.
        ConfigError: a setting is wrong, or the model cannot be had.
    """
    view.say(f"model: {settings.model_path}")
    model = resolve_model(settings.model_path)
    cluster = _cluster(settings, model)
    with termination_raises():
        try:
            view.say(f"starting a coordinator and {settings.num_workers} SGLang workers")
            cluster.start(view.starting)
            view.say(f"ready: {cluster.url}")
            return _DemoRun(settings, cluster, view).report(Path(model).name)
        finally:
            view.close()
            view.say("stopping the workers and the coordinator")
            cluster.stop(STOP_GRACE_S)


def _cluster(settings: DemoSettings, model: str) -> Cluster:
    """The workers and the coordinator, not started."""
    workers = [
        WorkerSpec(
            name=f"worker-{number}",
            model_path=model,
            schedule_policy="hexgen",
            hardware="cpu",
            core=number,
            flags=("--max-running-requests", str(MAX_RUNNING_REQUESTS)),
        )
        for number in range(settings.num_workers)
    ]
    return Cluster(CoordinatorConfig(port=0), workers, settings.folder / "logs")


class _DemoRun:
    """The questions of one run: asked in the background, watched from the main thread."""

    def __init__(self, settings: DemoSettings, cluster: Cluster, view: View) -> None:
        self._cluster = cluster
        self._view = view
        self._coordinator = CoordinatorClient(cluster.url)
        self._samples = pick_questions(settings.num_questions)
        self._database = ensure_sample_database()
        self._flows = [
            Flow(number, sample.question, settings.deadline_s * share, asked_s=0.0)
            for number, (sample, share) in enumerate(
                zip(self._samples, _in_turn(len(self._samples)), strict=True), 1
            )
        ]
        self._by_id = {
            sample.question_id: flow
            for sample, flow in zip(self._samples, self._flows, strict=True)
        }
        self._starts_s: dict[str, float] = {}
        self._began_s = 0.0

    def report(self, model_name: str) -> Report:
        """Ask, watch until the last answer, and build the report."""
        from hexgen_sglang.client.frontend import HexgenEndpoint
        from hexgen_sglang.text2sql.program import ask_many

        backend = HexgenEndpoint(self._cluster.url, workflow_type="text2sql")
        questions = [
            Question(sample.question, sample.question_id, flow.deadline_s)
            for sample, flow in zip(self._samples, self._flows, strict=True)
        ]
        self._view.say(f"asking {len(questions)} questions at once, over {self._database}")
        pool = ThreadPoolExecutor(1)
        self._began_s = time.monotonic()
        asking = pool.submit(
            ask_many,
            questions,
            self._database,
            backend,
            max_parallel=len(questions),
            on_event=self._note,
        )
        pool.shutdown(wait=False)
        self._watch(asking)
        duration_s = self._now_s()
        answers = asking.result()
        facts = self._facts(answers)
        return build_report(facts, self._coordinator.workers(), duration_s, _made_by(model_name))

    def _note(self, event: AgentEvent) -> None:
        """The agent tells how a question goes on; called from the questions' threads."""
        flow = self._by_id[event.question.question_id]
        if event.kind is EventKind.STARTED:
            flow.workflow_id = event.workflow_id
            flow.asked_s = self._now_s()
        elif event.kind is EventKind.FINISHED and event.answer is not None:
            flow.ended_s = self._now_s()
            num_rows = len(event.answer.rows)
            flow.has_rows = num_rows > 0
            flow.result = outcome_words(event.answer.outcome.value, num_rows)

    def _watch(self, asking: Future[list[Answer]]) -> None:
        """Follow the coordinator and show it, until every question is answered.

        Raises:
            ProcessError: a process of the cluster died, or `ASK_LIMIT_S` is over.
        """
        while not asking.done():
            self._poll()
            self._cluster.check()
            if self._now_s() > ASK_LIMIT_S:
                raise ProcessError(f"the questions were not answered within {ASK_LIMIT_S:.0f} s")
            time.sleep(POLL_S)
        self._poll()

    def _poll(self) -> None:
        """Ask the coordinator for every workflow that is not known to have ended."""
        for flow in self._flows:
            if flow.workflow_id is not None and not (flow.record and flow.record["ended"]):
                record = self._coordinator.workflow(flow.workflow_id)
                if record is not None:
                    flow.record = record
                    if not record["ended"]:
                        self._starts_s[flow.workflow_id] = self._now_s() - record["elapsed_s"]
        self._view.update(self._coordinator.workers(), self._flows, self._now_s())

    def _now_s(self) -> float:
        """Seconds since the questions were asked."""
        return time.monotonic() - self._began_s

    def _facts(self, answers: Sequence[Answer]) -> list[WorkflowFacts]:
        """Answers joined with what the coordinator recorded of their workflows."""
        with Sandbox(self._database) as sandbox:
            return [
                self._fact(flow, answer, sandbox.run(sample.gold_sql))
                for flow, sample, answer in zip(self._flows, self._samples, answers, strict=True)
            ]

    def _fact(self, flow: Flow, answer: Answer, gold: Execution) -> WorkflowFacts:
        workflow_id = answer.workflow_id or flow.workflow_id or answer.question.question_id
        return WorkflowFacts(
            workflow_id=workflow_id,
            question=flow.question,
            started_s=self._starts_s.get(workflow_id, flow.asked_s),
            deadline_s=flow.deadline_s,
            sql=answer.sql,
            outcome=answer.outcome.value,
            detail=answer.message,
            num_rows=len(answer.rows) if answer.outcome == "rows" else None,
            is_right=is_right(answer, gold),
            skipped=answer.skipped,
            notes=answer.failures,
            record=self._ended_record(workflow_id),
        )

    def _ended_record(self, workflow_id: str) -> Mapping[str, Any] | None:
        """The coordinator's last word on a workflow, once its end has arrived there."""
        limit_s = time.monotonic() + END_TOLD_S
        while True:
            record = self._coordinator.workflow(workflow_id)
            if record is None or record["ended"] or time.monotonic() > limit_s:
                return record
            time.sleep(0.05)


def pick_questions(number: int) -> list[SampleQuestion]:
    """That many of the sample's questions, spread evenly over its order (easy ones first)."""
    samples = sample_questions()
    return [samples[position * len(samples) // number] for position in range(number)]


def is_right(answer: Answer, gold: Execution) -> bool | None:
    """Whether the answer's rows are those of the gold query; None when there is no telling."""
    if answer.outcome not in {"rows", "empty"} or answer.truncated or gold.truncated:
        return None
    outcome = SqlOutcome.ROWS if answer.rows else SqlOutcome.EMPTY
    given = Execution(answer.sql or "", outcome, answer.columns, answer.rows)
    return given.fingerprint() == gold.fingerprint()


def _in_turn(number: int) -> list[float]:
    """The deadline shares, one after the other."""
    return [DEADLINE_SHARES[position % len(DEADLINE_SHARES)] for position in range(number)]


def _made_by(model_name: str) -> dict[str, str]:
    """What the run was made with, for people."""
    return {
        "model": model_name,
        "SGLang": version("sglang"),
        "hexgen-sglang": version("hexgen-sglang"),
        "Python": platform.python_version(),
        "cores": str(len(os.sched_getaffinity(0))),
    }
