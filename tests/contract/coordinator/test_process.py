"""The coordinator as its own process: start, drain on SIGTERM, end."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from hexgen_sglang.coordinator.api_keys import Role, append_key, make_key
from hexgen_sglang.coordinator.config import load_config

MakeWorker = Callable[..., Awaitable[Any]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]
Start = Callable[..., Awaitable["Started"]]

EXIT_TIMEOUT_S = 30.0


class Started:
    """A running coordinator process, its log so far, and a client."""

    def __init__(self, process: asyncio.subprocess.Process, session: aiohttp.ClientSession) -> None:
        self.process = process
        self.session = session
        self.log: list[str] = []
        self.url = ""
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log.append(line.decode())
            listening = re.search(r"listening on (http://\S+)", self.log[-1])
            if listening:
                self.url = listening[1]

    async def until_log(self, text: str) -> None:
        async with asyncio.timeout(EXIT_TIMEOUT_S):
            while not any(text in line for line in self.log):
                assert self.process.returncode is None, self.log
                await asyncio.sleep(0.02)

    async def generate(self, **fields: Any) -> tuple[int, Any]:
        body = {"text": "hello", **fields}
        async with self.session.post(self.url + "/generate", json=body) as response:
            return response.status, await response.json()

    async def exit_status(self) -> int:
        async with asyncio.timeout(EXIT_TIMEOUT_S):
            await self._reader
            return await self.process.wait()


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts `hexgen-sglang coordinator` with arguments; kills it in the end if need be."""
    processes: list[asyncio.subprocess.Process] = []
    async with aiohttp.ClientSession() as session:

        async def run(*arguments: str, listens: bool = True) -> Started:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "hexgen_sglang", "coordinator", *arguments),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            processes.append(process)
            started = Started(process, session)
            if listens:
                await started.until_log("listening on")
            return started

        yield run
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()


def config_file(tmp_path: Path, url: str, settings: str = "") -> str:
    path = tmp_path / "coordinator.toml"
    path.write_text(f'[coordinator]\nport = 0\n{settings}\n[[workers]]\nurl = "{url}"\n')
    return str(path)


async def test_sigterm_lets_requests_finish_and_refuses_new_ones(
    tmp_path: Path, make_worker: MakeWorker, start: Start, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    worker.gate.clear()
    coordinator = await start("--config", config_file(tmp_path, worker.url))
    calls = [asyncio.create_task(coordinator.generate()) for _ in range(3)]
    await wait_until(lambda: len(worker.seen) == 3)
    async with coordinator.session.get(coordinator.url + "/dashboard/state") as response:
        assert (await response.json())["totals"]["num_running"] == 3
    coordinator.process.send_signal(signal.SIGTERM)
    await coordinator.until_log("draining: 3 requests")
    status, answer = await coordinator.generate()
    assert (status, answer["error"]["code"]) == (503, "draining")
    async with coordinator.session.get(coordinator.url + "/health") as response:
        assert (response.status, (await response.json())["status"]) == (503, "draining")
    worker.gate.set()
    assert [status for status, _ in await asyncio.gather(*calls)] == [200] * 3
    assert await coordinator.exit_status() == 0
    assert worker.aborted == []
    assert len(worker.seen) == 3


@pytest.mark.parametrize("hurry", [False, True])
async def test_what_does_not_finish_in_time_is_told_so_and_stopped(
    hurry: bool, tmp_path: Path, make_worker: MakeWorker, start: Start, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    worker.gate.clear()
    limit = "drain_timeout_s = " + ("600" if hurry else "0.3")
    coordinator = await start("--config", config_file(tmp_path, worker.url, limit))
    call = asyncio.create_task(coordinator.generate())
    await wait_until(lambda: len(worker.seen) == 1)
    coordinator.process.send_signal(signal.SIGTERM)
    await coordinator.until_log("draining: 1 requests")
    if hurry:
        coordinator.process.send_signal(signal.SIGINT)
    status, answer = await call
    assert (status, answer["error"]["code"]) == (503, "draining")
    assert await coordinator.exit_status() == 0
    assert worker.aborted == [worker.seen[0]["rid"]]


async def test_flags_are_enough_for_the_simple_case(
    make_worker: MakeWorker, start: Start, wait_until: WaitUntil
) -> None:
    workers = [await make_worker(), await make_worker()]
    flags = [part for worker in workers for part in ("--worker", worker.url)]
    coordinator = await start("--port", "0", "--dispatch", "round_robin", *flags)
    answers = [await coordinator.generate() for _ in range(6)]
    assert [status for status, _ in answers] == [200] * 6
    assert sum(len(worker.seen) for worker in workers) == 6
    coordinator.process.send_signal(signal.SIGINT)
    assert await coordinator.exit_status() == 0


async def test_an_address_in_use_ends_with_one_clear_line(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        coordinator = await start("--port", str(port), listens=False)
        assert await coordinator.exit_status() == 2
    assert f"host='127.0.0.1', port={port}: cannot listen there" in coordinator.log[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "70000"], "`int` <= 65535 - at `$.coordinator.port`; value 70000"),
        (["--worker", "gpu-1:3000"], "url='gpu-1:3000': must be http"),
        (["--link", "tcp://0.0.0.0:5600"], "CURVE keys are required"),
        (
            ["--host", "0.0.0.0"],
            "can be reached from other machines: state api_keys",
        ),
        (["--api-keys", "/nowhere.toml"], "api key file /nowhere.toml: No such file"),
        (["--tls-cert", "/nowhere.pem"], "tls_cert and tls_key: both must be given"),
        (["--dispatch", "best"], "dispatch policy 'best' is unknown; known: earliest_completion"),
        (["--config", "/nowhere.toml"], "/nowhere.toml"),
        (["--link", "tcp://127.0.0.1:5600", "--keys", "/nowhere"], "/nowhere"),
    ],
)
async def test_wrong_settings_end_with_one_clear_line(
    arguments: list[str], said: str, start: Start
) -> None:
    coordinator = await start(*arguments, listens=False)
    assert await coordinator.exit_status() == 2
    assert len(coordinator.log) == 1
    assert said in coordinator.log[0]


async def test_the_printed_configuration_has_everything_and_reads_back(tmp_path: Path) -> None:
    source = config_file(tmp_path, "http://127.0.0.1:30000", 'dispatch = "least_load"')
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hexgen_sglang", "coordinator"),
        *("--config", source, "--port", "8123", "--print-config"),
        stdout=asyncio.subprocess.PIPE,
    )
    text, _ = await process.communicate()
    assert process.returncode == 0
    copy = tmp_path / "copy.toml"
    copy.write_bytes(text)
    config = load_config(copy)
    assert (config.coordinator.port, config.coordinator.dispatch) == (8123, "least_load")
    assert [row.url for row in config.workers] == ["http://127.0.0.1:30000"]
    assert b"queue_timeout_s = 300.0" in text


async def test_sighup_reads_the_keys_again(
    tmp_path: Path, make_worker: MakeWorker, start: Start
) -> None:
    path = tmp_path / "api-keys.toml"
    append_key(path, make_key("acme", (Role.CLIENT,))[1])
    worker = await make_worker()
    coordinator = await start("--port", "0", "--worker", worker.url, "--api-keys", str(path))
    coordinator.process.send_signal(signal.SIGHUP)
    await coordinator.until_log("api keys read again: 1")
    status, answer = await coordinator.generate()
    assert (status, answer["error"]["code"]) == (401, "missing_api_key")
    coordinator.process.send_signal(signal.SIGTERM)
    assert await coordinator.exit_status() == 0
