"""What passes through: requests to the worker, answers to the client, on every route."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]

BODIES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/generate": {"text": "hi"},
}


@pytest.mark.parametrize("route", list(BODIES))
async def test_whole_answers_pass_unchanged(
    route: str, make_worker: MakeWorker, make_front: MakeFront
) -> None:
    worker = await make_worker(num_tokens=3)
    front = await make_front(worker)
    status, answer = await front.call("POST", route, BODIES[route])
    assert status == 200
    assert answer == worker._whole(route, worker.seen[0])
    assert worker.paths == [route]


@pytest.mark.parametrize("route", list(BODIES))
async def test_streams_pass_event_by_event_without_the_usage_that_was_added(
    route: str, make_worker: MakeWorker, make_front: MakeFront
) -> None:
    worker = await make_worker(num_tokens=4)
    front = await make_front(worker)
    events = await front.events(route, {**BODIES[route], "stream": True})
    sent = dict(worker.seen[0])
    assert sent.pop("stream_options", None) == (
        None if route == "/generate" else {"include_usage": True}
    )
    assert [json.loads(event) for event in events[:-1]] == worker._events(route, sent)
    assert events[-1] == "[DONE]"


async def test_a_client_that_reads_slowly_slows_the_worker_and_gets_everything(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    worker = await make_worker(num_tokens=200, padding=500_000)
    front = await make_front(worker)
    body = {"prompt": "x", "stream": True}
    async with front.session.post(front.url + "/v1/completions", json=body) as response:
        assert response.status == 200
        written, num_same = -1, 0
        while num_same < 25:  # nothing has moved for half a second
            await asyncio.sleep(0.02)
            num_same = num_same + 1 if worker.num_written == written else 0
            written = worker.num_written
        assert written < 150
        raw = await response.read()
    assert worker.num_written == 201
    assert raw.count(b"data: ") == 201  # 200 words and [DONE]; the usage event is not shown


async def test_the_first_event_comes_before_the_second_is_made(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    worker = await make_worker()
    worker.between.clear()
    front = await make_front(worker)
    body = {"text": "x", "stream": True}
    async with front.session.post(front.url + "/generate", json=body) as response:
        first = await response.content.readuntil(b"\n\n")
        assert json.loads(first.removeprefix(b"data: "))["text"] == "w0"
        worker.between.set()
        rest = await response.read()
    assert rest.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("wanted", [True, False])
async def test_usage_as_the_client_asked_for_it(
    wanted: bool, make_worker: MakeWorker, make_front: MakeFront
) -> None:
    worker = await make_worker()
    front = await make_front(worker)
    options = {"include_usage": wanted}
    events = await front.events(
        "/v1/completions", {"prompt": "x", "stream": True, "stream_options": options}
    )
    assert worker.seen[0]["stream_options"] == options
    with_usage = [e for e in events[:-1] if json.loads(e)["usage"]]
    assert len(with_usage) == wanted


async def test_tokens_are_counted_from_every_kind_of_answer(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(await make_worker(num_tokens=5))
    for number, (route, body) in enumerate(BODIES.items()):
        for stream in (False, True):
            tag = {"workflow_id": f"w{number}{stream}"}
            full = {**body, "stream": stream, "hexgen": tag}
            async with front.session.post(front.url + route, json=full) as response:
                await response.read()
            [row] = (await front.workflow(tag["workflow_id"]))["requests"]
            counts = (row["prompt_tokens"], row["cached_tokens"], row["output_tokens"])
            assert counts == (12, 4, 5), route
            assert row["outcome"] == "completed"
            assert (row["first_byte_s"] is not None) is stream


async def test_the_engine_gets_the_request_id_and_the_tag_beside_the_callers_own_parameters(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    worker = await make_worker()
    front = await make_front(worker)
    tag = {
        "workflow_id": "wf",
        "workflow_type": "sql",
        "stage": "draft",
        "budget_ms": 60_000,
        "siblings": 3,
        "sibling_index": 2,
        "tenant": "t",
        "final": True,
        "expected_output_tokens": 9,
    }
    async with front.session.post(
        front.url + "/v1/completions",
        json={"prompt": "x", "temperature": 0.5, "custom_params": {"mine": 1}, "hexgen": tag},
    ) as response:
        request_id = response.headers["x-hexgen-request-id"]
        assert response.headers["x-hexgen-worker-id"] == "w0"
        assert response.headers["x-hexgen-workflow-id"] == "wf"
    [sent] = worker.seen
    assert sent["rid"] == request_id
    assert sent["temperature"] == 0.5
    assert "hexgen" not in sent
    assert sent["custom_params"].pop("mine") == 1
    engine_tag = sent["custom_params"].pop("hexgen")
    assert 55_000 < engine_tag.pop("budget_ms") <= 60_000
    del tag["budget_ms"]
    assert engine_tag == tag


async def test_on_generate_the_tag_travels_in_each_prompts_sampling_parameters(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    worker = await make_worker()
    front = await make_front(worker)
    tag = {"workflow_id": "wf", "expected_output_tokens": 8}
    rows = [{"temperature": 0.1, "custom_params": {"mine": 1}}, {"temperature": 0.2}]
    await front.generate({"text": ["a", "b"], "sampling_params": rows[0], "hexgen": tag})
    assert worker.seen[0]["sampling_params"] == {
        "temperature": 0.1,
        "custom_params": {"mine": 1, "hexgen": tag},
    }
    worker._length = lambda path, body: 1
    await front.generate({"text": ["a", "b"], "sampling_params": rows, "hexgen": tag})
    sent = worker.seen[1]["sampling_params"]
    assert sent[0]["custom_params"] == {"mine": 1, "hexgen": tag}
    assert sent[1] == {"temperature": 0.2, "custom_params": {"hexgen": tag}}


async def test_an_untagged_request_goes_on_as_it_came(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    worker = await make_worker()
    front = await make_front(worker)
    body = {"text": "x", "sampling_params": {"max_new_tokens": 2}, "stream": False}
    await front.generate(body)
    sent = worker.seen[0]
    request_id = sent.pop("rid")
    assert sent == body
    report = await front.workflow(request_id)
    assert (report["ended"], report["budget_s"], len(report["requests"])) == (True, None, 1)


async def test_only_the_callers_own_credentials_and_traces_are_forwarded(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    worker = await make_worker()
    front = await make_front(worker)
    headers = {
        "authorization": "Bearer k",
        "traceparent": "00-a-b-01",
        "cookie": "c=1",
        "x-hexgen-workflow-id": "w",
        "x-override-rid": "other",
    }
    await front.call("POST", "/generate", {"text": "x"}, headers)
    sent = worker.headers[0]
    assert (sent["authorization"], sent["traceparent"]) == ("Bearer k", "00-a-b-01")
    assert not {"cookie", "x-hexgen-workflow-id", "x-override-rid"} & set(sent)


async def test_a_workers_refusal_passes_unchanged(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    worker = await make_worker(failing=[400])
    front = await make_front(worker)
    status, answer = await front.generate(hexgen={"workflow_id": "w"})
    assert (status, answer) == (400, {"error": {"message": "told 400"}})
    [row] = (await front.workflow("w"))["requests"]
    assert (row["outcome"], row["retries"]) == ("rejected", 0)
    assert len(worker.seen) == 1


async def test_model_default_means_the_only_one_that_is_served(
    make_front: MakeFront, make_worker: MakeWorker
) -> None:
    only = await make_worker(models=["small"])
    front = await make_front(only)
    body = {"prompt": "x", "model": "default"}
    status, _ = await front.call("POST", "/v1/completions", body)
    assert (status, len(only.seen)) == (200, 1)

    front = await make_front(only, await make_worker(models=["large"]))
    status, answer = await front.call("POST", "/v1/completions", body)
    assert (status, answer["error"]["message"]) == (400, "model: must be one of large, small")


async def test_models_of_all_workers_are_listed_and_requests_find_theirs(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    small, large = await make_worker(models=["small"]), await make_worker(models=["large", "both"])
    front = await make_front(small, large)
    _, listing = await front.call("GET", "/v1/models")
    assert {card["id"] for card in listing["data"]} == {"small", "large", "both"}
    for model in ("large", "small", "both", "large:adapter"):
        status, _ = await front.call("POST", "/v1/completions", {"prompt": "x", "model": model})
        assert status == 200
    assert [body["model"] for body in small.seen] == ["small"]
    assert [body["model"] for body in large.seen] == ["large", "both", "large:adapter"]
    status, answer = await front.call("POST", "/v1/completions", {"prompt": "x", "model": "huge"})
    assert status == 404
    assert answer["error"]["code"] == "model_not_found"
    assert "model='huge': not served here; models: both, large, small" in answer["error"]["message"]
    status, answer = await front.call("POST", "/v1/completions", {"prompt": "x"})
    assert (status, answer["error"]["message"]) == (400, "model: must be one of both, large, small")


async def test_health_says_what_is_degraded(make_worker: MakeWorker, make_front: MakeFront) -> None:
    one, other = await make_worker(), await make_worker()
    front = await make_front(one, other)
    status, body = await front.call("GET", "/health")
    assert (status, body["status"], body["workers"]["ready"]) == (200, "ok", 2)
    await other.stop()
    while body["status"] == "ok":
        status, body = await front.call("GET", "/health")
    assert (status, body["status"], body["degraded"]) == (200, "degraded", ["workers_unreachable"])
    await one.stop()
    while status == 200:
        status, body = await front.call("GET", "/health")
    assert (status, body["status"]) == (503, "no_worker")


async def test_metrics_are_named_as_the_field_names_them(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(await make_worker())
    await front.generate(
        hexgen={"workflow_id": "w", "workflow_type": "sql", "budget_ms": 60_000, "final": True}
    )
    async with front.session.get(front.url + "/metrics") as response:
        assert response.headers["content-type"].startswith("text/plain")
        lines = (await response.text()).splitlines()
    for line in (
        'hexgen_requests_total{outcome="completed",route="/generate"} 1.0',
        'hexgen_workflows_total{outcome="met",workflow_type="sql"} 1.0',
        'hexgen_cached_tokens_total{worker_id="w0"} 4.0',
        'hexgen_dispatch_decisions_total{decision="placed",policy="marginal_cost"} 1.0',
        'hexgen_worker_state{state="ready",worker_id="w0"} 1.0',
        "hexgen_num_queue_reqs 0.0",
        'hexgen_num_running_reqs{worker_id="w0"} 0.0',
    ):
        assert line in lines


async def test_types_in_labels_are_bounded(make_worker: MakeWorker, make_front: MakeFront) -> None:
    front = await make_front(await make_worker())
    for number in range(70):
        tag = {"workflow_id": f"w{number}", "workflow_type": f"type{number}", "final": True}
        await front.generate(hexgen=tag)
    text = front.coordinator.exposition().decode()
    types = {line.split('"')[3] for line in text.splitlines() if "hexgen_workflows_total{" in line}
    assert len(types) == 65
    assert "other" in types
