"""The plugin in a real SGLang server, watched and commanded over a real ZMQ coordinator end.

The server runs one request at a time, so that the order in which waiting requests end is the
order of its queue. It is started with `sglang serve`; the other tests use launch_server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hexgen_sglang import __version__
from hexgen_sglang.cluster.ports import free_port
from hexgen_sglang.cluster.process import ChildProcess, stop_all, wait_ready
from hexgen_sglang.cluster.worker import WorkerSpec
from hexgen_sglang.protocol.messages import (
    LINK_VERSION,
    TOKENS_IN_A_PART,
    Cancel,
    CoordinatorMessage,
    Features,
    Goodbye,
    Heartbeat,
    Hello,
    HelloWanted,
    Load,
    OrderingSet,
    PolicySettings,
    Prewarm,
    Release,
    Reprioritise,
    RequestFinished,
    Retain,
    StageFinished,
    Welcome,
    WorkerMessage,
)
from hexgen_sglang.transport.zmq_link import ZmqCoordinatorEnd

pytestmark = pytest.mark.timeout(300)
WAIT_S = 60.0
START_TIMEOUT_S = 300.0
HEARTBEAT_S = 0.5
LONG = 400  # tokens; some seconds on a CPU


class Coordinator:
    """A coordinator's end in a thread: welcomes workers, keeps what they say, sends commands."""

    def __init__(self) -> None:
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.messages: list[WorkerMessage] = []
        self._outbox: asyncio.Queue[CoordinatorMessage] = asyncio.Queue()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)

    def send(self, command: CoordinatorMessage) -> None:
        self._loop.call_soon_threadsafe(self._outbox.put_nowait, command)

    def seen(self, kind: type, since: int = 0) -> list[Any]:
        return [message for message in self.messages[since:] if isinstance(message, kind)]

    def wait_for(self, what: str, found: Callable[[], Any]) -> Any:
        deadline_s = time.monotonic() + WAIT_S
        while not (result := found()):
            assert time.monotonic() < deadline_s, f"{what}: not seen in {self.messages[-20:]}"
            time.sleep(0.02)
        return result

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(self._serve())
        self._ready.set()
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)
        self._loop.close()

    async def _serve(self) -> None:
        end = ZmqCoordinatorEnd(self.endpoint, None)
        peers: set[Any] = set()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._receive(end, peers))
                tasks.create_task(self._beat(end, peers))
                tasks.create_task(self._command(end, peers))
        finally:
            end.close()

    async def _receive(self, end: ZmqCoordinatorEnd, peers: set[Any]) -> None:
        while True:
            peer, message = await end.receive()
            if isinstance(message, Hello):
                peers.add(peer)
                await end.send(peer, Welcome(LINK_VERSION, "test", round(1000 * HEARTBEAT_S)))
            elif peer not in peers:
                await end.send(peer, HelloWanted())
            self.messages.append(message)

    async def _beat(self, end: ZmqCoordinatorEnd, peers: set[Any]) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            for peer in peers:
                await end.send(peer, Heartbeat())

    async def _command(self, end: ZmqCoordinatorEnd, peers: set[Any]) -> None:
        while True:
            command = await self._outbox.get()
            for peer in peers:
                assert await end.send(peer, command)


