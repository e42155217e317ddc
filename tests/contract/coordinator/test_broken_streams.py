"""Streams whose worker breaks off: another goes on, and the client sees one stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

MakeFront = Callable[..., Awaitable[Any]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]

TAG = {"hexgen": {"workflow_id": "wf", "budget_ms": 60_000}}
PROMPT = [3, 4, 5]
ANSWER = [7, 9, 11, 13, 15, 17]  # what follows depends on the length alone


class PositionWorker:
    """SGLang's routes before an engine whose next token depends on the sequence's length.

    Attributes:
        seen: bodies of generation requests.
        aborted: rids named in /abort_request.
        dies_after: events after which the next streams break off.
        between: while it is cleared, streams wait before their third event.
        refuses: the status of the next answers.
        tokenizes: it has a tokenizer's routes.
        is_hung: /health never answers.
    """

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.aborted: list[str] = []
        self.dies_after: list[int] = []
        self.between = asyncio.Event()
        self.between.set()
        self.refuses: list[int] = []
        self.tokenizes = True
        self.is_hung = False
        self.url = ""
        self.runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._models),
                web.post("/abort_request", self._abort),
                web.post("/tokenize", self._tokenize),
                web.post("/detokenize", self._detokenize),
                web.post("/generate", self._generate),
                web.post("/v1/chat/completions", self._chat),
            ]
        )
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def _health(self, request: web.Request) -> web.Response:
        if self.is_hung:
            await asyncio.sleep(3_600)
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    async def _abort(self, request: web.Request) -> web.Response:
        self.aborted.append((await request.json())["rid"])
        return web.Response()

    async def _tokenize(self, request: web.Request) -> web.Response:
        if not self.tokenizes:
            return web.Response(status=404)
        text = (await request.json())["prompt"]
        return web.json_response({"tokens": ids_of(text), "count": len(ids_of(text))})

    async def _detokenize(self, request: web.Request) -> web.Response:
        if not self.tokenizes:
            return web.Response(status=404)
        return web.json_response({"text": text_of((await request.json())["tokens"])})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        ids = body.get("input_ids") or ids_of(body["text"])
        limit = body["sampling_params"]["max_new_tokens"]
        said = [ANSWER[len(ids) + place - len(PROMPT)] for place in range(limit)]
        rows = []
        for end in range(1, limit + 1):
            reason = {"type": "length", "length": limit} if end == limit else None
            meta: dict[str, Any] = {
                "id": body["rid"],
                "prompt_tokens": len(ids),
                "completion_tokens": end,
            }
            meta["finish_reason"] = reason
            rows.append({"text": text_of(said[:end]), "output_ids": said[:end], "meta_info": meta})
        return await self._stream(request, body, rows)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        before = "".join(row["content"] for row in body["messages"])
        limit, first = body["max_tokens"], len(ids_of(before)) - len(PROMPT)
        head = {"id": body["rid"], "created": 1}
        opening = {"delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        choices: list[dict[str, Any]] = [opening]
        for place in range(limit):
            reason = "length" if place + 1 == limit else None
            piece = {"content": text_of([ANSWER[first + place]])}
            choices.append({"delta": piece, "finish_reason": reason})
        rows: list[dict[str, Any]] = [{**head, "choices": [choice]} for choice in choices]
        usage = {"prompt_tokens": first + len(PROMPT), "completion_tokens": limit}
        rows.append({**head, "choices": [], "usage": usage})
        return await self._stream(request, body, rows)

    async def _stream(
        self, request: web.Request, body: dict[str, Any], rows: list[dict[str, Any]]
    ) -> web.StreamResponse:
        self.seen.append(body)
        if self.refuses:
            return web.json_response({"error": {"message": "no"}}, status=self.refuses.pop(0))
        dies_after = self.dies_after.pop(0) if self.dies_after else None
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number, row in enumerate(rows):
            if number == dies_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            if number == 2:
                await self.between.wait()
            await response.write(f"data: {json.dumps(row)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


def ids_of(text: str) -> list[int]:
    return [int(piece) for piece in text.replace(">", "").split("<")[1:]]


def text_of(ids: list[int]) -> str:
    return "".join(f"<{item}>" for item in ids)


@pytest.fixture
async def workers() -> AsyncIterator[list[PositionWorker]]:
    made = [PositionWorker(), PositionWorker()]
    for worker in made:
        await worker.start()
    yield made
    for worker in made:
        worker.between.set()
        assert worker.runner is not None
        await worker.runner.cleanup()


BODY = {"input_ids": PROMPT, "sampling_params": {"max_new_tokens": 6}, "stream": True, **TAG}


async def the_record(front: Any) -> dict[str, Any]:
    [row] = (await front.workflow("wf"))["requests"]
    return dict(row)


@pytest.mark.parametrize("prompt", [{"input_ids": PROMPT}, {"text": text_of(PROMPT)}])
@pytest.mark.parametrize("deaths", [[2], [1, 3], [5], [2, 1, 1]])
async def test_a_generate_stream_goes_on_with_the_next_token(
    prompt: dict[str, Any], deaths: list[int], workers: list[PositionWorker], make_front: MakeFront
) -> None:
    for number, death in enumerate(deaths):
        workers[number % 2].dies_after.append(death)
    front = await make_front(*workers, dispatch="round_robin")
    body = {**prompt, "sampling_params": {"max_new_tokens": 6}, "stream": True, **TAG}
    events = await front.events("/generate", body)
    assert events[-1] == "[DONE]"
    rows = [json.loads(event) for event in events[:-1]]
    assert [row["output_ids"] for row in rows] == [ANSWER[:end] for end in range(1, 7)]
    assert [row["text"] for row in rows] == [text_of(ANSWER[:end]) for end in range(1, 7)]
    assert rows[-1]["meta_info"]["finish_reason"] == {"type": "length", "length": 6}
    assert {row["meta_info"]["id"] for row in rows} == {workers[0].seen[0]["rid"]}
    record = await the_record(front)
    assert (record["outcome"], record["retries"]) == ("completed", len(deaths))
    assert (record["prompt_tokens"], record["output_tokens"]) == (3, 6)
    [first, second, *_] = sorted(workers[0].seen + workers[1].seen, key=lambda b: len(b["rid"]))
    budgets = [b["sampling_params"]["custom_params"]["hexgen"] for b in (first, second)]
    assert budgets[1]["budget_ms"] <= budgets[0]["budget_ms"]  # the deadline did not move


@pytest.mark.parametrize("death", [1, 3])
async def test_a_chat_stream_goes_on_from_its_text(
    death: int, workers: list[PositionWorker], make_front: MakeFront
) -> None:
    workers[0].dies_after.append(death)
    front = await make_front(*workers, dispatch="round_robin")
    messages = [{"role": "user", "content": text_of(PROMPT)}]
    body = {"messages": messages, "max_tokens": 6, "stream": True, **TAG}
    events = await front.events("/v1/chat/completions", body)
    assert events[-1] == "[DONE]"
    rows = [json.loads(event) for event in events[:-1]]
    said = [row["choices"][0]["delta"] for row in rows]
    assert said == [
        {"role": "assistant", "content": ""},
        *({"content": text_of([item])} for item in ANSWER),
    ]
    assert {row["id"] for row in rows} == {workers[0].seen[0]["rid"]}
    asked = workers[1].seen[0]
    assert asked["max_tokens"] == 7 - death
    assert asked.get("continue_final_message", False) is (death > 1)
    record = await the_record(front)
    assert (record["prompt_tokens"], record["output_tokens"]) == (3, 6)


async def test_a_stream_that_lacks_only_its_end_is_ended(
    workers: list[PositionWorker], make_front: MakeFront
) -> None:
    workers[0].dies_after.append(6)
    front = await make_front(*workers, dispatch="round_robin")
    events = await front.events("/generate", BODY)
    assert json.loads(events[-2])["output_ids"] == ANSWER
    assert events[-1] == "[DONE]"
    assert workers[1].seen == []
    assert (await the_record(front))["outcome"] == "completed"


async def test_a_silent_stream_goes_on_elsewhere_and_is_stopped_where_it_was(
    workers: list[PositionWorker], make_front: MakeFront, wait_until: WaitUntil
) -> None:
    workers[0].between.clear()
    front = await make_front(*workers, dispatch="round_robin", stream_gap_timeout_s=0.3)
    events = await front.events("/generate", BODY)
    assert json.loads(events[-2])["output_ids"] == ANSWER
    await wait_until(lambda: workers[0].aborted == [workers[0].seen[0]["rid"]])


async def test_a_stream_at_a_hung_worker_goes_on_elsewhere(
    workers: list[PositionWorker], make_front: MakeFront
) -> None:
    workers[0].between.clear()
    workers[0].is_hung = True
    front = await make_front(
        workers[1], dispatch="round_robin", health_timeout_s=0.2, health_failures=2
    )
    workers[0].is_hung = False
    await front.call("POST", "/workers", {"url": workers[0].url})
    directory = front.coordinator.parts.directory
    async with asyncio.timeout(20):
        while len(directory.ready()) < 2:  # noqa: ASYNC110  (another connection's doing)
            await asyncio.sleep(0.01)
    calls = [asyncio.create_task(front.events("/generate", BODY)) for _ in range(2)]
    async with asyncio.timeout(20):
        while not workers[0].seen:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    workers[0].is_hung = True
    for events in await asyncio.gather(*calls):
        assert json.loads(events[-2])["output_ids"] == ANSWER


@pytest.mark.parametrize(
    ("refusal", "tokenizes", "told"),
    [(400, True, "answered 400"), (0, False, "cannot go on")],
)
async def test_a_stream_that_no_worker_takes_ends_with_a_clear_error(
    refusal: int, tokenizes: bool, told: str, workers: list[PositionWorker], make_front: MakeFront
) -> None:
    workers[0].dies_after += [2, 0]
    workers[1].tokenizes = workers[0].tokenizes = tokenizes
    workers[1].refuses = [refusal] * 4 if refusal else []
    workers[0].refuses = []
    front = await make_front(*workers, dispatch="round_robin", max_attempts=2)
    events = await front.events("/generate", BODY)
    assert json.loads(events[-2])["output_ids"] == ANSWER[:2]
    error = json.loads(events[-1])["error"]
    assert error["code"] == "worker_failed"
    assert told in error["message"]
    assert (await the_record(front))["outcome"] == "failed"


async def test_an_overloaded_cluster_is_not_asked_again_beyond_the_budget(
    workers: list[PositionWorker], make_front: MakeFront
) -> None:
    for worker in workers:
        worker.refuses = [503] * 40
    front = await make_front(*workers, retry_reserve=3, retry_share=0.0, max_attempts=32)
    calls = [front.call("POST", "/generate", BODY) for _ in range(4)]
    answers = await asyncio.gather(*calls)
    assert [status for status, _ in answers] == [502] * 4
    assert "too many requests are being tried again" in answers[0][1]["error"]["message"]
    assert len(workers[0].seen) + len(workers[1].seen) == 4 + 3
