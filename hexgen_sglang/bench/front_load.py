"""A closed-loop load generator over HTTP for fronts of workers, in a process of its own.

Each of a number of users sends, waits for the answer, and sends again. Run as `python -m
hexgen_sglang.bench.front_load`; writes one JSON line: requests, errors, seconds, latencies.
`--placements N` asks a coordinator for N placements at a time, then talks to the workers itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec

from hexgen_sglang.results.statistics import quantile

_LENGTH = b"content-length:"
_CHUNKED = b"transfer-encoding: chunked"
PROMPT = "Which tables hold orders of the last quarter, and how are they joined? " * 4
MAX_TOKENS = 16


def post(host: str, path: str, body: bytes) -> bytes:
    """A whole POST request."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass
class Tally:
    """What was seen after the warm-up."""

    starts_at: float
    ends_at: float
    seconds: list[float] = field(default_factory=list)
    num_errors: int = 0

    def add(self, started_at: float, *, is_good: bool) -> None:
        """One request ended now."""
        now = time.perf_counter()
        if self.starts_at <= now <= self.ends_at:
            if is_good:
                self.seconds.append(now - started_at)
            else:
                self.num_errors += 1


class Connection(asyncio.Protocol):
    """One kept connection; one exchange at a time.

    Attributes:
        on_answer: told status and body of each answer; status 0: the connection broke.
    """

    def __init__(self) -> None:
        self.on_answer: Callable[[int, bytes], None] = lambda status, body: None
        self.transport: asyncio.Transport | None = None
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport  # type: ignore[assignment]

    def send(self, request: bytes) -> None:
        """Send a request; the answer goes to `on_answer`."""
        if self.transport is None or self.transport.is_closing():
            asyncio.get_running_loop().call_later(0.01, self.on_answer, 0, b"")
            return
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Tell of an answer that is complete."""
        data = self._held + data if self._held else data
        split = data.find(b"\r\n\r\n")
        body = _body(data, split) if split >= 0 else None
        if body is None:
            self._held = data
            return
        self._held = b""
        self.on_answer(int(data[9:12]), body)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell of it."""
        self.transport = None
        self.on_answer(0, b"")


def _body(data: bytes, split: int) -> bytes | None:
    """The body of an answer whose headers end at `split`; None while it is not complete."""
    head = data[:split].lower()
    at = head.find(_LENGTH)
    if at >= 0:
        end = split + 4 + int(head[at + len(_LENGTH) :].partition(b"\r\n")[0])
        return data[split + 4 : end] if len(data) >= end else None
    if _CHUNKED not in head:
        return b""
    if not data.endswith(b"0\r\n\r\n"):
        return None
    pieces: list[bytes] = []
    rest = data[split + 4 :]
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return b"".join(pieces)
        pieces.append(rest[:length])
        rest = rest[length + 2 :]