class Engine:
    """A linked server that runs one request at a time, and the client's side of it."""

    def __init__(self, spec: WorkerSpec, process: ChildProcess, coordinator: Coordinator) -> None:
        self.spec = spec
        self.coordinator = coordinator
        self.processes = {spec.name: process}
        self._pool = ThreadPoolExecutor(16)
        self._num_sent = 0

    def send(
        self, rid: str, tag: dict[str, Any] | None, num_tokens: int = 4, repeat: int = 1
    ) -> Future[Any]:
        """POST /generate in a thread; the future holds status and answer."""
        self._num_sent += 1
        params: dict[str, Any] = {"max_new_tokens": num_tokens, "ignore_eos": True}
        if tag is not None:
            params["custom_params"] = {"hexgen": tag}
        body = {"text": f"{rid} asks " * repeat, "rid": rid, "sampling_params": params}
        return self._pool.submit(post, f"{self.spec.url}/generate", body)

    def occupy(self, rid: str) -> Future[Any]:
        """Start a long request and wait until it runs, so that later ones wait behind it."""
        since = len(self.coordinator.messages)
        future = self.send(rid, {"workflow_id": rid, "budget_ms": 1}, LONG)
        self.wait_for_load(since, lambda load: load.num_running == 1)
        return future

    def wait_for_load(self, since: int, holds: Callable[[Load], bool]) -> None:
        self.coordinator.wait_for(
            "load", lambda: any(holds(load) for load in self.coordinator.seen(Load, since))
        )

    def queue(self, requests: list[tuple[str, dict[str, Any] | None]]) -> list[Future[Any]]:
        """Send requests one after the other, each once the one before is in the queue."""
        futures = []
        for number, (rid, tag) in enumerate(requests, start=1):
            since = len(self.coordinator.messages)
            futures.append(self.send(rid, tag))
            self.wait_for_load(since, lambda load, number=number: load.num_waiting == number)
        return futures

    def ends(self, since: int, num: int) -> list[RequestFinished]:
        """The next `num` reports of ended requests, in order."""
        return self.coordinator.wait_for(
            f"{num} ends",
            lambda: (ends := self.coordinator.seen(RequestFinished, since))[num - 1 :] and ends,
        )

    def close(self) -> None:
        self._pool.shutdown()


def post(url: str, body: dict[str, Any]) -> tuple[int, Any]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else None
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)


def start_engine(spec: WorkerSpec, process: ChildProcess, coordinator: Coordinator) -> Engine:
    process.start()
    wait_ready([(process, spec.is_ready)], timeout_s=START_TIMEOUT_S)
    coordinator.wait_for("hello", lambda: coordinator.seen(Hello))
    return Engine(spec, process, coordinator)


@pytest.fixture(scope="module")
def engine(tiny_model: str, logs_folder: Path) -> Iterator[Engine]:
    """`sglang serve --schedule-policy hexgen`, one request at a time, linked."""
    coordinator = Coordinator()
    spec = WorkerSpec(
        name="served",
        model_path=tiny_model,
        schedule_policy="hexgen",
        coordinator_link=coordinator.endpoint,
        hardware="test-cpu",
        flags=(
            *("--max-running-requests", "1"),
            *("--hexgen-retain-prefixes", "0.5", "--hexgen-prewarm", "0.5", "--enable-metrics"),
        ),
    )
    arguments = spec.command()[spec.command().index("sglang.launch_server") + 1 :]
    sglang = str(Path(sys.executable).with_name("sglang"))
    command = [sglang, "serve", "--model-type", "llm", *arguments]
    process = ChildProcess(
        spec.name, command, env=spec.environment(), log_path=logs_folder / "served.log"
    )
    coordinator.start()
    try:
        engine = start_engine(spec, process, coordinator)
        yield engine
        engine.close()
    finally:
        stop_all([process], 3.0)
        coordinator.stop()


def test_the_worker_says_who_it_is(engine: Engine) -> None:
    hello = engine.coordinator.seen(Hello)[-1]
    assert (hello.worker_id, hello.url) == ("served", engine.spec.url)
    assert (hello.hardware, hello.ordering) == ("test-cpu", "least_slack")
    assert hello.plugin_version == __version__
    assert hello.sglang_version.startswith("0.5.")
    assert hello.max_running_requests == 1
    assert hello.kv_capacity_tokens == 16_384
    assert hello.model == str(engine.spec.model_path)


def test_the_tag_reaches_the_scheduler_and_timings_come_back(engine: Engine) -> None:
    since = len(engine.coordinator.messages)
    tag = {"workflow_id": "question-1", "stage": "schema", "budget_ms": 60_000, "siblings": 1}
    status, answer = engine.send("tagged", tag, num_tokens=6).result()
    assert status == 200
    (finished,) = engine.ends(since, 1)
    assert (finished.request_id, finished.workflow_id) == ("tagged", "question-1")
    assert (finished.stage, finished.aborted) == ("schema", False)
    assert finished.prompt_tokens == answer["meta_info"]["prompt_tokens"]
    assert finished.output_tokens == 6
    assert 0 <= finished.queue_ms <= finished.ttft_ms <= finished.e2e_ms < 60_000
    (stage,) = engine.coordinator.wait_for(
        "stage", lambda: engine.coordinator.seen(StageFinished, since)
    )
    assert (stage.workflow_id, stage.stage, stage.num_requests) == ("question-1", "schema", 1)


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_the_tag_comes_through_the_openai_routes(engine: Engine, route: str) -> None:
    since = len(engine.coordinator.messages)
    body: dict[str, Any] = {
        "model": "any",
        "max_tokens": 3,
        "custom_params": {"hexgen": {"workflow_id": "question-2", "stage": "vote"}},
    }
    body |= (
        {"messages": [{"role": "user", "content": "hi"}]} if "chat" in route else {"prompt": "hi"}
    )
    status, _ = post(engine.spec.url + route, body)
    assert status == 200
    (finished,) = engine.ends(since, 1)
    assert (finished.workflow_id, finished.stage) == ("question-2", "vote")


