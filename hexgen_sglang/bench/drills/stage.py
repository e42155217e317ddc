"""The stage of the drills: two emulated workers, a coordinator, and links that can be broken.

Runs in the process that owns the drills. Between coordinator and each worker lie two forwarders,
one for HTTP and one for the ZMQ link. With one server of somebody else's, both workers are that
server, without ZMQ: enough for what breaks between coordinator and workers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from hexgen_sglang.bench.drills.callers import PERIOD, Call, Callers, KnownAnswers
from hexgen_sglang.bench.drills.forwarder import Forwarder
from hexgen_sglang.cluster.coordinator import CoordinatorSpec
from hexgen_sglang.cluster.ports import free_port
from hexgen_sglang.cluster.process import ChildProcess, stop_all, wait_ready
from hexgen_sglang.cluster.worker import WorkerSpec
from hexgen_sglang.coordinator.config import CoordinatorConfig, WorkerConfig
from hexgen_sglang.core.errors import LawViolation
from hexgen_sglang.core.strict import convert
from hexgen_sglang.models.tiny import make_tiny_model

HERE = Path(__file__).parent
PROFILE = HERE / "profile.toml"
START_TIMEOUT_S = 900.0
# So that a drill sees in seconds what takes minutes with the settings for production.
QUICK = {
    "port": 0,
    "health_interval_s": 0.5,
    "health_timeout_s": 4.0,
    "health_failures": 2,
    "stream_gap_timeout_s": 20.0,
    "heartbeat_ms": 250,
    "drain_timeout_s": 5.0,
}
WORKERS = ("worker-0", "worker-1")
_STABLE_TOKENS = 24
_FIRST_LENGTH = 40
_PIECE = 42


class Stage:
    """Workers, coordinator and forwarders. Use with `async with`; all are gone after it.

    Args:
        folder: for logs and the lies told to processes.
        server_url: a running server with the profile `PROFILE`, instead of two of our own.
        settings: of the coordinator, beside `QUICK`.

    Attributes:
        http, link: forwarders by worker name.
        second_link: where a second coordinator may listen for the workers, too.
        processes: what was started, by name.
        lies: folder that the shim of coordinator and workers reads.
    """

    def __init__(self, folder: Path, server_url: str = "", **settings: Any) -> None:
        self.folder = folder
        self.lies = folder / "lies"
        self.lies.mkdir(parents=True)
        self._number = 0
        self.processes: dict[str, ChildProcess] = {}
        self.http: dict[str, Forwarder] = {}
        self.link: dict[str, Forwarder] = {}
        self._server_url = server_url
        self.second_link = f"tcp://127.0.0.1:{free_port()}"
        config = convert(QUICK | settings, CoordinatorConfig, "drills")
        self.coordinator = CoordinatorSpec.with_ports(config)
        self.workers: dict[str, WorkerSpec] = {}
        if server_url:
            self._share(server_url)
        else:
            self.workers = {name: self._worker(name) for name in WORKERS}
        self.known = KnownAnswers(0, ())
        self._texts: dict[int, str] = {}

    def _share(self, url: str) -> None:
        """Let both workers be the server at `url`."""
        host, _, port = url.rpartition("/")[2].rpartition(":")
        rows = []
        for name in WORKERS:
            front = free_port()
            self.http[name] = Forwarder(("127.0.0.1", front), (host, int(port)))
            rows.append(WorkerConfig(url=f"http://127.0.0.1:{front}", worker_id=name))
        self.coordinator = CoordinatorSpec(self.coordinator.config, tuple(rows))

    def _worker(self, name: str) -> WorkerSpec:
        """The worker's specification, and its forwarders."""
        http, link = free_port(), free_port()
        spec = WorkerSpec(
            name=name,
            model_path=str(make_tiny_model()),
            emulate=PROFILE,
            schedule_policy="hexgen",
            coordinator_link=f"tcp://127.0.0.1:{link},{self.second_link}",
            flags=("--hexgen-advertise-url", f"http://127.0.0.1:{http}"),
            env=self._shim("load" if name == WORKERS[0] else ""),
        )
        link_port = int(self.coordinator.config.link.rpartition(":")[2])
        self.http[name] = Forwarder(("127.0.0.1", http), ("127.0.0.1", spec.port))
        self.link[name] = Forwarder(("127.0.0.1", link), ("127.0.0.1", link_port))
        return spec

    def _shim(self, lies: str) -> dict[str, str]:
        """Environment of a process whose clock, and what `lies` names, the drill can change."""
        return {
            "PYTHONPATH": str(HERE / "shim"),
            "HEXGEN_DRILL_FOLDER": str(self.lies),
            "HEXGEN_DRILL_LIES": lies,
        }

    @property
    def url(self) -> str:
        """The coordinator's base address."""
        return self.coordinator.url

    async def __aenter__(self) -> Stage:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _start(self) -> None:
        for forwarder in (*self.http.values(), *self.link.values()):
            await forwarder.start()
        await self.start_coordinator()
        for name in self.workers:
            await self.start_worker(name, is_awaited=False)
        for name in WORKERS:
            await self.until_ready(name)
        await self._learn_answers()

    async def _stop(self) -> None:
        for forwarder in (*self.http.values(), *self.link.values()):
            await forwarder.stop()
        for process in self.processes.values():
            self._signal(process, signal.SIGCONT)
        await asyncio.to_thread(stop_all, self.processes.values(), 3.0)

    async def start_coordinator(
        self, inside: Callable[[ChildProcess], ChildProcess] = lambda process: process
    ) -> None:
        """Start it, also again after its end, and wait until it serves.

        `inside`: makes of the process one that runs elsewhere.
        """
        plain = self.coordinator.process(self.folder)
        env = {**plain.env, **self._shim("")}
        process = inside(ChildProcess(plain.name, plain.command, env=env, log_path=plain.log_path))
        self.processes[plain.name] = process
        process.start()
        await asyncio.to_thread(
            wait_ready, [(process, self.coordinator.is_ready)], timeout_s=60.0, poll_s=0.1
        )

    async def start_worker(self, name: str, *, is_awaited: bool = True) -> None:
        """Start it, also again after its end; `is_awaited`: until it is ready."""
        self.processes[name] = self.workers[name].process(self.folder)
        self.processes[name].start()
        if is_awaited:
            await self.until_ready(name)

    async def until_ready(self, name: str) -> None:
        """Wait until the worker is linked and takes requests.

        Raises:
            ProcessError: it ended, or is not ready in time.
        """
        process = self.processes.get(name)

        async def is_ready() -> bool:
            if process is not None and not process.is_running():
                raise process.failure(f"ended with status {process.exit_code()}")
            row = (await self.rows()).get(name)
            is_linked = row is not None and (row["linked"] or name not in self.workers)
            return row is not None and row["state"] == "ready" and is_linked

        await until(is_ready, START_TIMEOUT_S, f"{name} is not ready")

    async def rows(self) -> dict[str, dict[str, Any]]:
        """What the coordinator says of its workers, by name; {} while it does not answer."""
        listing = await self.ask("/workers")
        return {row["worker_id"]: row for row in listing["workers"]} if listing else {}

    async def ask(self, path: str) -> Any:
        """A report of the coordinator; None while it does not answer."""
        timeout = aiohttp.ClientTimeout(total=10)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(self.url + path) as response,
            ):
                return await response.json() if response.status in (200, 503) else None
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            return None

    def pause(self, name: str) -> None:
        """SIGSTOP all of its processes."""
        self._signal(self.processes[name], signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT all of its processes."""
        self._signal(self.processes[name], signal.SIGCONT)

    def _signal(self, process: ChildProcess, number: signal.Signals) -> None:
        for pid in process.members():
            os.kill(pid, number)

    def callers(self) -> Callers:
        """New callers of the coordinator."""
        return Callers([self.url], self.known, self._texts)

    def call(self, kind: str, *, num_prompt_tokens: int = 200, count: int = 60) -> Call:
        """A call with a prompt that no other has; of text: as long as can be compared."""
        self._number += 1
        number = self._number
        if kind == "text":
            stable = self.known.stable
            num_prompt_tokens, count = stable[number % len(stable)], _STABLE_TOKENS
        own = [20 + number % 200, 20 + number // 200 % 200]
        fill = (20 + (number * 7 + place * 13) % 200 for place in range(num_prompt_tokens - 2))
        return Call(f"drill-{number}", kind, [*own, *fill], count, budget_ms=600_000)

    async def _learn_answers(self) -> None:
        """Ask a quiet worker for all answers there are, in pieces.

        Raises:
            LawViolation: a token is there twice, so that answers could not be told apart.
        """
        url = (self._server_url or self.workers[WORKERS[1]].url) + "/generate"

        async def piece(session: aiohttp.ClientSession, first: int) -> list[int]:
            prompt = [20 + place % 200 for place in range(_FIRST_LENGTH + first)]
            sampling = {"max_new_tokens": min(_PIECE, PERIOD - first), "ignore_eos": True}
            body = {"input_ids": prompt, "sampling_params": sampling}
            async with session.post(url, json=body) as response:
                return list((await response.json())["output_ids"])

        async with aiohttp.ClientSession() as session:
            asked = (piece(session, first) for first in range(0, PERIOD, _PIECE))
            ids = [item for part in await asyncio.gather(*asked) for item in part]
        if len(ids) != PERIOD or len(set(ids)) != PERIOD:
            raise LawViolation(f"{len(set(ids))} distinct tokens in {len(ids)}: must be {PERIOD}")
        stable, texts = await asyncio.to_thread(_stable_lengths, tuple(ids))
        self._texts = texts
        self.known = KnownAnswers(_FIRST_LENGTH, tuple(ids), stable, _STABLE_TOKENS)


def _stable_lengths(ids: tuple[int, ...]) -> tuple[tuple[int, ...], dict[int, str]]:
    """Prompt lengths whose answers can be compared as text, and these texts.

    Raises:
        LawViolation: there are none.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(make_tiny_model()))

    def text_of(tokens: list[int]) -> str:
        """As servers tell it: without special tokens."""
        return str(tokenizer.decode(tokens, skip_special_tokens=True))

    texts: dict[int, str] = {}
    for first in range(PERIOD):
        window = [ids[(first + place) % PERIOD] for place in range(_STABLE_TOKENS)]
        if all(
            tokenizer.encode(text_of(window[:length]), add_special_tokens=False) == window[:length]
            for length in range(1, _STABLE_TOKENS + 1)
        ):
            texts[_FIRST_LENGTH + first] = text_of(window)
    if not texts:
        raise LawViolation("no answer is read back from its text as the same tokens")
    return tuple(texts), texts


async def until(
    condition: Callable[[], Awaitable[bool]], timeout_s: float, what: str, poll_s: float = 0.05
) -> float:
    """Wait until it holds; returns how many seconds that took.

    Raises:
        LawViolation: it never did; says `what`.
    """
    began_s = time.monotonic()
    while not await condition():
        if time.monotonic() - began_s > timeout_s:
            raise LawViolation(f"{what} after {timeout_s:g} s")
        await asyncio.sleep(poll_s)
    return time.monotonic() - began_s
