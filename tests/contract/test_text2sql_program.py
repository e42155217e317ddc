"""The agent as a frontend program, against a real HTTP server that answers from a script.

What the frontend's interpreter does with failing, slow and odd answers is SGLang's, not ours;
here it is shown that every question still ends with an answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("sglang")

from hexgen_sglang.client import HexgenEndpoint
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.protocol.tag import WorkflowTag, tag_from_body
from hexgen_sglang.text2sql.answer import AnswerOutcome, Question
from hexgen_sglang.text2sql.database import Database
from hexgen_sglang.text2sql.events import AgentEvent, EventKind
from hexgen_sglang.text2sql.program import WORKFLOW_TYPE, ask_many
from hexgen_sglang.text2sql.sample import make_sample_database
from hexgen_sglang.text2sql.settings import AgentSettings

# From a tagged request to (status, text).
Script = Callable[[WorkflowTag, str], tuple[int, str]]


class Model(ThreadingHTTPServer):
    """Speaks /v1/models, /generate and the end of workflows; answers as its script says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: Script = answer_well
        self.seen: list[tuple[WorkflowTag, str]] = []
        self.ended: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Model

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the test tells what matters."""

    def do_GET(self) -> None:
        self._reply(200, {"data": [{"id": "SmolLM2-135M-Instruct"}]})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.endswith("/end"):
            self.server.ended.append(self.path.split("/")[2])
            self._reply(200, {})
            return
        body = msgspec.json.decode(raw)
        tag = tag_from_body(body["hexgen"])
        self.server.seen.append((tag, body["text"]))
        status, text = self.server.script(tag, body["text"])
        meta = {"prompt_tokens": 100, "cached_tokens": 60, "completion_tokens": 7}
        answer = {"text": text, "meta_info": {**meta, "finish_reason": {"type": "stop"}}}
        self._reply(status, answer if status == 200 else {"error": {"message": "scripted"}})

    def _reply(self, status: int, answer: dict[str, Any]) -> None:
        data = msgspec.json.encode(answer)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def answer_well(tag: WorkflowTag, prompt: str) -> tuple[int, str]:
    """A model that first gets a column wrong, corrects it, and disagrees with itself."""
    return 200, {
        "link_schema": " station",
        "extract_keywords": " stations",
        "generate_candidate": (
            " SELECT COUNT(*) FROM station",
            " SELECT COUNT(stations) FROM station",
            " SELECT 7;",
        )[tag.sibling_index],
        "revise": " SELECT COUNT(station_id) FROM station",
        "generate_unit_test": " There is one number.",
        "evaluate": " yes" if tag.sibling_index == 0 else " no",
    }[str(tag.stage)]


@pytest.fixture
def model() -> Iterator[Model]:
    with Model() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join(20)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    path = tmp_path_factory.mktemp("program") / "bikes.sqlite"
    make_sample_database(path)
    with Database(path) as opened:
        yield opened


def backend(model: Model, deadline_s: float | None = 30.0) -> HexgenEndpoint:
    return HexgenEndpoint(model.url, deadline_s=deadline_s, workflow_type=WORKFLOW_TYPE)


def test_one_question_goes_through_all_stages(model: Model, database: Database) -> None:
    (answer,) = ask_many([Question("How many stations are there?")], database, backend(model))
    assert (answer.outcome, answer.rows) == (AnswerOutcome.ROWS, ((22,),))
    assert answer.sql == "SELECT COUNT(*) FROM station"
    assert [(cost.stage, cost.num_requests) for cost in answer.stages] == [
        ("retrieve_values", 0),
        ("link_schema", 1),
        ("extract_keywords", 1),
        ("retrieve_values", 0),
        ("generate_candidate", 3),
        ("revise", 1),
        ("generate_unit_test", 2),
        ("evaluate", 2),
    ]
    assert answer.stages[4].prompt_tokens == 300
    assert answer.stages[4].cached_tokens == 180
    assert answer.stages[4].output_tokens == 21
    assert answer.failures[0].startswith("error: no such column: stations")
    assert (answer.met_deadline, answer.deadline_s) == (True, 30.0)
    assert model.ended == [answer.workflow_id]


def test_every_request_is_tagged_and_shares_the_prefix(model: Model, database: Database) -> None:
    (answer,) = ask_many([Question("How many stations are there?")], database, backend(model))
    tags = [tag for tag, _ in model.seen]
    assert {tag.workflow_id for tag in tags} == {answer.workflow_id}
    assert {tag.workflow_type for tag in tags} == {"text2sql"}
    assert all(tag.budget_ms is not None and 0 < tag.budget_ms <= 30_000 for tag in tags)
    fan_out = {(tag.stage, tag.sibling_index): tag.siblings for tag in tags}
    assert fan_out == {
        ("link_schema", 0): 1,
        ("extract_keywords", 0): 1,
        **{("generate_candidate", index): 3 for index in range(3)},
        ("revise", 0): 1,
        **{("generate_unit_test", index): 2 for index in range(2)},
        **{("evaluate", index): 2 for index in range(2)},
    }
    prompts = [prompt for _, prompt in model.seen]
    question = "Q: How many stations are there?\n"
    prefixes = {prompt.split(question)[0] for prompt in prompts}
    assert len(prefixes) == 1
    assert all(question in prompt for prompt in prompts)


def test_many_questions_keep_their_order_and_deadlines(model: Model, database: Database) -> None:
    events: list[AgentEvent] = []
    questions = [
        Question(f"How many stations are there? {number}", f"q{number}", deadline_s=100.0 + number)
        for number in range(6)
    ]
    answers = ask_many(questions, database, backend(model), max_parallel=3, on_event=events.append)
    assert [answer.question for answer in answers] == questions
    assert [answer.deadline_s for answer in answers] == [100.0 + number for number in range(6)]
    assert len({answer.workflow_id for answer in answers}) == 6
    assert sorted(model.ended) == sorted(str(answer.workflow_id) for answer in answers)
    for answer in answers:
        mine = [event for event in events if event.workflow_id == answer.workflow_id]
        kinds = [event.kind for event in mine]
        assert kinds[0] is EventKind.STARTED
        assert kinds[-1] is EventKind.FINISHED
        assert mine[-1].answer == answer
        assert kinds.count(EventKind.STAGE_STARTED) == kinds.count(EventKind.STAGE_FINISHED) == 8


@pytest.mark.parametrize("status", [400, 503])
def test_a_model_that_always_fails_is_an_answer(
    model: Model, database: Database, status: int
) -> None:
    model.script = lambda tag, prompt: (status, "")
    (answer,) = ask_many([Question("x")], database, backend(model))
    assert answer.outcome is AnswerOutcome.MODEL_FAILED
    assert str(status) in answer.message
    asked = [(cost.num_requests, cost.num_failed) for cost in answer.stages if cost.num_requests]
    assert asked == [(1, 1), (1, 1), (3, 3)]
    assert model.ended == [answer.workflow_id]


def test_failures_at_any_stage_still_give_an_answer(model: Model, database: Database) -> None:
    for stage in ("link_schema", "extract_keywords", "revise", "generate_unit_test", "evaluate"):

        def fail_at(tag: WorkflowTag, prompt: str, stage: str = stage) -> tuple[int, str]:
            return (500, "") if tag.stage == stage else answer_well(tag, prompt)

        model.script = fail_at
        (answer,) = ask_many([Question("x")], database, backend(model))
        assert answer.outcome is AnswerOutcome.ROWS
        assert any(failure.startswith(f"{stage}: ") for failure in answer.failures)


@pytest.mark.parametrize("text", ["", "\n\n", "SELECT", "I am sorry.", "SELECT '", "\u0000;\ud7ff"])
def test_odd_texts_still_give_an_answer(model: Model, database: Database, text: str) -> None:
    model.script = lambda tag, prompt: (200, text)
    (answer,) = ask_many([Question("x")], database, backend(model))
    assert answer.outcome in {AnswerOutcome.NO_SQL, AnswerOutcome.NO_VALID_SQL}


def test_hostile_sql_is_an_answer_and_changes_nothing(model: Model, database: Database) -> None:
    before = Path(database.source.location).read_bytes()
    model.script = lambda tag, prompt: (200, " SELECT 1 FROM sqlite_master WHERE sql LIKE '%'")
    (answer,) = ask_many([Question("x")], database, backend(model))
    assert answer.outcome is AnswerOutcome.NO_VALID_SQL
    assert "sqlite_master is not allowed" in answer.message
    assert Path(database.source.location).read_bytes() == before


def test_after_its_deadline_a_workflow_skips_what_it_can(model: Model, database: Database) -> None:
    (answer,) = ask_many([Question("x")], database, backend(model, deadline_s=1e-6))
    assert answer.met_deadline is False
    assert answer.skipped == ("link_schema",)
    assert [one.knob.value for one in answer.dropped] == ["candidates"]
    assert answer.outcome is AnswerOutcome.ROWS


def test_settings_are_honoured_and_checked(model: Model, database: Database) -> None:
    settings = AgentSettings(num_candidates=1, max_rounds=0, num_checks=0, max_keyword_tokens=0)
    (answer,) = ask_many([Question("x")], database, backend(model), settings=settings)
    assert [cost.stage for cost in answer.stages] == [
        "retrieve_values",
        "link_schema",
        "generate_candidate",
    ]
    with pytest.raises(ConfigError, match="fallback_model='small': must be None"):
        ask_many(
            [Question("x")],
            database,
            backend(model),
            settings=AgentSettings(fallback_model="small"),
        )
    assert ask_many([], database, backend(model)) == []
    with pytest.raises(ConfigError, match="max_parallel=0"):
        ask_many([Question("x")], database, backend(model), max_parallel=0)
    with pytest.raises(ConfigError, match="No such file"):
        ask_many([Question("x")], Path("absent.sqlite"), backend(model))
