"""The Text-to-SQL agent on two real SGLang servers behind a coordinator, with the tiny model.

The tiny model writes no SQL, so nothing here is about being right: stages, tags, prefixes and
what the command prints are.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hexgen_sglang.client import CoordinatorClient, HexgenEndpoint
from hexgen_sglang.cluster.running import Cluster
from hexgen_sglang.text2sql.answer import AnswerOutcome, Question
from hexgen_sglang.text2sql.program import WORKFLOW_TYPE, ask_many
from hexgen_sglang.text2sql.sample import ensure_sample_database, sample_questions
from hexgen_sglang.text2sql.settings import AgentSettings
from hexgen_sglang.text2sql.stages import GENERATE_CANDIDATE, LINK_SCHEMA

pytestmark = pytest.mark.timeout(240)

HONEST_OUTCOMES = {outcome.value for outcome in AnswerOutcome} - {"model_failed"}


def ask(cluster: Cluster, *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("hexgen-sglang")), "ask", *options]
    return subprocess.run(
        [*command, "--url", cluster.url, "--db", "sample"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_questions_become_tagged_workflows_that_share_their_prefix(cluster: Cluster) -> None:
    questions = [
        Question(sample.question, sample.question_id, deadline_s=200.0)
        for sample in sample_questions()[:3]
    ]
    backend = HexgenEndpoint(cluster.url, workflow_type=WORKFLOW_TYPE)
    settings = AgentSettings(num_candidates=3, max_rounds=1)
    answers = ask_many(questions, ensure_sample_database(), backend, settings=settings)

    assert [answer.question for answer in answers] == questions
    coordinator = CoordinatorClient(cluster.url)
    for answer in answers:
        assert answer.outcome.value in HONEST_OUTCOMES
        assert answer.failures == () or answer.sql is not None
        assert answer.workflow_id is not None
        record = coordinator.workflow(answer.workflow_id)
        assert record is not None
        assert record["ended"]
        assert record["workflow_type"] == WORKFLOW_TYPE
        assert record["budget_s"] == pytest.approx(200.0, abs=1.0)
        assert record["met_deadline"] is True
        by_stage: dict[str, list[dict[str, Any]]] = {}
        for request in record["requests"]:
            by_stage.setdefault(request["stage"], []).append(request)
        assert len(by_stage[LINK_SCHEMA]) == 1
        candidates = by_stage[GENERATE_CANDIDATE]
        assert sorted(request["sibling_index"] for request in candidates) == [0, 1, 2]
        assert {request["siblings"] for request in candidates} == {3}
        # The schema's prefix was computed for the first stage, at least where that ran.
        assert max(request["cached_tokens"] for request in candidates) > 500


def test_ask_prints_one_answer_with_what_each_stage_cost(cluster: Cluster) -> None:
    done = ask(cluster, "How many stations are there?", "--json", "--deadline", "180")
    answer = json.loads(done.stdout)
    assert answer["outcome"] in HONEST_OUTCOMES
    assert done.returncode == (0 if answer["outcome"] in ("rows", "empty") else 1)
    stages = {stage["stage"]: stage for stage in answer["stages"]}
    assert stages[GENERATE_CANDIDATE]["num_requests"] == 3
    assert stages.pop("retrieve_values")["num_requests"] == 0
    for stage in stages.values():
        assert stage["prompt_tokens"] > 0
        assert stage["elapsed_s"] > 0
        assert set(stage["workers"]) <= {"worker-0", "worker-1"}
        assert stage["workers"]

    table = ask(cluster, "How many bikes are there?", "--deadline", "180").stdout
    assert LINK_SCHEMA in table
    assert "deadline met" in table