def test_prefix_hits_are_reported(engine: Engine) -> None:
    since = len(engine.coordinator.messages)
    text = "SELECT name FROM artists WHERE " * 8
    for number in (1, 2):
        body = {"text": text, "rid": f"prefix-{number}", "sampling_params": {"max_new_tokens": 2}}
        assert post(f"{engine.spec.url}/generate", body)[0] == 200
    first, second = engine.ends(since, 2)
    assert second.cached_tokens > first.prompt_tokens // 2


def test_a_kept_prefix_outlives_one_that_was_used_later(engine: Engine) -> None:
    """16,384 KV tokens; what waits, and then untagged prompts, need more than is left."""

    def ask(rid: str, first: int, workflow_id: str | None = None, size: int = 2_500) -> Any:
        tag = {"workflow_id": workflow_id, "stage": rid} if workflow_id else None
        params: dict[str, Any] = {"max_new_tokens": 1, "ignore_eos": True}
        if tag is not None:
            params["custom_params"] = {"hexgen": tag}
        ids = [300 + first] * 4 + [300 + (number * 7 + first) % 500 for number in range(size)]
        body = {"input_ids": ids, "rid": rid, "sampling_params": params}
        status, answer = post(f"{engine.spec.url}/generate", body)
        assert status == 200, answer
        return answer["meta_info"]["cached_tokens"]

    since = len(engine.coordinator.messages)
    assert engine.coordinator.seen(Features) == [Features(True, True)]
    assert ask("kept-1", 1, "kept") == 0
    assert ask("given-up-1", 2, "given-up") == 0
    engine.coordinator.send(Release("given-up"))
    engine.coordinator.send(Retain("kept", 60_000.0))
    kept = 'hexgen_retained_prefix_tokens_total{outcome="kept"'
    engine.coordinator.wait_for("mark", lambda: counted(engine, kept) >= 2_500)
    for number in range(5):
        ask(f"other-{number}", 10 + number)
    assert ask("kept-2", 1, "kept") >= 2_500
    assert ask("given-up-2", 2, "given-up") == 0
    engine.ends(since, 9)


