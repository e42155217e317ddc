"""Two coordinator processes before the same workers: whose a workflow is, and one that dies."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from hexgen_sglang.cluster.ports import free_port
from hexgen_sglang.coordinator.api_keys import Role, append_key, make_key
from hexgen_sglang.coordinator.peers import first_of

MakeWorker = Callable[..., Awaitable[Any]]
START_S = 30.0
BUDGET_MS = 60_000
BEAT_S = 0.05


class Pair:
    """Coordinators "a" and "b", each its own process."""

    def __init__(self, folder: Path, workers: list[Any], session: aiohttp.ClientSession) -> None:
        self.session = session
        self.ports = {name: free_port() for name in "ab"}
        self.files = {name: folder / f"{name}.toml" for name in "ab"}
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.headers: dict[str, str] = {}
        self.folder = folder
        self._workers = workers

    def configure(self, settings: str = "") -> None:
        for name, other in ("ab", "ba"):
            rows = [
                f'[[workers]]\nurl = "{worker.url}"\nworker_id = "w{number}"'
                for number, worker in enumerate(self._workers)
            ]
            peer = f'[[peers]]\ncoordinator_id = "{other}"\nurl = "{self.url(other)}"'
            head = f'[coordinator]\nport = {self.ports[name]}\ncoordinator_id = "{name}"'
            quick = f"health_interval_s = 0.2\npeer_interval_ms = {1_000 * BEAT_S:.0f}"
            self.files[name].write_text("\n".join([head, quick, settings, *rows, peer]) + "\n")

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    async def start(self, name: str) -> None:
        """Start it, and wait until it has ready workers."""
        log = (self.folder / f"{name}.log").open("a")
        self.processes[name] = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hexgen_sglang", "coordinator"),
            *("--config", str(self.files[name])),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=log,
        )
        log.close()
        await self.until(name, lambda health: health["workers"]["ready"] == len(self._workers))

    async def until(self, name: str, holds: Callable[[dict[str, Any]], bool]) -> None:
        async with asyncio.timeout(START_S):
            while True:
                health = await self.health(name)
                if health is not None and holds(health):
                    return
                await asyncio.sleep(0.02)

    async def health(self, name: str) -> dict[str, Any] | None:
        try:
            async with self.session.get(self.url(name) + "/health") as response:
                return dict(await response.json())
        except aiohttp.ClientError:
            return None

    async def kill(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGKILL)
        await self.processes[name].wait()

    async def ask(
        self, method: str, name: str, path: str, body: Any = None
    ) -> tuple[int, Any, Any]:
        async with self.session.request(
            method, self.url(name) + path, json=body, headers=self.headers
        ) as response:
            return response.status, json.loads(await response.text()), response.headers

    async def generate(
        self, name: str, workflow_id: str, budget_ms: int = BUDGET_MS, **fields: Any
    ) -> tuple[int, Any, Any]:
        tag = {"workflow_id": workflow_id, "budget_ms": budget_ms, "stage": "s"}
        return await self.ask("POST", name, "/generate", {"text": "hi", "hexgen": tag, **fields})


@pytest.fixture
async def pair(tmp_path: Path, make_worker: MakeWorker) -> AsyncIterator[Pair]:
    workers = [await make_worker(), await make_worker()]
    async with aiohttp.ClientSession() as session:
        made = Pair(tmp_path, workers, session)
        made.workers = workers  # type: ignore[attr-defined]
        yield made
        for process in made.processes.values():
            if process.returncode is None:
                process.kill()
                await process.wait()


async def started(pair: Pair, settings: str = "") -> None:
    pair.configure(settings)
    await asyncio.gather(pair.start("a"), pair.start("b"))
    for name in "ab":
        await pair.until(name, lambda health: "peers_lost" not in health["degraded"])


def owned_by(name: str, count: int = 1) -> list[str]:
    ids = (f"flow-{number}" for number in range(1_000))
    return [one for one in ids if first_of("ab", one) == name][:count]


async def test_each_workflow_is_at_one_coordinator_whoever_is_asked(pair: Pair) -> None:
    await started(pair)
    [theirs] = owned_by("b")
    status, _, headers = await pair.generate("a", theirs)
    assert (status, headers["x-hexgen-coordinator-id"]) == (200, "b")
    status, _, headers = await pair.generate("b", theirs)
    assert status == 200
    assert "x-hexgen-coordinator-id" not in headers
    for name in "ab":
        status, told, _ = await pair.ask("GET", name, f"/workflows/{theirs}")
        assert (status, len(told["requests"])) == (200, 2)
        assert abs(told["budget_s"] - BUDGET_MS / 1_000) < 0.01
    listed = {name: await pair.ask("GET", name, "/workflows") for name in "ab"}
    assert [len(listed[name][1]["workflows"]) for name in "ab"] == [0, 1]
    # Changes and ends reach it, too; a refusal of the owner is the answer.
    status, told, _ = await pair.ask("PATCH", "a", f"/workflows/{theirs}", {"budget_ms": 5_000})
    assert (status, told["workflow_id"]) == (200, theirs)
    status, told, _ = await pair.ask("PATCH", "a", f"/workflows/{theirs}", {"budget_ms": -1})
    assert (status, told["error"]["type"]) == (400, "invalid_request_error")
    status, told, _ = await pair.ask("DELETE", "a", f"/workflows/{theirs}")
    assert (status, told["num_cancelled"]) == (200, 0)
    assert (await pair.ask("GET", "a", "/workflows/nowhere"))[0] == 404


async def test_a_stream_is_passed_on_event_by_event(pair: Pair) -> None:
    await started(pair)
    [theirs] = owned_by("b")
    for worker in pair.workers:  # type: ignore[attr-defined]
        worker.between.clear()
    body = {
        "model": "default",
        "prompt": "hi",
        "max_tokens": 3,
        "stream": True,
        "hexgen": {"workflow_id": theirs},
    }
    async with pair.session.post(pair.url("a") + "/v1/completions", json=body) as response:
        first = await response.content.readuntil(b"\n\n")
        assert b'"w0"' in first  # it comes before the second is there
        for worker in pair.workers:  # type: ignore[attr-defined]
            worker.between.set()
        rest = await response.content.read()
    assert rest.endswith(b"data: [DONE]\n\n")


async def test_one_killed_in_the_middle_loses_nothing_and_moves_no_deadline(pair: Pair) -> None:
    await started(pair)
    workers = pair.workers  # type: ignore[attr-defined]
    for worker in workers:
        worker.gate.clear()
    flows = owned_by("b", 6) + owned_by("a", 6)
    began_s = time.monotonic()
    left_ms = lambda: max(1, round(BUDGET_MS - 1_000 * (time.monotonic() - began_s)))  # noqa: E731
    answers: dict[str, list[int]] = {flow: [] for flow in flows}
    passed_on_by_b = {flow for flow in flows[::2] if first_of("ab", flow) == "a"}

    async def client(number: int, flow: str) -> None:
        """Half of them ask either coordinator; one whose connection breaks asks the other."""
        names = "ab" if number % 2 else "ba"
        for name in names:
            try:
                status, _, _ = await pair.generate(name, flow, left_ms())
            except aiohttp.ClientError:
                continue
            answers[flow].append(status)
            return

    clients = [asyncio.create_task(client(*row)) for row in enumerate(flows)]
    async with asyncio.timeout(START_S):
        while sum(len(worker.seen) for worker in workers) < len(flows):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await pair.kill("b")
    for worker in workers:
        worker.gate.set()
    await asyncio.gather(*clients)
    assert all(statuses == [200] for statuses in answers.values()), answers
    for flow in flows:
        status, told, _ = await pair.ask("GET", "a", f"/workflows/{flow}")
        assert status == 200
        outcomes = [row["outcome"] for row in told["requests"]]
        if flow in passed_on_by_b:  # this one's answer was lost with "b", and it was sent again
            assert outcomes in (["disconnected", "completed"], ["completed", "completed"])
        else:
            assert outcomes == ["completed"]
        deadline_s = time.monotonic() + told["budget_s"] - told["elapsed_s"]
        assert abs(deadline_s - (began_s + BUDGET_MS / 1_000)) < 1.0
    health = await pair.health("a")
    assert health is not None
    assert "peers_lost" in health["degraded"]

    # It comes back: what was taken over stays where it is, new workflows are shared again.
    await pair.start("b")
    for name in "ab":
        await pair.until(name, lambda health: "peers_lost" not in health["degraded"])
    moved = owned_by("b")[0]
    status, _, headers = await pair.generate("b", moved, left_ms())
    assert (status, headers.get("x-hexgen-coordinator-id")) == (200, "a")
    new = owned_by("b", 7)[-1]
    assert (await pair.generate("a", new))[2]["x-hexgen-coordinator-id"] == "b"


async def test_one_that_hangs_is_taken_over_from_and_comes_back(pair: Pair) -> None:
    await started(pair)
    workers = pair.workers  # type: ignore[attr-defined]
    for worker in workers:
        worker.gate.clear()
    [theirs] = owned_by("b")
    call = asyncio.create_task(pair.generate("a", theirs))
    async with asyncio.timeout(START_S):
        while not any(worker.seen for worker in workers):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    pair.processes["b"].send_signal(signal.SIGSTOP)
    try:
        await pair.until("a", lambda health: "peers_lost" in health["degraded"])
        for worker in workers:
            worker.gate.set()
        status, _, headers = await call
        assert status == 200
        assert "x-hexgen-coordinator-id" not in headers  # served by "a" in the end
    finally:
        pair.processes["b"].send_signal(signal.SIGCONT)
    for name in "ab":
        await pair.until(name, lambda health: "peers_lost" not in health["degraded"])
    assert (await pair.generate("b", theirs))[2].get("x-hexgen-coordinator-id") == "a"


async def test_a_stream_whose_coordinator_dies_ends_with_a_clear_error(pair: Pair) -> None:
    await started(pair)
    [theirs] = owned_by("b")
    for worker in pair.workers:  # type: ignore[attr-defined]
        worker.between.clear()
    body = {"text": "hi", "stream": True, "hexgen": {"workflow_id": theirs}}
    async with pair.session.post(pair.url("a") + "/generate", json=body) as response:
        await response.content.readuntil(b"\n\n")
        await pair.kill("b")
        rest = await response.content.read()
    error = json.loads(rest.removeprefix(b"data: "))["error"]
    assert error["code"] == "coordinator_lost"
    assert b"[DONE]" not in rest


async def test_peers_and_callers_need_their_keys(pair: Pair) -> None:
    keys, peer_key = pair.folder / "keys.toml", pair.folder / "peer.key"
    client, client_row = make_key("acme", (Role.CLIENT,))
    operator, operator_row = make_key("ops", (Role.OPERATOR,))
    for row in (client_row, operator_row):
        append_key(keys, row)
    peer_key.write_text(operator + "\n")
    await started(pair, f'api_keys = "{keys}"\npeer_key = "{peer_key}"')
    ids = (f"flow-{number}" for number in range(1_000))
    theirs = next(one for one in ids if first_of("ab", f"acme/{one}") == "b")
    assert (await pair.generate("a", theirs))[0] == 401
    pair.headers = {"authorization": f"Bearer {client}"}
    status, _, headers = await pair.generate("a", theirs)
    assert (status, headers["x-hexgen-coordinator-id"]) == (200, "b")
    assert headers["x-hexgen-workflow-id"] == theirs
    status, told, _ = await pair.ask("GET", "a", f"/workflows/{theirs}")
    assert (status, told["workflow_id"]) == (200, theirs)
    beat = {"coordinator_id": "b"}
    assert (await pair.ask("POST", "a", "/peers/beat", beat))[0] == 403
    pair.headers = {}
    assert (await pair.ask("POST", "a", "/peers/beat", beat))[0] == 401


async def opened(pair: Pair, name: str, flow: str) -> asyncio.Task[Any] | None:
    """A request that a worker has and does not answer; None: it was refused for its tenant."""
    workers = pair.workers  # type: ignore[attr-defined]
    before = sum(len(worker.seen) for worker in workers)
    call = asyncio.create_task(pair.generate(name, flow))
    async with asyncio.timeout(START_S):
        while not call.done() and before == sum(  # noqa: ASYNC110
            len(worker.seen) for worker in workers
        ):
            await asyncio.sleep(0.01)
    if not call.done():
        return call
    status, told, _ = call.result()
    assert (status, told["error"]["code"]) == (429, "tenant_limit")
    return None


async def filled(pair: Pair, name: str, flow: str) -> list[asyncio.Task[Any]]:
    """As many open requests as the coordinator allows, a beat of its peer apart."""
    calls: list[asyncio.Task[Any]] = []
    while (call := await opened(pair, name, flow)) is not None:
        calls.append(call)
        await asyncio.sleep(2 * BEAT_S)
    return calls


async def test_a_tenant_has_its_limit_once_and_all_of_it_where_one_is_left(pair: Pair) -> None:
    most = 6
    await started(pair, f"[limits]\nmax_concurrent = {most}")
    workers = pair.workers  # type: ignore[attr-defined]
    for worker in workers:
        worker.gate.clear()
    [ours], [theirs] = owned_by("a"), owned_by("b")
    at_a = [await opened(pair, "a", ours) for _ in range(2)]
    at_b = await filled(pair, "b", theirs)
    assert 0 < len(at_b) < most  # by itself it would have let all of them in
    more_at_a = await filled(pair, "a", ours)
    assert len([*at_a, *at_b, *more_at_a]) <= most + 2  # some are let in before they are told of
    status, told, _ = await pair.generate("b", ours)  # whichever is asked
    assert (status, told["error"]["param"]) == (429, "max_concurrent")
    await pair.kill("b")
    await pair.until("a", lambda health: "peers_lost" in health["degraded"])
    more_at_a += await filled(pair, "a", ours)
    assert len([*at_a, *more_at_a]) == most
    for worker in workers:
        worker.gate.set()
    answers = await asyncio.gather(*at_a, *more_at_a)
    assert [status for status, _, _ in answers] == [200] * most
    await asyncio.gather(*at_b, return_exceptions=True)


async def test_a_tenants_burst_is_one_burst_of_both(pair: Pair) -> None:
    burst = 8
    await started(pair, f"[limits]\nrequests_per_s = 0.01\nburst = {burst}")
    [ours], [theirs] = owned_by("a"), owned_by("b")
    num_passed = 0
    for number in range(4 * burst):
        name, flow = ("a", ours) if number % 2 else ("b", theirs)
        status, _, _ = await pair.generate(name, flow)
        num_passed += status == 200
        await asyncio.sleep(BEAT_S)
    # Each lets some in while it has not heard of the other's last.
    assert burst <= num_passed <= burst + 3
