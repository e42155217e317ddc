"""Traces from a client through the coordinator to a worker: the SDK itself, real sockets."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hexgen_sglang.client.completions import CompletionsClient
from hexgen_sglang.coordinator.config import CoordinatorFile, convert
from hexgen_sglang.core.errors import ConfigError

trace = pytest.importorskip("opentelemetry.sdk.trace", reason="the extra `otel` is not installed")
from opentelemetry import context as otel_context  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: E402
    InMemorySpanExporter,
)
from opentelemetry.trace import StatusCode, set_span_in_context  # noqa: E402

from hexgen_sglang.coordinator.tracing import Tracing  # noqa: E402

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]
SECRET = "the prompt that no span may hold"


class Seen:
    """A coordinator's spans, as they end."""

    def __init__(self, front: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = trace.TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        front.coordinator.tracing = Tracing(self.provider)

    def named(self, name: str) -> list[Any]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> Any:
        (span,) = self.named(name)
        return span


@contextmanager
def as_current(span: Any) -> Iterator[None]:
    token = otel_context.attach(set_span_in_context(span))
    try:
        yield
    finally:
        otel_context.detach(token)


def parent_of(span: Any) -> int | None:
    return None if span.parent is None else span.parent.span_id


async def test_a_clients_trace_goes_through_to_the_worker(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    front = await make_front(worker)
    seen = Seen(front)
    tag = {"x-hexgen-workflow-id": "wf", "x-hexgen-stage": "draft", "x-hexgen-final": "true"}
    asked = seen.provider.get_tracer("client").start_span("ask")
    async with CompletionsClient(front.url, None, 20.0) as client:
        with as_current(asked):
            await client.complete({"prompt": SECRET, "max_tokens": 4}, lambda: tag, lambda: None)
    await wait_until(lambda: bool(seen.named("workflow")))

    served, attempt = seen.one("POST /v1/completions"), seen.one("attempt")
    trace_id = asked.get_span_context().trace_id
    assert {span.context.trace_id for span in seen.exporter.get_finished_spans()} == {trace_id}
    assert parent_of(served) == asked.get_span_context().span_id
    assert {parent_of(seen.one(name)) for name in ("admit", "queue", "attempt")} == {
        served.context.span_id
    }
    sent = worker.headers[0]["traceparent"].split("-")
    assert sent[:3] == ["00", f"{trace_id:032x}", f"{attempt.context.span_id:016x}"]
    assert int(sent[3], 16) & 1  # sampled
    assert [link.context.span_id for link in served.links] == [seen.one("workflow").context.span_id]
    assert served.attributes["hexgen.workflow.id"] == "wf"
    assert served.attributes["hexgen.stage"] == "draft"
    assert served.attributes["gen_ai.operation.name"] == "text_completion"
    assert served.attributes["gen_ai.usage.output_tokens"] == 4
    assert served.attributes["hexgen.outcome"] == "completed"
    assert attempt.attributes["hexgen.worker.id"] == "w0"
    assert f":{attempt.attributes['server.port']}" in worker.url
    parts = [seen.one(name) for name in ("admit", "queue", "attempt")]
    assert served.start_time == parts[0].start_time
    assert parts[0].end_time == parts[1].start_time
    assert parts[1].end_time == parts[2].start_time
    assert parts[2].end_time == served.end_time
    told = "".join(span.to_json() for span in seen.exporter.get_finished_spans())
    assert SECRET not in told


async def test_without_a_clients_trace_a_workflow_is_one(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(await make_worker())
    seen = Seen(front)
    for final in (False, True):
        tag = {"workflow_id": "wf", "workflow_type": "sql", "budget_ms": 60_000, "final": final}
        assert (await front.generate(hexgen=tag))[0] == 200
    workflow, requests = seen.one("workflow"), seen.named("POST /generate")
    assert workflow.parent is None
    assert [parent_of(span) for span in requests] == [workflow.context.span_id] * 2
    assert workflow.attributes["hexgen.workflow.met_deadline"] is True
    assert workflow.attributes["hexgen.workflow.num_requests"] == 2
    assert workflow.attributes["hexgen.workflow.budget_s"] == pytest.approx(60.0)
    assert (await front.generate())[0] == 200  # untagged: no workflow of its own
    assert len(seen.named("workflow")) == 1
    assert seen.named("POST /generate")[2].parent is None


async def test_a_retry_is_a_second_wait_and_a_second_attempt(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    worker = await make_worker(failing=[503], echoes=True)
    front = await make_front(worker)
    seen = Seen(front)
    status, _ = await front.generate({"text": SECRET})
    assert status == 200
    bad, good = seen.named("attempt")
    assert (bad.status.status_code, bad.attributes["error.type"]) == (StatusCode.ERROR, "status")
    assert good.status.status_code is StatusCode.UNSET
    assert [span.attributes["hexgen.attempt.number"] for span in (bad, good)] == [1, 2]
    assert len(seen.named("queue")) == 2
    assert SECRET not in bad.to_json()


async def test_a_stream_tells_its_first_token_and_a_refusal_is_a_span(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(await make_worker())
    seen = Seen(front)
    await front.events("/generate", {"text": "x", "stream": True})
    attempt = seen.one("attempt")
    (event,) = attempt.events
    assert event.name == "first token"
    assert attempt.start_time <= event.timestamp <= attempt.end_time
    seen.exporter.clear()
    assert (await front.generate({"text": 1}))[0] == 400
    refused = seen.one("POST /generate")
    assert refused.attributes["http.response.status_code"] == 400


async def test_who_carries_a_placement_gets_the_header_to_send_along(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(await make_worker(), direct=True)
    seen = Seen(front)
    wanted = {"requests": [{"num_prompt_chars": 9, "hexgen": {"workflow_id": "wf"}}]}
    headers = {"traceparent": f"00-{7:032x}-{9:016x}-01"}
    async with front.session.post(
        f"{front.url}/placements", json=wanted, headers=headers
    ) as response:
        line = await response.json(content_type=None)
    assert line["headers"]["traceparent"].startswith(f"00-{7:032x}-")
    end = {"request_id": line["request_id"], "outcome": "completed"}
    assert (await front.call("POST", "/placements/ends", {"ends": [end]}))[0] == 200
    attempt = seen.one("attempt")
    assert line["headers"]["traceparent"][36:52] == f"{attempt.context.span_id:016x}"
    assert parent_of(seen.one("POST /placements")) == 9


async def test_a_client_that_does_not_sample_is_kept_to(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    worker = await make_worker()
    front = await make_front(worker)
    seen = Seen(front)
    headers = {"traceparent": f"00-{7:032x}-{9:016x}-00"}
    assert (await front.call("POST", "/generate", {"text": "x"}, headers))[0] == 200
    assert seen.exporter.get_finished_spans() == ()
    assert worker.headers[0]["traceparent"].startswith(f"00-{7:032x}-")
    assert worker.headers[0]["traceparent"].endswith("-00")


async def test_a_collector_gets_the_spans_over_http(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    got: list[bytes] = []

    async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        got.append(head + await reader.readexactly(length))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(collect, "127.0.0.1", 0) as collector:
        port = collector.sockets[0].getsockname()[1]
        table = {"endpoint": f"http://127.0.0.1:{port}/v1/traces", "service_name": "front-1"}
        front = await make_front(await make_worker(), tracing=table)
        assert (await front.generate(hexgen={"workflow_id": "wf", "final": True}))[0] == 200
        await asyncio.to_thread(front.coordinator.tracing.close)
        await wait_until(lambda: bool(got))
    assert got[0].startswith(b"POST /v1/traces ")
    assert b"front-1" in b"".join(got)


def test_a_wrong_endpoint_is_named_and_nothing_is_loaded_while_it_is_off() -> None:
    plain = {"coordinator": {"tracing": {"endpoint": "collector:4318"}}}
    with pytest.raises(ConfigError, match="must be http://host:port/v1/traces"):
        convert(plain, CoordinatorFile, "test")
    program = (
        "import sys, asyncio\n"
        "from hexgen_sglang.coordinator.config import CoordinatorFile\n"
        "from hexgen_sglang.coordinator.service import Coordinator\n"
        "async def main(): Coordinator(CoordinatorFile())\n"
        "asyncio.run(main())\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
