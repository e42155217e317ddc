"""SGLang frontend programs on `HexgenEndpoint`, against a real HTTP server that records tags.

The server speaks SGLang's `/generate` (plain, streaming, log-probabilities) and the
coordinator's routes that the backend relies on; what it answers is computed from the prompt,
so that texts and choices can be checked.
"""

from __future__ import annotations

import ast
import asyncio
import gc
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from hexgen_sglang.core.errors import (
    AdmissionRejected,
    ConfigError,
    HexgenError,
    ProtocolError,
    WorkerUnavailableError,
)
from hexgen_sglang.protocol.tag import WorkflowTag, tag_from_body

sgl = pytest.importorskip("sglang")

from hexgen_sglang.client import HexgenEndpoint, Workflow, interpreter, workflow_of  # noqa: E402

# SGLang's interpreter reports an error of a program by a warning from its own thread.
interpreter_warns = pytest.mark.filterwarnings("ignore:Error in stream_executor")


class Server:
    """An HTTP server on a free loopback port, in a thread of its own."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.ended: list[str] = []
        self.refusals: list[tuple[int, dict[str, str]]] = []
        self.models = ["SmolLM2-135M-Instruct"]
        self.with_logprobs = True
        self.hold = threading.Event()
        self.hold.set()
        self.url = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = threading.Event()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(20)

    def stop(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(20)

    @property
    def tags(self) -> list[WorkflowTag]:
        return [tag_from_body(body["hexgen"]) for body in self.bodies]

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        application = web.Application()
        application.router.add_get("/v1/models", self._models)
        application.router.add_post("/generate", self._generate)
        application.router.add_post("/workflows/{id}/end", self._end)
        runner = web.AppRunner(application, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._started.set()
        await self._stopped.wait()
        await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": one} for one in self.models]})

    async def _end(self, request: web.Request) -> web.Response:
        self.ended.append(request.match_info["id"])
        return web.json_response({})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        await asyncio.to_thread(self.hold.wait)
        if self.refusals:
            status, headers = self.refusals.pop(0)
            return web.json_response({"error": {"message": "no"}}, status=status, headers=headers)
        answer = self._answer(body)
        if not body.get("stream"):
            return web.json_response(answer)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for end in range(1, len(answer["text"]) + 1):
            part = {**answer, "text": answer["text"][:end]}
            await response.write(f"data: {json.dumps(part)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        text = body.get("text", "")
        meta: dict[str, Any] = {
            "prompt_tokens": len(text.split()),
            "cached_tokens": 0,
            "completion_tokens": 1,
            "finish_reason": {"type": "stop"},
        }
        if "ABORT" in text:
            meta["finish_reason"] = {"type": "abort", "message": "cancelled"}
        if body.get("return_logprob") and self.with_logprobs:
            meta["input_token_logprobs"] = self._logprobs(text, body.get("input_ids"))
            meta["output_token_logprobs"] = []
        return {"text": f"<{len(text)}>", "meta_info": meta}

    @staticmethod
    def _logprobs(text: str, input_ids: list[int] | None) -> list[list[Any]]:
        """The more often the prompt's last word occurs before, the likelier it is."""
        if input_ids is not None:
            return [[None, input_ids[0], None], *([-2.0, one, None] for one in input_ids[1:])]
        words = text.split()
        return [[-1.0, 1, "?"], [-1.0 / (1 + words[:-1].count(words[-1])), 2, words[-1]]]


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    running.start()
    before = set(threading.enumerate())
    yield running
    # Programs end in threads of their own, which still talk to the server.
    running.hold.set()
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        if not thread.name.startswith("asyncio_"):
            thread.join(20)
    running.stop()


@sgl.function
def two_steps(s: Any, question: str) -> None:
    s += "Q: " + question + "\n"
    s += "Draft: " + sgl.gen("draft", max_tokens=8) + "\n"
    s += "Final: " + sgl.gen("final answer!", max_tokens=8)


@sgl.function
def forked(s: Any, question: str) -> None:
    s += "Q: " + question + "\n"
    forks = s.fork(3)
    for position, fork in enumerate(forks.states):
        fork += f"Hint {position}: " + sgl.gen("sql", max_tokens=8)
    forks.join()
    s += "Best of " + str(len(s["sql"])) + ": " + sgl.gen("pick", max_tokens=8)


def eventually(condition: Any, timeout_s: float = 20) -> None:
    """Wait until it holds."""
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "the condition never held"
        time.sleep(0.005)


