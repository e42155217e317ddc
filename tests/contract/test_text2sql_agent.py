"""The agent as a library, against a real HTTP server that answers from a script.

The server notes every request, its tag, and whether its client hung up before the answer.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner

from hexgen_sglang.cli.main import application
from hexgen_sglang.cluster.ports import free_port
from hexgen_sglang.core.errors import ConfigError, ProtocolError
from hexgen_sglang.protocol.tag import HEADER_PREFIX, WorkflowTag, tag_from_body
from hexgen_sglang.text2sql import (
    Agent,
    AgentEvent,
    AgentSettings,
    Answer,
    AnswerOutcome,
    Database,
    EventKind,
    Question,
)
from hexgen_sglang.text2sql.evaluation.agent import AgentPredictor
from hexgen_sglang.text2sql.evaluation.questions import EvalQuestion
from hexgen_sglang.text2sql.evaluation.run import judge
from hexgen_sglang.text2sql.sample import make_sample_database
from hexgen_sglang.text2sql.source import Dialect, Source

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = {"budget_ms", "siblings", "sibling_index"}
ALL_STAGES = AgentSettings(agree_at=0)
COUNT = " SELECT COUNT(*) FROM station"


@dataclass
class Model:
    """Speaks /v1/completions, /v1/models and the end of workflows; answers as its script says."""

    script: Callable[[WorkflowTag, dict[str, Any]], Awaitable[web.StreamResponse]]
    seen: list[tuple[WorkflowTag, dict[str, Any]]] = field(default_factory=list)
    authorizations: set[str | None] = field(default_factory=set)
    hung_up: list[WorkflowTag] = field(default_factory=list)
    told: list[tuple[str, str]] = field(default_factory=list)
    num_listings: int = 0
    knows_workflows: bool = True
    url: str = ""

    async def models(self, request: web.Request) -> web.StreamResponse:
        self.num_listings += 1
        return web.json_response({"data": [{"id": "first"}, {"id": "second"}]})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        tag, body = tag_of(request), await request.json()
        self.seen.append((tag, body))
        self.authorizations.add(request.headers.get("Authorization"))
        try:
            return await self.script(tag, body)
        except asyncio.CancelledError:
            self.hung_up.append(tag)
            raise

    async def workflows(self, request: web.Request) -> web.StreamResponse:
        self.told.append((request.method, request.match_info["workflow_id"]))
        return web.json_response({}, status=200 if self.knows_workflows else 404)

    def stages(self) -> list[tuple[str | None, int]]:
        return [(tag.stage, tag.sibling_index) for tag, _ in self.seen]


def tag_of(request: web.Request) -> WorkflowTag:
    """The tag as a coordinator reads it from headers."""
    given = {
        name.lower().removeprefix(HEADER_PREFIX).replace("-", "_"): value
        for name, value in request.headers.items()
        if name.lower().startswith(HEADER_PREFIX)
    }
    return tag_from_body(
        {name: int(value) if name in NUMBERS else value for name, value in given.items()}
    )


def completion(text: str) -> web.StreamResponse:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 60},
    }
    choice = {"text": text, "finish_reason": "stop"}
    return web.json_response({"choices": [choice], "usage": usage})


async def answer_well(tag: WorkflowTag, body: dict[str, Any]) -> web.StreamResponse:
    """A model that first gets a column wrong, corrects it, and disagrees with itself."""
    candidates = (COUNT, " SELECT COUNT(stations) FROM station", " SELECT 7;")
    return completion(
        {
            "link_schema": " station",
            "extract_keywords": " cargo, stations",
            "generate_candidate": candidates[tag.sibling_index],
            "revise": " SELECT COUNT(station_id) FROM station",
            "generate_unit_test": " There is one number.",
            "evaluate": " yes" if tag.sibling_index == 0 else " no",
        }[str(tag.stage)]
    )


async def for_ever(tag: WorkflowTag, body: dict[str, Any]) -> web.StreamResponse:
    """Never an answer."""
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


def hanging_at(*requests: tuple[str, int]) -> Any:
    """As `answer_well`, and never an answer to these (stage, sibling)."""

    async def script(tag: WorkflowTag, body: dict[str, Any]) -> web.StreamResponse:
        hangs = (tag.stage, tag.sibling_index) in requests
        return await (for_ever if hangs else answer_well)(tag, body)

    return script


@pytest.fixture
async def model() -> AsyncIterator[Model]:
    served = Model(answer_well)
    app = web.Application()
    app.router.add_get("/v1/models", served.models)
    app.router.add_post("/v1/completions", served.completions)
    app.router.add_post("/workflows/{workflow_id}/end", served.workflows)
    app.router.add_delete("/workflows/{workflow_id}", served.workflows)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    served.url = f"http://127.0.0.1:{port}"
    yield served
    await runner.cleanup()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    path = tmp_path_factory.mktemp("agent") / "bikes.sqlite"
    make_sample_database(path)
    with Database(path) as opened:
        yield opened


async def ask(
    model: Model,
    database: Database,
    text: str = "How many stations are there?",
    settings: AgentSettings = ALL_STAGES,
    **options: Any,
) -> Answer:
    async with Agent(model.url, database, settings=settings) as agent:
        return await agent.ask(text, **options)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens at the server."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  (the conditions are about connections)
            await asyncio.sleep(0.01)


async def test_one_question_goes_through_all_stages(model: Model, database: Database) -> None:
    answer = await ask(model, database, deadline_s=60)
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
    candidates = answer.stages[4]
    assert (candidates.prompt_tokens, candidates.cached_tokens) == (300, 180)
    assert (candidates.output_tokens, candidates.num_failed, candidates.num_late) == (21, 0, 0)
    assert (answer.met_deadline, answer.deadline_s, answer.dropped) == (True, 60, ())
    assert answer.failures[0].startswith("error: no such column: stations")


async def test_requests_are_tagged_completions_that_share_a_prefix(
    model: Model, database: Database
) -> None:
    async with Agent(
        f"{model.url}/v1", database, api_key="secret", settings=ALL_STAGES, tenant="acme"
    ) as agent:
        answer = await agent.ask(Question("How many stations are there?", deadline_s=60))
    tags = [tag for tag, _ in model.seen]
    assert {(tag.workflow_id, tag.workflow_type, tag.tenant) for tag in tags} == {
        (answer.workflow_id, "text2sql", "acme")
    }
    assert all(tag.budget_ms is not None and 0 < tag.budget_ms <= 60_000 for tag in tags)
    assert {(tag.stage, tag.siblings) for tag in tags} == {
        ("link_schema", 1),
        ("extract_keywords", 1),
        ("generate_candidate", 3),
        ("revise", 1),
        ("generate_unit_test", 2),
        ("evaluate", 2),
    }
    assert model.authorizations == {"Bearer secret"}
    assert {body["model"] for _, body in model.seen} == {"first"}
    assert model.num_listings == 1
    prefix = model.seen[0][1]["prompt"].removesuffix("Tables:")
    assert prefix.endswith("Q: How many stations are there?\n")
    assert all(body["prompt"].startswith(prefix) for _, body in model.seen)
    # The keywords led to values, which later stages share.
    assert all(
        body["prompt"][len(prefix) :].startswith("Values: bike.kind = 'cargo'")
        for tag, body in model.seen
        if tag.stage not in ("link_schema", "extract_keywords")
    )
    assert model.told == [("POST", answer.workflow_id)]


async def test_events_tell_every_stage(model: Model, database: Database) -> None:
    events: list[AgentEvent] = []
    answer = await ask(model, database, on_event=events.append)
    kinds = [event.kind for event in events]
    assert (kinds[0], kinds[-1]) == (EventKind.STARTED, EventKind.FINISHED)
    assert kinds.count(EventKind.STAGE_STARTED) == kinds.count(EventKind.STAGE_FINISHED) == 8
    assert events[-1].answer == answer
    assert [event.cost for event in events if event.cost is not None] == list(answer.stages)
    assert {event.workflow_id for event in events} == {answer.workflow_id}


async def test_late_siblings_are_aborted_once_enough_agree(
    model: Model, database: Database
) -> None:
    async def script(tag: WorkflowTag, body: dict[str, Any]) -> web.StreamResponse:
        if tag.stage != "generate_candidate":
            return await answer_well(tag, body)
        return completion(COUNT) if tag.sibling_index != 1 else await for_ever(tag, body)

    model.script = script
    answer = await ask(model, database, settings=AgentSettings())
    assert answer.rows == ((22,),)
    assert answer.stages[-1].stage == "generate_candidate"
    assert answer.stages[-1].num_late == 1
    assert len(answer.candidates) == 2
    assert answer.failures == ()
    await until(lambda: len(model.hung_up) == 1)
    assert model.hung_up[0].sibling_index == 1


async def test_cancelling_a_question_closes_all_its_connections(
    model: Model, database: Database
) -> None:
    model.script = hanging_at(*(("generate_candidate", index) for index in range(3)))
    async with Agent(model.url, database) as agent:
        asking = asyncio.create_task(agent.ask("How many?"))
        await until(lambda: len(model.seen) == 5)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: len(model.hung_up) == 3)
        model.script = answer_well
        assert (await agent.ask("How many stations?")).outcome is AnswerOutcome.ROWS
    assert {tag.sibling_index for tag in model.hung_up} == {0, 1, 2}
    methods = {workflow_id: method for method, workflow_id in model.told}
    assert methods[str(model.hung_up[0].workflow_id)] == "DELETE"
    assert sorted(methods.values()) == ["DELETE", "POST"]


async def test_an_error_in_on_event_is_the_callers_and_leaves_nothing_behind(
    model: Model, database: Database
) -> None:
    model.script = hanging_at(("extract_keywords", 0))

    def stumble(event: AgentEvent) -> None:
        if event.kind is EventKind.STAGE_FINISHED and event.stage == "link_schema":
            raise LookupError("the caller's")

    with pytest.raises(BaseExceptionGroup) as raised:
        await ask(model, database, on_event=stumble)
    assert raised.value.split(LookupError)[1] is None
    await until(lambda: [tag.stage for tag in model.hung_up] == ["extract_keywords"])


async def refuse(tag: WorkflowTag, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response({"error": {"message": "scripted"}}, status=400)


async def fail(tag: WorkflowTag, body: dict[str, Any]) -> web.StreamResponse:
    return web.Response(status=503, text="scripted")


async def babble(tag: WorkflowTag, body: dict[str, Any]) -> web.StreamResponse:
    return web.Response(text="<html>")


async def say_nothing(tag: WorkflowTag, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response({"choices": []})


async def abort(tag: WorkflowTag, body: dict[str, Any]) -> web.StreamResponse:
    return web.json_response({"choices": [{"text": "SEL", "finish_reason": "abort"}]})


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (refuse, "ProtocolError: .*HTTP 400: .*scripted"),
        (fail, "WorkerUnavailableError: .*HTTP 503: scripted"),
        (babble, "WorkerUnavailableError: .*expected a JSON object, got b'<html>'"),
        (say_nothing, r"ProtocolError: .*no choices\[0\].text"),
        (abort, "WorkerUnavailableError: .*aborted"),
    ],
)
async def test_a_server_that_always_fails_is_an_answer(
    model: Model, database: Database, script: Any, words: str
) -> None:
    model.script = script
    answer = await ask(model, database)
    assert answer.outcome is AnswerOutcome.MODEL_FAILED
    assert pytest.raises(AssertionError, match=words).matches(AssertionError(answer.message))
    asked = [(cost.num_requests, cost.num_failed) for cost in answer.stages if cost.num_requests]
    assert asked == [(1, 1), (1, 1), (3, 3)]
    assert model.told == [("POST", answer.workflow_id)]


@pytest.mark.parametrize(
    "answer_bytes",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{",
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"cho',
        b"NONSENSE\r\n\r\n",
    ],
)
async def test_connections_that_break_off_are_an_answer(
    database: Database, answer_bytes: bytes
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer_bytes)
        await writer.drain()
        if answer_bytes:
            writer.write_eof()
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with (
        server,
        Agent(
            f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", database, model="any"
        ) as agent,
    ):
        answer = await agent.ask("How many?")
    assert answer.outcome is AnswerOutcome.MODEL_FAILED
    assert len(answer.failures) == 5
    assert all("WorkerUnavailableError: POST http" in line for line in answer.failures)


async def test_a_server_that_is_not_there_is_an_answer(database: Database) -> None:
    async with Agent(f"http://127.0.0.1:{free_port()}", database) as agent:
        answer = await agent.ask("How many?")
    assert answer.outcome is AnswerOutcome.MODEL_FAILED
    assert "/v1/models" in answer.message


async def test_silence_is_given_up_after_the_timeout(model: Model, database: Database) -> None:
    model.script = for_ever
    settings = AgentSettings(max_keyword_tokens=0)
    async with Agent(model.url, database, settings=settings, timeout_s=0.2) as agent:
        answer = await agent.ask("How many?")
    assert answer.outcome is AnswerOutcome.MODEL_FAILED
    assert "silent for 0.2 s" in answer.message
    await until(lambda: len(model.hung_up) == 4)


async def test_a_full_queue_is_waited_out(model: Model, database: Database) -> None:
    refused: set[tuple[str | None, int]] = set()

    async def script(tag: WorkflowTag, body: dict[str, Any]) -> web.StreamResponse:
        key = tag.stage, tag.sibling_index
        if key not in refused:
            refused.add(key)
            return web.Response(status=429, headers={"Retry-After": "0.05"})
        return await answer_well(tag, body)

    model.script = script
    answer = await ask(model, database)
    assert answer.outcome is AnswerOutcome.ROWS
    assert sum(cost.num_failed for cost in answer.stages) == 0
    assert len(model.seen) == 2 * len(refused)


async def test_the_deadline_cuts_what_the_answer_can_do_without(
    model: Model, database: Database
) -> None:
    model.script = hanging_at(("link_schema", 0))
    answer = await ask(model, database, deadline_s=1.0)
    assert (answer.outcome, answer.rows) == (AnswerOutcome.ROWS, ((22,),))
    assert answer.met_deadline is False
    cut = {cost.stage: cost.num_late for cost in answer.stages if cost.num_late}
    assert cut["link_schema"] == 1
    assert [str(one) for one in answer.dropped] == ["candidates 3 -> 1: the deadline had passed"]
    await until(lambda: "link_schema" in [tag.stage for tag in model.hung_up])


async def test_the_deadline_cuts_candidates_once_there_is_an_answer(
    model: Model, database: Database
) -> None:
    model.script = hanging_at(("generate_candidate", 1), ("generate_candidate", 2))
    answer = await ask(model, database, deadline_s=5.0)
    assert (answer.outcome, answer.rows) == (AnswerOutcome.ROWS, ((22,),))
    assert answer.stages[-1].num_late == 2
    assert answer.met_deadline is False
    await until(lambda: len(model.hung_up) == 2)


async def test_a_near_deadline_does_less_and_says_so(model: Model, database: Database) -> None:
    async def slowly(tag: WorkflowTag, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.4)
        return await answer_well(tag, body)

    model.script = slowly
    settings = AgentSettings(agree_at=0, fallback_model="second")
    async with Agent(model.url, database, settings=settings) as agent:
        first = await agent.ask("How many stations?")
        assert (first.dropped, len(first.candidates)) == ((), 3)
        model.seen.clear()
        second = await agent.ask("How many stations?", deadline_s=0.3)
    assert second.outcome is AnswerOutcome.ROWS
    assert len(second.candidates) == 1
    assert {one.knob.value for one in second.dropped} == {"model", "candidates"}
    assert all(one.expected_s > one.remaining_s for one in second.dropped)
    assert {body["model"] for _, body in model.seen} == {"second"}


async def test_a_server_without_workflows_is_told_once(model: Model, database: Database) -> None:
    model.knows_workflows = False
    async with Agent(model.url, database, settings=AgentSettings(max_rounds=0)) as agent:
        await agent.ask("How many?")
        await until(lambda: len(model.told) == 1)
        await agent.ask("How many?")
    assert len(model.told) == 1


async def test_many_questions_at_once_do_not_mix(model: Model, database: Database) -> None:
    async with Agent(model.url, database, settings=ALL_STAGES) as agent:
        answers = await asyncio.gather(
            *(agent.ask(Question(f"How many? {number}", f"q{number}")) for number in range(8))
        )
    assert [answer.question.question_id for answer in answers] == [f"q{n}" for n in range(8)]
    assert len({answer.workflow_id for answer in answers}) == 8
    for answer in answers:
        prompts = [b["prompt"] for tag, b in model.seen if tag.workflow_id == answer.workflow_id]
        assert len(prompts) == 10
        assert all(f"Q: {answer.question.text}\n" in prompt for prompt in prompts)


async def test_wrong_use_is_refused(model: Model, database: Database) -> None:
    with pytest.raises(ConfigError, match="base_url='127"):
        Agent("127.0.0.1:8000", database)
    with pytest.raises(ConfigError, match="timeout_s=0"):
        Agent(model.url, database, timeout_s=0)
    with pytest.raises(ProtocolError, match="tenant"):
        Agent(model.url, database, tenant="x" * 65)
    agent = Agent(model.url, database)
    with pytest.raises(ConfigError, match="async with"):
        await agent.ask("How many?")
    async with agent:
        with pytest.raises(ConfigError, match="must have text"):
            await agent.ask("  ")
        with pytest.raises(ConfigError, match="deadline_s=0"):
            await agent.ask("How many?", deadline_s=0)
    with pytest.raises(ConfigError, match="No such file"):
        async with Agent(model.url, "absent.sqlite"):
            pass
    # A database that was given stays open.
    assert database.sandbox.run("SELECT 1").rows == ((1,),)


async def test_the_example_runs_without_torch_sglang_and_duckdb(
    model: Model, database: Database
) -> None:
    example = ROOT / "launch" / "examples" / "ask_a_database.py"
    arguments = [
        "--url",
        f"{model.url}/v1",
        "--db",
        database.source.location,
        "Stations?",
        "Bikes?",
    ]
    code = f"""
