"""Workers without an engine that answer as fast as one Python process can, for measuring a front.

One process of its own with several addresses, each a worker that speaks as much of SGLang's HTTP
as a front asks for; every answer is the same few tokens. With a link each also reports the end
of every request, as the plugin does. Run as `python -m hexgen_sglang.bench.mock_workers`; it writes
its URLs as one JSON line, then serves until SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import signal
import sys
from collections.abc import Callable

from hexgen_sglang.plugin.agent import WorkerAgent
from hexgen_sglang.protocol.messages import Hello, Load, RequestFinished

MODEL = "mock"
PROMPT_TOKENS, OUTPUT_TOKENS = 64, 16
MAX_RUNNING = 1_024
KV_TOKENS = 10_000_000
_TEXT = "SELECT count(*) FROM orders;"
_RID = b'"rid":"'
_LENGTH = b"content-length:"

_USAGE = {
    "prompt_tokens": PROMPT_TOKENS,
    "completion_tokens": OUTPUT_TOKENS,
    "total_tokens": PROMPT_TOKENS + OUTPUT_TOKENS,
}
_INFO = {
    "version": "0.5.23",
    "model_path": MODEL,
    "max_total_num_tokens": KV_TOKENS,
    "internal_states": [{"effective_max_running_requests_per_dp": MAX_RUNNING}],
}
_ANSWERS: dict[bytes, object] = {
    b"GET /v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model"}]},
    b"GET /server_info": _INFO,
    b"GET /get_server_info": _INFO,
    b"GET /get_model_info": {"model_path": MODEL, "is_generation": True},
    b"GET /model_info": {"model_path": MODEL, "is_generation": True},
    b"POST /abort_request": {},
    b"GET /health": {},
    b"GET /health_generate": {},
    b"POST /v1/completions": {
        "id": "cmpl-0",
        "object": "text_completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "text": _TEXT, "logprobs": None, "finish_reason": "stop"}],
        "usage": _USAGE,
    },
    b"POST /generate": {
        "text": _TEXT,
        "meta_info": {
            "id": "0",
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": OUTPUT_TOKENS,
            "cached_tokens": 0,
            "finish_reason": {"type": "stop"},
        },
    },
}
_GENERATING = (b"POST /v1/completions", b"POST /generate")


def _page(value: object) -> bytes:
    body = json.dumps(value).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


_PAGES = {name: _page(value) for name, value in _ANSWERS.items()}
_MISSING = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


class MockConnection(asyncio.Protocol):
    """One connection: requests with a stated length, answered in order.

    Args:
        ended: told the request id of every request that generates; None: nobody is.
    """

    def __init__(self, ended: Callable[[str], None] | None) -> None:
        self._ended = ended
        self._held = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        data = self._held + data if self._held else data
        while True:
            split = data.find(b"\r\n\r\n")
            if split < 0:
                break
            end = split + 4 + _length(data[:split])
            if len(data) < end:
                break
            self._answer(data[:split], data[split + 4 : end])
            data = data[end:]
        self._held = data

    def _answer(self, head: bytes, body: bytes) -> None:
        name = head[: head.index(b" ", 5)].partition(b"?")[0]
        if self._transport is not None:
            self._transport.write(_PAGES.get(name, _MISSING))
        if self._ended is not None and name in _GENERATING:
            at = body.find(_RID)
            if at >= 0:
                start = at + len(_RID)
                self._ended(body[start : body.index(b'"', start)].decode())


def _length(head: bytes) -> int:
    """Of the body that follows these headers; 0 when none is stated."""
    lower = head.lower()
    at = lower.find(_LENGTH)
    if at < 0:
        return 0
    return int(lower[at + len(_LENGTH) :].partition(b"\r\n")[0])


def finished(rid: str) -> RequestFinished:
    """The plugin's report of one of these answers."""
    return RequestFinished(
        request_id=rid,
        workflow_id=None,
        stage=None,
        prompt_tokens=PROMPT_TOKENS,
        cached_tokens=0,
        output_tokens=OUTPUT_TOKENS,
        queue_ms=0.0,
        ttft_ms=0.05,
        e2e_ms=0.1,
        aborted=False,
    )


def _agent(link: str, number: int, url: str) -> WorkerAgent:
    from hexgen_sglang.transport.zmq_link import ZmqWorkerEnd

    hello = Hello(
        link_version=1,
        worker_id=f"mock-{number}",
        incarnation=f"mock-{number}",
        url=url,
        model=MODEL,
        hardware="mock",
        sglang_version="0.5.23",
        plugin_version="0",
        max_running_requests=MAX_RUNNING,
        kv_capacity_tokens=KV_TOKENS,
        ordering="fcfs",
    )
    agent = WorkerAgent(functools.partial(ZmqWorkerEnd, link), hello, max_queued=65_536)
    agent.start()
    agent.report_load(
        Load(num_running=1, num_waiting=0, num_waiting_tokens=0, num_kv_tokens_used=0)
    )
    return agent


async def _serve(num_workers: int, link: str) -> None:
    loop = asyncio.get_running_loop()
    ended: dict[int, Callable[[str], None]] = {}
    urls = []
    for number in range(num_workers):

        def make(number: int = number) -> MockConnection:
            return MockConnection(ended.get(number))

        server = await loop.create_server(make, "127.0.0.1", 0, backlog=1_024)
        urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    agents = [_agent(link, number, url) for number, url in enumerate(urls) if link]
    for number, agent in enumerate(agents):

        def report(rid: str, agent: WorkerAgent = agent) -> None:
            agent.report(finished(rid))

        ended[number] = report
    sys.stdout.write(json.dumps(urls) + "\n")
    sys.stdout.flush()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    for agent in agents:
        agent.stop("the bench is over")


def main() -> None:
    """Serve until SIGTERM."""
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=4, help="workers, at least 1")
    parser.add_argument("--link", default="", help="of a coordinator, tcp://HOST:PORT")
    arguments = parser.parse_args()
    uvloop.run(_serve(arguments.num, arguments.link))


if __name__ == "__main__":
    main()