def test_a_run_is_a_workflow_and_a_variable_is_a_stage(server: Server) -> None:
    backend = HexgenEndpoint(server.url, deadline_s=20, workflow_type="demo", tenant="shop")
    state = two_steps.run(question="how many?", backend=backend)
    assert state["draft"] == "<20>"
    assert state.text().startswith("Q: how many?\nDraft: <20>\nFinal: <")
    draft, final = server.tags
    assert [draft.stage, final.stage] == ["draft", "final_answer_"]
    assert draft.workflow_id == final.workflow_id
    assert (draft.workflow_type, draft.tenant) == ("demo", "shop")
    assert draft.budget_ms is not None
    assert final.budget_ms is not None
    assert 1 <= final.budget_ms <= draft.budget_ms <= 20_000
    eventually(lambda: server.ended == [draft.workflow_id])


def test_each_run_is_another_workflow_also_in_a_batch(server: Server) -> None:
    backend = HexgenEndpoint(server.url, deadline_s=20)
    same = {"question": "the very same dictionary"}
    states = two_steps.run_batch([same, same, same, same], backend=backend, num_threads=4)
    assert {state["draft"] for state in states} == {"<35>"}
    tags = [tag for tag in server.tags if tag.stage != "prefix"]
    assert len({tag.workflow_id for tag in tags}) == 4
    # What a batch has in common may be sent ahead; it is no part of any run.
    assert all(tag.final for tag in server.tags if tag.stage == "prefix")
    for workflow_id in {tag.workflow_id for tag in tags}:
        stages = [tag.stage for tag in tags if tag.workflow_id == workflow_id]
        assert stages == ["draft", "final_answer_"]
    eventually(lambda: sorted(server.ended) == sorted({tag.workflow_id for tag in tags}))


def test_a_long_common_prefix_is_sent_ahead_of_a_batch(server: Server) -> None:
    @sgl.function
    def long_prefix(s: Any, question: Any) -> None:
        s += "x" * 200
        s += question
        s += sgl.gen("a", max_tokens=2)

    batch = [{"question": "1"}, {"question": "2"}]
    long_prefix.run_batch(batch, backend=HexgenEndpoint(server.url, deadline_s=9))
    ahead, *runs = server.tags
    assert (ahead.stage, ahead.final, ahead.budget_ms) == ("prefix", True, None)
    assert server.bodies[0]["text"] == "x" * 200
    assert ahead.workflow_id not in {tag.workflow_id for tag in runs}
    assert [tag.stage for tag in runs] == ["a", "a"]


def test_the_default_backend_works_as_documented(server: Server) -> None:
    sgl.set_default_backend(HexgenEndpoint(server.url))
    try:
        assert two_steps.run(question="x")["draft"].startswith("<")
    finally:
        sgl.set_default_backend(None)
    assert [tag.budget_ms for tag in server.tags] == [None] * len(server.tags)


def test_forks_are_siblings_of_one_stage(server: Server) -> None:
    state = forked.run(question="x", backend=HexgenEndpoint(server.url, deadline_s=9))
    assert len(state["sql"]) == 3
    siblings = [tag for tag in server.tags if tag.stage == "sql"]
    assert {tag.siblings for tag in siblings} == {3}
    assert sorted(tag.sibling_index for tag in siblings) == [0, 1, 2]
    (pick,) = [tag for tag in server.tags if tag.stage == "pick"]
    assert (pick.siblings, pick.workflow_id) == (1, siblings[0].workflow_id)
    texts = [body["text"] for body in server.bodies if body["hexgen"]["stage"] == "sql"]
    assert sorted(texts) == [f"Q: x\nHint {position}: " for position in range(3)]


def test_a_fork_in_a_fork_numbers_all_leaves(server: Server) -> None:
    @sgl.function
    def nested(s: Any) -> None:
        for outer in s.fork(2).states:
            inner = outer.fork(3)
            inner += sgl.gen("leaf", max_tokens=4)
            inner.join()

    nested.run(backend=HexgenEndpoint(server.url))
    assert {tag.siblings for tag in server.tags} == {6}
    assert sorted(tag.sibling_index for tag in server.tags) == list(range(6))


def test_a_common_prefix_is_sent_on_its_own_only_when_asked(server: Server) -> None:
    @sgl.function
    def widen(s: Any) -> None:
        s += "Q: x\n"
        s.sync()  # the interpreter commits only text that it has already taken up
        forks = s.fork(2)
        forks += sgl.gen("sql", max_tokens=2)
        forks.join()

    widen.run(backend=HexgenEndpoint(server.url))
    assert {tag.stage for tag in server.tags} == {"sql"}
    server.bodies.clear()
    widen.run(backend=HexgenEndpoint(server.url, commit_prefix=True))
    (commit,) = [body for body in server.bodies if body["hexgen"]["stage"] == "prefix"]
    assert commit["text"] == "Q: x\n"
    assert commit["sampling_params"]["max_new_tokens"] == 0