import runpy, sys
sys.argv = ["example", *{arguments!r}]
runpy.run_path({str(example)!r}, run_name="__main__")
heavy = {{"torch", "sglang", "transformers", "duckdb"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("SQL: SELECT COUNT(*) FROM station\n22\n") == 2
    assert done.stdout.startswith("Q: Stations?")


ASKED = [
    EvalQuestion("a", "", "How many stations?", "", ("SELECT COUNT(*) FROM station",), "easy"),
    EvalQuestion("b", "", "How many bikes?", "", ("SELECT COUNT(*) FROM bike",), "easy"),
]


async def test_the_evaluation_measures_what_the_agent_does(
    model: Model, database: Database
) -> None:
    predictor = AgentPredictor(model.url, "first", ALL_STAGES, 2, 60.0, "secret")

    def predict() -> dict[str, Any]:
        return {
            question.question_id: judge(question, prediction, database.sandbox)
            for question, prediction in predictor.predict(database.source, ASKED)
        }

    results = await asyncio.to_thread(predict)
    assert (results["a"].is_right, results["b"].is_right) == (True, False)
    assert {one.outcome for one in results.values()} == {"rows"}
    one = results["a"]
    assert (one.num_rounds, one.num_requests) == (1, len(model.seen) // 2)
    assert one.output_tokens == 7 * one.num_requests
    assert one.elapsed_s is not None
    assert one.met_deadline is True
    assert model.authorizations == {"Bearer secret"}
    with pytest.raises(ConfigError, match="max_parallel=0"):
        AgentPredictor(model.url, "first", ALL_STAGES, 0, 60.0)


@pytest.mark.parametrize(
    ("url", "location", "message"),
    [
        ("http://127.0.0.1:9", __file__, "not a database"),
        ("127.0.0.1:9", __file__, "base_url="),
    ],
)
def test_an_evaluation_that_cannot_begin_says_why(url: str, location: str, message: str) -> None:
    predictor = AgentPredictor(url, "first", ALL_STAGES, 2, 60.0)
    with pytest.raises(ConfigError, match=message):
        list(predictor.predict(Source(Dialect.SQLITE, location, location), ASKED))


async def test_an_evaluation_that_is_given_up_aborts_what_is_out(
    model: Model, database: Database
) -> None:
    async def script(tag: WorkflowTag, body: dict[str, Any]) -> web.StreamResponse:
        is_second = "Q: How many bikes?\n" in body["prompt"]
        return await (for_ever if is_second else answer_well)(tag, body)

    model.script = script
    predictor = AgentPredictor(model.url, "first", ALL_STAGES, 2, 60.0)

    def predict_first() -> str:
        predictions = predictor.predict(database.source, ASKED)
        question, _ = next(predictions)
        predictions.close()
        return question.question_id

    assert await asyncio.to_thread(predict_first) == "a"
    await until(lambda: len(model.hung_up) == 2)
    assert {tag.stage for tag in model.hung_up} == {"link_schema", "extract_keywords"}


async def test_the_ask_command_takes_any_openai_server(model: Model, database: Database) -> None:
    model.knows_workflows = False

    def run(*options: str) -> Any:
        arguments = ["ask", "How many stations?", "--url", f"{model.url}/v1", *options]
        arguments += ["--db", database.source.location]
        return CliRunner().invoke(application, arguments)

    done = await asyncio.to_thread(run, "--json", "--api-key", "secret")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert (answer["outcome"], answer["rows"]) == ("rows", [[22]])
    assert all(stage["workers"] == [] for stage in answer["stages"])
    assert {body["model"] for _, body in model.seen} == {"first"}
    assert model.authorizations == {"Bearer secret"}

    model.seen.clear()
    shown = await asyncio.to_thread(run, "--model", "second")
    assert "SELECT COUNT(*) FROM station" in shown.stdout
    assert "deadline met" in shown.stdout
    assert {body["model"] for _, body in model.seen} == {"second"}
    nobody = await asyncio.to_thread(run, "--url", "http://127.0.0.1:9")
    assert "no OpenAI-compatible server answers there" in str(nobody.exception)
