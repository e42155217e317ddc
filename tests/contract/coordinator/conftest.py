"""A worker that speaks SGLang's HTTP on a real socket and does as it is told, and a real
coordinator in front of such workers, in the test's own event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web

from hexgen_sglang.coordinator.config import CoordinatorFile, convert
from hexgen_sglang.coordinator.server import Extension, HttpServer, nothing_more
from hexgen_sglang.coordinator.service import Coordinator

MODEL = "stand-in"
PROMPT_TOKENS = 12
CACHED_TOKENS = 4


class StandInWorker:
    """SGLang's routes without an engine: answers are "w0 w1 w2 ...".

    Attributes:
        seen: bodies of generation requests, in order of arrival.
        aborted: rids named in /abort_request.
        hung_up: rids whose connection was closed before the answer was complete.
        gate: while it is cleared, requests wait before their first byte.
        between: while it is cleared, streams wait before their second event.
        failing: statuses for the next requests, one each.
        dies_after: events after which the next streams break off; 0: before the headers.
        num_tokens: of each answer when the request does not limit it.
        says: gives the text of answers that are not streamed, from the request's body.
        padding: bytes added to each streamed event; `num_written` events went out so far.
        is_hung: connections are accepted, but /health never answers.
        echoes: errors repeat the request, as some engines do.
        redirects_to: every request is sent on to this URL; `redirected`: their paths.
        probed: health checks so far.
        time_scale: as an emulated accelerator states it; None: it says nothing of one.
    """

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.aborted: list[str] = []
        self.hung_up: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.between = asyncio.Event()
        self.between.set()
        self.failing: list[int] = []
        self.dies_after: list[int | None] = []
        self.num_tokens = 5
        self.says: Callable[[dict[str, Any]], str] | None = None
        self.max_running = 16
        self.models = [MODEL]
        self.is_hung = False
        self.echoes = False
        self.redirects_to = ""
        self.redirected: list[str] = []
        self.probed = 0
        self.time_scale: float | None = None
        self.padding = 0
        self.num_written = 0
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024, middlewares=[self._redirect])
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._list_models),
                web.get("/server_info", self._server_info),
                web.post("/abort_request", self._abort),
                web.post("/generate", self._generate),
                web.post("/v1/completions", self._generate),
                web.post("/v1/chat/completions", self._generate),
            ]
        )
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Break all connections and stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _redirect(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if not self.redirects_to:
            return await handler(request)
        self.redirected.append(request.path)
        return web.Response(status=307, headers={"location": self.redirects_to + request.path})

    async def _health(self, request: web.Request) -> web.Response:
        self.probed += 1
        if self.is_hung:
            await asyncio.sleep(3_600)
        return web.Response()

    async def _list_models(self, request: web.Request) -> web.Response:
        cards = [{"id": name, "object": "model", "owned_by": "sglang"} for name in self.models]
        return web.json_response({"object": "list", "data": cards})

    async def _server_info(self, request: web.Request) -> web.Response:
        state: dict[str, Any] = {"effective_max_running_requests_per_dp": self.max_running}
        if self.time_scale is not None:
            state["hexgen_emulation"] = {"time_scale": self.time_scale}
        return web.json_response(
            {"version": "0.0.1", "max_total_num_tokens": 100_000, "internal_states": [state]}
        )

    async def _abort(self, request: web.Request) -> web.Response:
        self.aborted.append((await request.json())["rid"])
        return web.Response()

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body)
        self.paths.append(request.path)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        dies_after = self.dies_after.pop(0) if self.dies_after else None
        try:
            await self.gate.wait()
            if self.failing:
                status = self.failing.pop(0)
                message = f"told {status}" + (f": {body}" if self.echoes else "")
                return web.json_response({"error": {"message": message}}, status=status)
            if dies_after == 0:
                _break(request)
            if body.get("stream"):
                return await self._stream(request, body, dies_after)
            return web.json_response(self._whole(request.path, body))
        except (asyncio.CancelledError, ConnectionError):
            self.hung_up.append(body["rid"])
            raise

    async def _stream(
        self, request: web.Request, body: dict[str, Any], dies_after: int | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number, event in enumerate(self._events(request.path, body)):
            if number == dies_after:
                _break(request)
            if number == 1:
                await self.between.wait()
            if self.padding:
                event["padding"] = "x" * self.padding
            await response.write(f"data: {json.dumps(event, separators=(',', ':'))}\n\n".encode())
            self.num_written += 1
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def _length(self, path: str, body: dict[str, Any]) -> int:
        if path == "/generate":
            return (body.get("sampling_params") or {}).get("max_new_tokens", self.num_tokens)
        return body.get("max_tokens", self.num_tokens)

    def _whole(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        text = " ".join(f"w{i}" for i in range(self._length(path, body)))
        text = self.says(body) if self.says is not None else text
        if path == "/generate":
            return {"text": text, "meta_info": self._meta(body, self._length(path, body), "stop")}
        message = {"message": {"role": "assistant", "content": text}}
        choice = {"index": 0, "finish_reason": "stop"}
        choice |= message if "chat" in path else {"text": text}
        kind = "chat.completion" if "chat" in path else "text_completion"
        head = {"id": body["rid"], "object": kind, "created": 1, "model": MODEL}
        return {**head, "choices": [choice], "usage": self._usage(self._length(path, body))}

    def _events(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        length = self._length(path, body)
        words = [f"w{i}" for i in range(length)]
        if path == "/generate":
            return [
                {
                    "text": " ".join(words[: i + 1]),
                    "meta_info": self._meta(body, i + 1, "stop" if i + 1 == length else None),
                }
                for i in range(length)
            ]
        kind = "chat.completion.chunk" if "chat" in path else "text_completion"
        head = {"id": body["rid"], "object": kind, "created": 1, "model": MODEL}
        events = []
        for i, word in enumerate(words):
            choice = {"index": 0, "finish_reason": "stop" if i + 1 == length else None}
            choice |= {"delta": {"content": word}} if "chat" in path else {"text": word}
            events.append({**head, "choices": [choice], "usage": None})
        if (body.get("stream_options") or {}).get("include_usage"):
            events.append({**head, "choices": [], "usage": self._usage(length)})
        return events

    def _meta(self, body: dict[str, Any], length: int, finish: str | None) -> dict[str, Any]:
        return {
            "id": body["rid"],
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": length,
            "cached_tokens": CACHED_TOKENS,
            "finish_reason": None if finish is None else {"type": finish},
        }

    def _usage(self, length: int) -> dict[str, Any]:
        return {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": length,
            "total_tokens": PROMPT_TOKENS + length,
            "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS},
        }


def _break(request: web.Request) -> None:
    """Cut the connection as a killed process does."""
    assert request.transport is not None
    request.transport.abort()
    raise ConnectionResetError("told to die")


class Front:
    """A coordinator that serves on a real socket, and a client session."""

    def __init__(
        self,
        coordinator: Coordinator,
        server: HttpServer,
        url: str,
        session: aiohttp.ClientSession,
    ) -> None:
        self.coordinator = coordinator
        self.server = server
        self.url = url
        self.session = session

    async def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and decoded JSON."""
        async with self.session.request(
            method, self.url + path, json=body, headers=headers
        ) as response:
            text = await response.text()
            return response.status, json.loads(text) if text else None

    async def generate(self, body: dict[str, Any] | None = None, **fields: Any) -> tuple[int, Any]:
        return await self.call("POST", "/generate", {"text": "hello", **(body or {}), **fields})

    async def events(
        self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> list[str]:
        """The data of each event of a streamed answer."""
        async with self.session.post(self.url + path, json=body, headers=headers) as response:
            assert response.status == 200, await response.text()
            assert response.headers["content-type"].startswith("text/event-stream")
            raw = (await response.read()).decode()
        return [event.removeprefix("data: ") for event in raw.split("\n\n") if event]

    async def workflow(self, workflow_id: str) -> dict[str, Any]:
        status, report = await self.call("GET", f"/workflows/{workflow_id}")
        assert status == 200, report
        return report


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait until something holds; fails with the condition's place when it never does."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  (the conditions are about other connections)
            await asyncio.sleep(0.01)


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    return until


@pytest.fixture
async def make_worker() -> AsyncIterator[Callable[..., Awaitable[StandInWorker]]]:
    """Starts a stand-in worker; attributes as keyword arguments."""
    workers: list[StandInWorker] = []

    async def make(**attributes: Any) -> StandInWorker:
        worker = StandInWorker()
        for name, value in attributes.items():
            setattr(worker, name, value)
        await worker.start()
        workers.append(worker)
        return worker

    yield make
    for worker in workers:
        worker.gate.set()
        worker.between.set()
        await worker.stop()


@pytest.fixture
async def make_front() -> AsyncIterator[Callable[..., Awaitable[Front]]]:
    """Starts a coordinator before the given workers and waits until all are ready.

    Settings of `[coordinator]` as keyword arguments; `rows`: settings for each worker;
    `tables`: other tables of the file; `end`: the link's; `extension`: of its routes.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def make(
            *workers: StandInWorker,
            rows: list[dict[str, Any]] | None = None,
            tables: dict[str, Any] | None = None,
            end: Any = None,
            extension: Extension = nothing_more,
            **settings: Any,
        ) -> Front:
            given = rows or [{"worker_id": f"w{number}"} for number in range(len(workers))]
            plain = {
                "coordinator": {"port": 0, "health_interval_s": 0.2, **settings},
                "workers": [
                    {"url": worker.url, **row} for worker, row in zip(workers, given, strict=True)
                ],
                **(tables or {}),
            }
            coordinator = Coordinator(convert(plain, CoordinatorFile, "test"), end)
            if end is not None:
                stack.callback(end.close)
            await stack.enter_async_context(coordinator.running())
            routes = await stack.enter_async_context(extension(coordinator))
            server = HttpServer(coordinator, routes)
            serving = asyncio.create_task(server.serve())

            async def stop() -> None:
                coordinator.exchanges.abandon()
                server.should_exit = True
                await serving

            stack.push_async_callback(stop)
            await until(lambda: server.started)
            session = await stack.enter_async_context(aiohttp.ClientSession())
            front = Front(coordinator, server, f"http://127.0.0.1:{server.port}", session)
            directory = coordinator.parts.directory
            await until(lambda: len(directory.ready()) == len(workers))
            return front

        yield make


@pytest.fixture
def browse() -> Callable[..., contextlib.AbstractAsyncContextManager[Any]]:
    """Opens a page in Chromium; it may complain of nothing and ask nobody else for anything.

    Needs Debian's package chromium and the Python package playwright, whose own browser is not
    used.
    """
    playwright = pytest.importorskip("playwright.async_api", reason="no playwright installed here")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium here (Debian's package chromium)")

    @contextlib.asynccontextmanager
    async def opened(url: str, **options: Any) -> AsyncIterator[Any]:
        async with playwright.async_playwright() as started:
            browser = await started.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
            )
            size = {"width": 1100, "height": 900}
            page = await browser.new_page(**{"viewport": size, **options})
            page.set_default_timeout(30_000)
            complaints: list[str] = []
            asked: list[str] = []
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.on(
                "console",
                lambda line: complaints.append(line.text) if line.type == "error" else None,
            )
            await page.goto(url)
            yield page
            await browser.close()
        ours = f"{urlsplit(url).scheme}://{urlsplit(url).netloc}/"
        foreign = [one for one in asked if not one.startswith((ours, "data:"))]
        refused = [line for line in complaints if "Failed to load resource" not in line]
        assert (foreign, refused) == ([], [])

    return opened