async def connected(url: str) -> Connection:
    """A new connection."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port)
    return connection


class ProxiedUser:
    """Sends the same request again and again to one address."""

    def __init__(self, connection: Connection, request: bytes, tally: Tally) -> None:
        self._connection = connection
        self._request = request
        self._tally = tally
        self._started = 0.0
        connection.on_answer = self._answered

    def start(self) -> None:
        """Send the first, or the next, request."""
        self._started = time.perf_counter()
        self._connection.send(self._request)

    def _answered(self, status: int, body: bytes) -> None:
        self._tally.add(self._started, is_good=status == 200)
        if time.perf_counter() < self._tally.ends_at:
            self.start()


class _Placement(msgspec.Struct):
    """What is read of a placement."""

    url: str
    rid: str
    custom_params: msgspec.Raw = msgspec.Raw(b"null")


class DirectUser:
    """Asks for placements, sends each request to its worker, and asks again when all ended."""

    def __init__(
        self,
        connection: Connection,
        request: bytes,
        workers: dict[str, list[Connection]],
        hosts: dict[str, str],
        tally: Tally,
    ) -> None:
        self._connection = connection
        self._request = request
        self._workers = workers
        self._hosts = hosts
        self._tally = tally
        self._started = 0.0
        self._num_open = 0
        self._decoder = msgspec.json.Decoder(_Placement)
        connection.on_answer = self._placed

    def start(self) -> None:
        """Ask for the first, or the next, placements."""
        self._started = time.perf_counter()
        self._connection.send(self._request)

    def _placed(self, status: int, body: bytes) -> None:
        if status != 200:
            self._tally.add(self._started, is_good=False)
            self._go_on()
            return
        rows = [self._decoder.decode(line) for line in body.splitlines()]
        self._num_open = len(rows)
        for row in rows:
            connection = self._workers[row.url].pop()
            raw = b'{"prompt":%b,"model":"mock","max_tokens":%d,"rid":"%b","custom_params":%b}' % (
                _PROMPT_JSON,
                MAX_TOKENS,
                row.rid.encode(),
                bytes(row.custom_params),
            )

            def answered(
                status: int, body: bytes, url: str = row.url, connection: Connection = connection
            ) -> None:
                self._workers[url].append(connection)
                self._tally.add(self._started, is_good=status == 200)
                self._num_open -= 1
                if not self._num_open:
                    self._go_on()

            connection.on_answer = answered
            connection.send(post(self._hosts[row.url], "/v1/completions", raw))

    def _go_on(self) -> None:
        if time.perf_counter() < self._tally.ends_at:
            self.start()


_PROMPT_JSON = json.dumps(PROMPT).encode()


def completion_body() -> bytes:
    """The request that is sent through a front."""
    return msgspec.json.encode({"prompt": PROMPT, "model": "mock", "max_tokens": MAX_TOKENS})


def placements_body(number: int) -> bytes:
    """The same request's outline, so many times."""
    row = {"model": "mock", "num_prompt_chars": len(PROMPT), "max_output_tokens": MAX_TOKENS}
    return msgspec.json.encode({"requests": [row] * number})


async def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    now = time.perf_counter()
    tally = Tally(now + arguments.warm_up, now + arguments.warm_up + arguments.seconds)
    host = urlsplit(arguments.url).netloc
    users: list[ProxiedUser | DirectUser] = []
    if arguments.placements:
        hosts = {url: urlsplit(url).netloc for url in arguments.workers}
        most = arguments.users * arguments.placements
        workers = {
            url: [await connected(url) for _ in range(min(most, 256))] for url in arguments.workers
        }
        request = post(host, "/placements", placements_body(arguments.placements))
        for _ in range(arguments.users):
            connection = await connected(arguments.url)
            users.append(DirectUser(connection, request, workers, hosts, tally))
    else:
        request = post(host, "/v1/completions", completion_body())
        connections = [await connected(arguments.url) for _ in range(arguments.users)]
        users = [ProxiedUser(connection, request, tally) for connection in connections]
    started = time.perf_counter()
    tally.starts_at = started + arguments.warm_up
    tally.ends_at = tally.starts_at + arguments.seconds
    for user in users:
        user.start()
    await asyncio.sleep(tally.ends_at - time.perf_counter() + 0.2)
    used = resource.getrusage(resource.RUSAGE_SELF)
    count = len(tally.seconds)
    return {
        "requests": count,
        "errors": tally.num_errors,
        "rps": count / arguments.seconds,
        "p50_ms": 1e3 * quantile(tally.seconds, 0.5) if count else None,
        "p99_ms": 1e3 * quantile(tally.seconds, 0.99) if count else None,
        "generator_cpu_s": used.ru_utime + used.ru_stime,
    }


def main() -> None:
    """Load an address for some seconds."""
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-up", type=float, default=1.0)
    parser.add_argument("--placements", type=int, default=0, help="at a time; 0: through a front")
    parser.add_argument("--workers", nargs="*", default=[], help="URLs, with --placements")
    sys.stdout.write(json.dumps(uvloop.run(_run(parser.parse_args()))) + "\n")


if __name__ == "__main__":
    main()