def counted(engine: Engine, metric: str) -> float:
    """The sum of what begins with `metric` in the engine's metrics."""
    with urllib.request.urlopen(f"{engine.spec.url}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(metric))


def test_a_prefix_is_computed_before_its_request_comes(engine: Engine) -> None:
    """Token ids in two messages; nobody gets the answer, and a request finds them cached."""
    since = len(engine.coordinator.messages)
    engine.send("pattern", None).result()
    engine.ends(since, 1)
    since = len(engine.coordinator.messages)
    ids = array("i", [200 + (number * 11) % 600 for number in range(3_500)])
    for offset in (0, TOKENS_IN_A_PART):
        part = ids[offset : offset + TOKENS_IN_A_PART].tobytes()
        engine.coordinator.send(Prewarm("ahead", "revise", 60_000.0, len(ids), offset, part))
    computed = 'hexgen_prewarmed_prefix_tokens_total{outcome="computed"'
    engine.coordinator.wait_for("prewarm", lambda: counted(engine, computed) >= len(ids))
    tag = {"workflow_id": "ahead", "stage": "revise"}
    body = {
        "input_ids": [*ids, 7, 8, 9],
        "rid": "ahead-1",
        "sampling_params": {"max_new_tokens": 1, "custom_params": {"hexgen": tag}},
    }
    status, answer = post(f"{engine.spec.url}/generate", body)
    assert status == 200
    assert answer["meta_info"]["cached_tokens"] >= len(ids) - 64
    saved = 'hexgen_prewarmed_prefix_tokens_total{outcome="saved"'
    assert counted(engine, saved) == len(ids)
    engine.coordinator.send(Prewarm("ahead", "revise", 60_000.0))  # as the engine knows it
    present = 'hexgen_prewarms_left_total{reason="present"'
    engine.coordinator.wait_for("present", lambda: counted(engine, present) >= 1)
    (finished,) = engine.ends(since, 1)  # of what was computed ahead nothing is told
    assert finished.request_id == "ahead-1"
    log = engine.processes[engine.spec.name].log_path.read_text(errors="replace")
    assert "but the state was deleted" not in log


def test_a_malformed_tag_is_a_400_that_names_field_value_and_range(engine: Engine) -> None:
    since = len(engine.coordinator.messages)
    status, answer = engine.send("bad", {"workflow_id": "w", "budget_ms": 0}).result()
    assert status == 400
    message = json.dumps(answer)
    assert "budget_ms" in message
    assert ">= 1" in message
    status, answer = post(
        f"{engine.spec.url}/v1/chat/completions",
        {
            "model": "any",
            "messages": [{"role": "user", "content": "hi"}],
            "custom_params": {"hexgen": {"workflow_id": "two words"}},
        },
    )
    assert status == 400
    assert "workflow_id" in json.dumps(answer)
    assert engine.coordinator.seen(RequestFinished, since) == []


def test_a_tight_deadline_overtakes_a_slack_one_that_came_first(engine: Engine) -> None:
    since = len(engine.coordinator.messages)
    futures = [engine.occupy("running")]
    futures += engine.queue(
        [
            ("slack", {"workflow_id": "slack", "budget_ms": 600_000}),
            ("untagged", None),
            ("tight", {"workflow_id": "tight", "budget_ms": 2_000}),
            (
                "tight-but-short",
                {"workflow_id": "x", "budget_ms": 20_000, "predicted_remaining_ms": 500},
            ),
        ]
    )
    ends = engine.ends(since, 5)
    assert [end.request_id for end in ends] == [
        "running",
        "tight",
        "tight-but-short",
        "untagged",
        "slack",
    ]
    assert all(future.result()[0] == 200 for future in futures)
    waited = {end.request_id: end.queue_ms for end in ends}
    assert waited["slack"] > waited["tight"] > 0


def test_a_reprioritised_workflow_moves_forward(engine: Engine) -> None:
    since = len(engine.coordinator.messages)
    engine.occupy("running")
    engine.queue(
        [
            ("first", {"workflow_id": "first", "budget_ms": 100_000}),
            ("moved", {"workflow_id": "moved", "budget_ms": 200_000}),
        ]
    )
    engine.coordinator.send(Reprioritise("moved", 1_000, 0.0))
    ends = [end.request_id for end in engine.ends(since, 3)]
    assert ends == ["running", "moved", "first"]


def test_cancelling_a_workflow_aborts_its_requests_waiting_and_running(engine: Engine) -> None:
    since = len(engine.coordinator.messages)
    running = engine.occupy("cancelled-running")
    waiting, other = engine.queue(
        [
            ("cancelled-waiting", {"workflow_id": "cancelled-running", "budget_ms": 90_000}),
            ("other", {"workflow_id": "other", "budget_ms": 100_000}),
        ]
    )
    engine.coordinator.send(Cancel("cancelled-running", None))
    ends = {end.request_id: end for end in engine.ends(since, 3)}
    assert ends["cancelled-running"].aborted
    assert ends["cancelled-running"].output_tokens < LONG
    assert ends["cancelled-waiting"].aborted
    assert ends["cancelled-waiting"].output_tokens == 0
    assert not ends["other"].aborted
    assert other.result()[0] == 200
    reasons = [
        answer["meta_info"]["finish_reason"]["type"] if status == 200 else status
        for status, answer in (running.result(), waiting.result())
    ]
    assert reasons == ["abort", "abort"] or 503 in reasons, reasons


def test_one_request_can_be_cancelled(engine: Engine) -> None:
    since = len(engine.coordinator.messages)
    running = engine.occupy("one")
    engine.coordinator.send(Cancel(None, "one"))
    (end,) = engine.ends(since, 1)
    assert (end.request_id, end.aborted) == ("one", True)
    running.result()


def test_a_request_that_is_aborted_over_http_is_reported_as_aborted(engine: Engine) -> None:
    since = len(engine.coordinator.messages)
    running = engine.occupy("left-alone")
    assert post(f"{engine.spec.url}/abort_request", {"rid": "left-alone"})[0] == 200
    (end,) = engine.ends(since, 1)
    assert (end.request_id, end.aborted) == ("left-alone", True)
    running.result()


def test_the_ordering_policy_can_be_switched_and_a_wrong_one_changes_nothing(
    engine: Engine,
) -> None:
    requests = [
        ("first", {"workflow_id": "first", "budget_ms": 100_000}),
        ("second", {"workflow_id": "second", "budget_ms": 1_000}),
    ]
    try:
        engine.coordinator.send(PolicySettings("fcfs", {}))
        engine.coordinator.send(PolicySettings("nonsense", {}))
        since = len(engine.coordinator.messages)
        engine.occupy("running")
        engine.queue(requests)
        assert [end.request_id for end in engine.ends(since, 3)] == ["running", "first", "second"]
    finally:
        engine.coordinator.send(PolicySettings("least_slack", {}))
    since = len(engine.coordinator.messages)
    engine.occupy("running")
    engine.queue(requests)
    assert [end.request_id for end in engine.ends(since, 3)] == ["running", "second", "first"]
    log = engine.processes["served"].log_path.read_text(errors="replace")
    assert "SetOrdering has no effect: ordering policy 'nonsense' is unknown" in log
    answers = engine.coordinator.seen(OrderingSet)
    assert [(one.ordering, bool(one.refusal)) for one in answers] == [
        ("fcfs", False),
        ("nonsense", True),
        ("least_slack", False),
    ]
    assert "'nonsense' is unknown" in answers[1].refusal


def test_the_settings_of_the_ordering_policy_can_be_changed_and_come_back(engine: Engine) -> None:
    """Best effort ranks by its arrival and an assumed slack: with a small one it goes first."""
    requests: list[tuple[str, dict[str, Any]]] = [
        ("hurried", {"workflow_id": "hurried", "budget_ms": 10_000}),
        ("patient", {"workflow_id": "patient"}),
    ]

    def order_of_ends() -> list[str]:
        since = len(engine.coordinator.messages)
        engine.occupy("running")
        engine.queue(requests)
        return [end.request_id for end in engine.ends(since, 3)]

    num_answers = len(engine.coordinator.seen(OrderingSet))
    try:
        engine.coordinator.send(PolicySettings("least_slack", {"best_effort_slack_s": 0.5}))
        engine.coordinator.send(PolicySettings("least_slack", {"best_effort_slack_s": -1.0}))
        assert order_of_ends() == ["running", "patient", "hurried"]
    finally:
        engine.coordinator.send(PolicySettings("least_slack", {"best_effort_slack_s": 30.0}))
    assert order_of_ends() == ["running", "hurried", "patient"]
    changed, refused, back = engine.coordinator.seen(OrderingSet)[num_answers:]
    assert changed == OrderingSet("least_slack", {"best_effort_slack_s": 0.5})
    assert "best_effort_slack_s=-1.0" in refused.refusal
    assert back == OrderingSet("least_slack", {"best_effort_slack_s": 30.0})


def test_an_idle_engine_reports_that_it_is_idle(engine: Engine) -> None:
    engine.send("last", None).result()
    engine.coordinator.wait_for(
        "idle load",
        lambda: engine.coordinator.seen(Load)[-1] == Load(0, 0, 0, 0),
    )


def test_a_worker_that_is_stopped_says_goodbye(engine: Engine) -> None:
    """Last, since the server is gone afterwards; SGLang takes some seconds to stop in order."""
    engine.processes["served"].stop(grace_s=60.0)
    assert isinstance(engine.coordinator.messages[-1], Goodbye)


def test_a_server_with_sglangs_own_policy_reports_and_keeps_its_order(
    tiny_model: str, logs_folder: Path
) -> None:
    coordinator = Coordinator()
    flags = ("--max-running-requests", "1", "--hexgen-coordinator", coordinator.endpoint)
    spec = WorkerSpec(name="fcfs", model_path=tiny_model, schedule_policy="fcfs", flags=flags)
    process = spec.process(logs_folder)
    coordinator.start()
    try:
        engine = start_engine(spec, process, coordinator)
        hello = coordinator.seen(Hello)[-1]
        assert (hello.ordering, hello.url) == ("fcfs", spec.url)
        assert hello.worker_id.endswith(f":{spec.port}")
        since = len(coordinator.messages)
        engine.occupy("running")
        engine.queue(
            [
                ("slack", {"workflow_id": "slack", "budget_ms": 600_000}),
                ("tight", {"workflow_id": "tight", "budget_ms": 1}),
            ]
        )
        coordinator.send(Reprioritise("tight", 1, 0.0))
        assert [end.request_id for end in engine.ends(since, 3)] == ["running", "slack", "tight"]
        log = process.log_path.read_text(errors="replace")
        assert "SetDeadline has no effect: this server's --schedule-policy is not hexgen" in log
        engine.close()
    finally:
        stop_all([process], 3.0)
        coordinator.stop()


SLOW_PROMPTS = """
name = "slow-prompts"
model = "no model"
device = "made up for tests"
tensor_parallel = { value = 1, source = "made up" }
prefill.base_s = { value = 0.2, source = "made up" }
prefill.per_token_s = { value = 0.001, source = "made up" }
prefill.per_token_per_1k_context_s = { value = 0.0, source = "made up" }
prefill.chunk_tokens = { value = 4096, source = "made up" }
decode.base_s = { value = 0.02, source = "made up" }
decode.per_request_s = { value = 0.001, source = "made up" }
decode.per_1k_context_tokens_s = { value = 0.0, source = "made up" }
capacity.kv_tokens = { value = 16384, source = "made up" }
capacity.max_running_requests = { value = 16, source = "made up" }
price.usd_per_hour = { value = 1.0, source = "made up" }
fit.method = "made up"
"""


def test_a_relaxed_prompt_waits_for_a_tight_decode_and_not_the_other_way_round(
    tiny_model: str, logs_folder: Path, tmp_path: Path
) -> None:
    """80 tokens take 1.7 s, and the prompts of one token 0.6 s: which of two ends first?"""
    (tmp_path / "slow-prompts.toml").write_text(SLOW_PROMPTS)
    coordinator = Coordinator()
    spec = WorkerSpec(
        name="patient",
        model_path=tiny_model,
        schedule_policy="hexgen",
        coordinator_link=coordinator.endpoint,
        emulate=tmp_path / "slow-prompts.toml",
        flags=("--hexgen-prefill-patience", "20"),
    )
    process = spec.process(logs_folder)
    coordinator.start()
    try:
        engine = start_engine(spec, process, coordinator)
        for number in range(8):  # so many steps of each kind, before their costs are known
            engine.send(f"first-{number}", None, num_tokens=3).result()
        engine.ends(0, 8)

        def ends(decode: dict[str, Any], prompt: dict[str, Any]) -> list[str]:
            coordinator.wait_for("idle", lambda: coordinator.seen(Load)[-1] == Load(0, 0, 0, 0))
            since = len(coordinator.messages)
            name = decode["workflow_id"]
            engine.send(name, {**decode, "expected_output_tokens": 80}, num_tokens=80)
            engine.wait_for_load(since, lambda load: load.num_running == 1)
            coming = f"behind-{name}"
            engine.send(coming, {**prompt, "workflow_id": coming}, num_tokens=1, repeat=60)
            return [end.request_id for end in engine.ends(since, 2)]

        tight = {"budget_ms": 4_000, "predicted_remaining_ms": 2_000}
        relaxed = {"budget_ms": 3_600_000, "predicted_remaining_ms": 2_000}
        for name, decode, prompt, order in (
            ("tight", tight, relaxed, ["tight", "behind-tight"]),
            ("relaxed", relaxed, tight, ["behind-relaxed", "relaxed"]),
        ):
            assert ends({**decode, "workflow_id": name}, prompt) == order
        engine.close()
    finally:
        stop_all([process], 3.0)
        coordinator.stop()