def test_variables_can_be_mapped_to_stages(server: Server) -> None:
    backend = HexgenEndpoint(server.url, stages={"sql": "generate_candidate"})
    forked.run(question="x", backend=backend)
    assert sorted({str(tag.stage) for tag in server.tags}) == ["generate_candidate", "pick"]
    with pytest.raises(ProtocolError, match="stage"):
        HexgenEndpoint(server.url, stages={"sql": "not a stage"})


def test_reused_and_unnamed_variables_keep_their_stages(server: Server) -> None:
    @sgl.function
    def loop(s: Any) -> None:
        for _ in range(2):
            s += sgl.gen("thought", max_tokens=2) + sgl.gen("action", max_tokens=2)
        s += sgl.gen(max_tokens=2)

    loop.run(backend=HexgenEndpoint(server.url)).sync()
    stages = [tag.stage for tag in server.tags]
    assert stages == ["thought", "action", "thought", "action", "generate"]


def test_streaming_gives_every_piece_once(server: Server) -> None:
    state = two_steps.run(
        question="how many?", backend=HexgenEndpoint(server.url, deadline_s=9), stream=True
    )
    assert "".join(state.text_iter("draft")) == "<20>"
    assert state.text().startswith("Q: how many?\nDraft: <20>\nFinal: <")
    assert [tag.stage for tag in server.tags] == ["draft", "final_answer_"]
    eventually(lambda: server.ended == [server.tags[0].workflow_id])


def test_a_program_without_threads_runs_too(server: Server) -> None:
    backend = HexgenEndpoint(server.url, deadline_s=9)
    state = two_steps.run(question="how many?", backend=backend, use_thread=False)
    assert state["draft"] == "<20>"
    assert server.ended == [server.tags[0].workflow_id]


@pytest.mark.parametrize(
    "method", ["token_length_normalized", "unconditional_likelihood_normalized"]
)
def test_select_takes_the_likelier_choice(server: Server, method: str) -> None:
    @sgl.function
    def choose(s: Any) -> None:
        s += "cat dog dog is a"
        s += sgl.select("animal", choices=[" cat", " dog"], choices_method=getattr(sgl, method))

    state = choose.run(backend=HexgenEndpoint(server.url, deadline_s=9))
    assert state["animal"] == " dog"
    first, *choices = server.tags
    assert first.stage == "prefix.animal"
    assert {(tag.stage, tag.siblings) for tag in choices} == {("animal", 2)}
    bodies = server.bodies[1:3]
    assert sorted(body["text"] for body in bodies) == [
        "cat dog dog is a cat",
        "cat dog dog is a dog",
    ]


@interpreter_warns
def test_select_without_log_probabilities_is_a_clear_error(server: Server) -> None:
    server.with_logprobs = False

    @sgl.function
    def choose(s: Any) -> None:
        s += "a" + sgl.select("animal", choices=[" cat", " dog"])

    state = choose.run(backend=HexgenEndpoint(server.url))
    assert error_of(state, "input_token_logprobs")


def test_the_program_can_ask_for_its_workflow(server: Server) -> None:
    seen: list[Workflow | None] = []

    @sgl.function
    def curious(s: Any) -> None:
        seen.append(workflow_of(s))
        s += sgl.gen("a", max_tokens=2)

    curious.run(backend=HexgenEndpoint(server.url, deadline_s=30)).sync()
    assert seen[0] is not None
    assert seen[0].workflow_id == server.tags[0].workflow_id
    assert 0 < (seen[0].remaining_s() or 0) <= 30


def test_a_passed_deadline_still_sends_a_valid_tag(server: Server) -> None:
    @sgl.function
    def slow(s: Any) -> None:
        s += sgl.gen("a", max_tokens=2)
        s["a"]
        workflow = workflow_of(s)
        assert workflow is not None
        eventually(lambda: (workflow.remaining_s() or 0) < 0)
        s += sgl.gen("b", max_tokens=2)

    slow.run(backend=HexgenEndpoint(server.url, deadline_s=0.05)).sync()
    assert [tag.budget_ms for tag in server.tags][-1] == 1


def test_deadlines_can_differ_from_run_to_run(server: Server) -> None:
    backend = HexgenEndpoint(server.url, deadline_s=5)
    two_steps.run(question="x", backend=backend.with_deadline(50)).sync()
    two_steps.run(question="x", backend=backend).sync()
    budgets = [tag.budget_ms or 0 for tag in server.tags]
    assert all(40_000 < budget <= 50_000 for budget in budgets[:2])
    assert all(0 < budget <= 5_000 for budget in budgets[2:])


def test_the_end_is_told_only_after_the_last_answer(server: Server) -> None:
    server.hold.clear()
    state = two_steps.run(question="x", backend=HexgenEndpoint(server.url))
    eventually(lambda: len(server.bodies) == 1)
    assert server.ended == []
    server.hold.set()
    assert state.text().count("<") == 2
    eventually(lambda: server.ended == [server.tags[0].workflow_id])
    assert len(server.bodies) == 2


def test_a_program_that_asks_nothing_ends_nothing(server: Server) -> None:
    @sgl.function
    def silent(s: Any) -> None:
        s += "no question"

    silent.run(backend=HexgenEndpoint(server.url)).sync()
    assert server.ended == []


def test_a_full_queue_is_waited_out_as_told(server: Server) -> None:
    server.refusals = [(429, {"Retry-After": "0.1"}), (429, {"Retry-After": "0.1"})]
    started_s = time.monotonic()
    state = two_steps.run(question="how many?", backend=HexgenEndpoint(server.url, deadline_s=20))
    assert state["draft"] == "<20>"
    assert time.monotonic() - started_s >= 0.2
    budgets = [tag.budget_ms or 0 for tag in server.tags[:3]]
    assert budgets[0] >= budgets[1] + 90 >= budgets[2] + 180


def error_of(state: Any, match: str) -> HexgenError:
    """The error a program's executor died of, once its thread has ended."""
    state.stream_executor.worker.join(20)
    error = state.stream_executor.error_
    assert isinstance(error, HexgenError)
    assert match in str(error)
    return error


@interpreter_warns
@pytest.mark.parametrize(
    ("refusal", "kind", "match"),
    [
        ((429, {"Retry-After": "4"}), AdmissionRejected, "429"),
        ((400, {}), ProtocolError, "400"),
        ((503, {}), WorkerUnavailableError, "503"),
    ],
)
def test_a_refusal_is_an_error_of_ours(
    server: Server, refusal: Any, kind: type[HexgenError], match: str
) -> None:
    server.refusals = [refusal]
    state = two_steps.run(question="x", backend=HexgenEndpoint(server.url, deadline_s=3))
    assert isinstance(error_of(state, match), kind)
    eventually(lambda: server.ended == [server.tags[0].workflow_id])


@interpreter_warns
@pytest.mark.parametrize("stream", [False, True])
def test_an_aborted_request_is_an_error_not_an_answer(server: Server, stream: bool) -> None:
    state = two_steps.run(question="ABORT", backend=HexgenEndpoint(server.url), stream=stream)
    error_of(state, "aborted: cancelled")


@interpreter_warns
def test_more_than_one_completion_is_refused(server: Server) -> None:
    state = two_steps.run(question="x", backend=HexgenEndpoint(server.url), n=2)
    error_of(state, "n=2")


def test_a_backend_without_a_coordinator_or_model_is_refused(server: Server) -> None:
    with pytest.raises(WorkerUnavailableError, match=r"127\.0\.0\.1:9/v1/models"):
        HexgenEndpoint("http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="deadline_s=0"):
        HexgenEndpoint(server.url, deadline_s=0)
    server.models = []
    with pytest.raises(WorkerUnavailableError, match="no worker serves a model yet"):
        HexgenEndpoint(server.url)


def test_flushing_a_coordinator_is_refused(server: Server) -> None:
    with pytest.raises(ConfigError, match="flush_cache"):
        sgl.flush_cache(HexgenEndpoint(server.url))


async def test_a_tagged_workflow_ends_with_its_block(server: Server) -> None:
    async with Workflow(type="demo", url=server.url) as workflow:
        assert server.ended == []
    assert server.ended == [workflow.workflow_id]


@pytest.mark.parametrize("version", ["0.5.17", "0.5.20", "0.5.23"])
def test_the_interpreter_has_what_is_relied_on(sglang_tree: Any, version: str) -> None:
    """Reads the sources, since the wrappers are already in place in this process."""
    root = sglang_tree(version).root
    tree = ast.parse((root / "lang" / "interpreter.py").read_text())
    (executor,) = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "StreamExecutor"
    ]
    found = {
        node.name: tuple(argument.arg for argument in node.args.args)
        for node in executor.body
        if isinstance(node, ast.FunctionDef)
    }
    for method, parameters in interpreter.RELIED_ON.items():
        assert found[method][: len(parameters)] == parameters
    # A run asks its backend once for `endpoint`; forks inherit what it got.
    runs = {node.name: ast.unparse(node) for node in tree.body if isinstance(node, ast.FunctionDef)}
    for name in ("run_program", "run_program_batch"):
        assert "if hasattr(backend, 'endpoint'):\n        backend = backend.endpoint" in runs[name]
    backend = ast.parse((root / "lang" / "backend" / "runtime_endpoint.py").read_text())
    (endpoint,) = [
        node
        for node in backend.body
        if isinstance(node, ast.ClassDef) and node.name == "RuntimeEndpoint"
    ]
    methods = {node.name for node in endpoint.body if isinstance(node, ast.FunctionDef)}
    assert {"_generate_http_request", "_add_images", "_handle_dtype_to_regex"} <= methods
