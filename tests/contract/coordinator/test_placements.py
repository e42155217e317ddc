"""Direct mode: who is placed where, and how the books of a placed request close."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hexgen_sglang.coordinator.api_keys import Role, append_key, make_key
from hexgen_sglang.coordinator.app import make_app
from hexgen_sglang.protocol.messages import LINK_VERSION, Hello, Load, RequestFinished, Welcome
from hexgen_sglang.transport.memory import MemoryLink

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]

REPORT = RequestFinished(
    request_id="r",
    workflow_id=None,
    stage=None,
    prompt_tokens=12,
    cached_tokens=4,
    output_tokens=5,
    queue_ms=0.0,
    ttft_ms=1.0,
    e2e_ms=2.0,
    aborted=False,
)


async def place(
    front: Any, *rows: dict[str, Any], headers: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """The lines of an answer to a call for placements."""
    async with front.session.post(
        front.url + "/placements", json={"requests": rows}, headers=headers
    ) as response:
        text = await response.text()
        assert response.status == 200, text
        return [json.loads(line) for line in text.splitlines()]


def row(workflow_id: str = "wf", **fields: Any) -> dict[str, Any]:
    return {"num_prompt_chars": 600, "hexgen": {"workflow_id": workflow_id, "stage": "s"}, **fields}


async def end(front: Any, request_id: str, **fields: Any) -> int:
    body = {"ends": [{"request_id": request_id, **fields}]}
    status, answer = await front.call("POST", "/placements/ends", body)
    assert status == 200, answer
    return answer["num_ended"]


async def carry(front: Any, line: dict[str, Any]) -> tuple[int, Any]:
    """Send a placed request to its worker, as a client does."""
    body = {"prompt": "hello", "rid": line["rid"], "custom_params": line["custom_params"]}
    async with front.session.post(line["url"] + "/v1/completions", json=body) as response:
        return response.status, await response.json()


async def requests_of(front: Any, workflow_id: str = "wf") -> list[dict[str, Any]]:
    return (await front.workflow(workflow_id))["requests"]


def in_flight(front: Any) -> int:
    return sum(len(w.in_flight) for w in front.coordinator.parts.directory.workers.values())


async def link_worker(front: Any, link: MemoryLink, worker: Any, wait_until: WaitUntil) -> Any:
    """A plugin's end that has said hello for the worker."""
    agent = link.worker_end()
    hello = Hello(
        link_version=LINK_VERSION,
        worker_id="gpu-0",
        incarnation="first",
        url=worker.url,
        model="stand-in",
        hardware="a100",
        sglang_version="0.5.23",
        plugin_version="0.1.0",
        max_running_requests=8,
        kv_capacity_tokens=50_000,
        ordering="least_slack",
    )
    assert agent.send(hello)
    await wait_until(lambda: isinstance(agent.receive(0.0), Welcome))
    await wait_until(lambda: len(front.coordinator.parts.directory.ready()) == 1)
    return agent


async def test_a_placement_has_all_that_a_request_to_the_worker_needs(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    worker = await make_worker()
    front = await make_front(worker, direct=True)
    tag = {"workflow_id": "wf", "stage": "s", "budget_ms": 60_000}
    [line] = await place(front, row(hexgen=tag))
    assert (line["index"], line["worker_id"], line["url"]) == (0, "w0", worker.url)
    engine_tag = line["custom_params"]["hexgen"]
    assert engine_tag["workflow_id"] == "wf"
    assert 0 < engine_tag["budget_ms"] <= 60_000
    assert line["worker_reports_end"] is False
    assert in_flight(front) == 1
    assert (await carry(front, line))[0] == 200
    assert worker.seen[0]["rid"] == line["rid"]
    assert [r["outcome"] for r in await requests_of(front)] == ["running"]


async def test_the_clients_word_closes_the_books_of_a_stock_worker_once(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(await make_worker(), direct=True)
    [line] = await place(front, row(max_output_tokens=9))
    counts = {"prompt_tokens": 12, "output_tokens": 10_000, "cached_tokens": 4}
    assert await end(front, line["request_id"], **counts) == 1
    assert await end(front, line["request_id"], **counts) == 0
    assert await end(front, "never-placed") == 0
    [told] = await requests_of(front)
    assert (told["outcome"], told["prompt_tokens"], told["cached_tokens"]) == ("completed", 12, 4)
    assert told["output_tokens"] == 9  # no more than the request could have
    assert (in_flight(front), len(front.coordinator.placements)) == (0, 0)
    assert front.coordinator.exchanges.live == {}


async def test_the_workers_report_closes_the_books_and_no_other_workers_does(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    link = MemoryLink()
    front = await make_front(end=link.coordinator_end(), direct=True)
    agent = await link_worker(front, link, await make_worker(), wait_until)
    first, second = await place(front, row(), row("other"))
    assert first["worker_reports_end"]
    assert second["worker_reports_end"]
    placements = front.coordinator.placements
    report = msgspec.structs.replace(REPORT, request_id=first["rid"])
    placements.reported("another worker", report)
    assert len(placements) == 2
    agent.send(report)
    agent.send(msgspec.structs.replace(REPORT, request_id=second["rid"], aborted=True))
    await wait_until(lambda: not len(placements))
    [told] = await requests_of(front)
    assert (told["outcome"], told["output_tokens"], told["cached_tokens"]) == ("completed", 5, 4)
    assert [r["outcome"] for r in await requests_of(front, "other")] == ["disconnected"]
    assert in_flight(front) == 0


async def test_an_end_that_nobody_tells_of_is_closed_by_an_idle_workers_load(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    link = MemoryLink()
    front = await make_front(end=link.coordinator_end(), direct=True)
    agent = await link_worker(front, link, await make_worker(), wait_until)
    await place(front, row())
    placements, clock = front.coordinator.placements, front.coordinator.parts.clock
    [worker] = front.coordinator.parts.directory.workers.values()
    agent.send(Load(0, 0, 0, 0))
    await wait_until(lambda: worker.load is not None)
    placements.sweep(clock())
    assert len(placements) == 1  # it may be on its way to the worker
    worker.load_at_s += 60.0
    placements.sweep(clock())
    assert (len(placements), in_flight(front)) == (0, 0)
    assert [r["outcome"] for r in await requests_of(front)] == ["failed"]


async def test_a_lost_end_is_closed_when_the_request_times_out_and_aborted_at_the_worker(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    front = await make_front(worker, direct=True, request_timeout_s=0.2)
    [line] = await place(front, row())
    await wait_until(lambda: worker.aborted == [line["rid"]])
    assert [r["outcome"] for r in await requests_of(front)] == ["failed"]
    assert in_flight(front) == 0


async def test_a_dead_workers_placements_are_closed_and_placed_anew_with_the_same_deadline(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    dying, living = await make_worker(), await make_worker()
    front = await make_front(dying, living, direct=True, dispatch="round_robin")
    tag = {"workflow_id": "wf", "stage": "s", "budget_ms": 60_000}
    lines = await place(front, row(hexgen=tag), row(hexgen=tag))
    [lost] = [line for line in lines if line["url"] == dying.url]
    await dying.stop()
    assert await end(front, lost["request_id"], outcome="failed") == 1
    [again] = await place(front, row(hexgen={**tag, "budget_ms": 999}, failed_on=["w0"]))
    assert again["worker_id"] == "w1"
    assert (await front.workflow("wf"))["budget_s"] == pytest.approx(60.0)
    states = front.coordinator.parts.directory.workers
    await wait_until(lambda: states["w0"].state.value == "unreachable")
    assert sorted(r["outcome"] for r in await requests_of(front)) == [
        "failed",
        "running",
        "running",
    ]


async def test_what_a_vanished_worker_had_is_closed_without_anybodys_word(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    front = await make_front(worker, direct=True)
    await place(front, row())
    await worker.stop()
    await wait_until(lambda: not len(front.coordinator.placements))
    assert [r["outcome"] for r in await requests_of(front)] == ["failed"]


async def test_cancelling_the_workflow_aborts_the_request_at_its_worker(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    worker = await make_worker()
    front = await make_front(worker, direct=True)
    [line] = await place(front, row())
    assert (await front.call("DELETE", "/workflows/wf"))[1]["num_cancelled"] == 1
    await wait_until(lambda: worker.aborted == [line["rid"]])
    assert [r["outcome"] for r in await requests_of(front)] == ["cancelled"]


async def test_lines_come_as_requests_are_placed_and_a_hang_up_leaves_the_queue(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    front = await make_front(
        await make_worker(),
        rows=[{"worker_id": "w", "max_in_flight": 1}],
        direct=True,
        look_ahead=0,
    )
    body = {"requests": [row("a"), row("b"), row("c")]}
    async with front.session.post(front.url + "/placements", json=body) as response:
        first = json.loads(await response.content.readline())
        assert first["index"] == 0
        assert await end(front, first["request_id"]) == 1
        second = json.loads(await response.content.readline())
        assert second["index"] == 1
    await wait_until(lambda: not len(front.coordinator.parts.queue))
    assert [r["outcome"] for r in await requests_of(front, "c")] == ["disconnected"]
    assert [r["outcome"] for r in await requests_of(front, "b")] == ["running"]


async def test_no_worker_in_time_is_told_in_the_requests_line(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(
        await make_worker(), rows=[{"worker_id": "w", "max_in_flight": 1}],
        direct=True, look_ahead=0, queue_timeout_s=0.2,
    )  # fmt: skip
    good, late = await place(front, row("a"), row("b"))
    assert good["worker_id"] == "w"
    assert (late["index"], late["status"], late["error"]["code"]) == (1, 503, "no_worker")
    assert [r["outcome"] for r in await requests_of(front, "b")] == ["failed"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"requests": []}, "requests"),
        ({"requests": [{"url": "http://10.0.0.1"}]}, "url"),
        ({"requests": [{"num_prompt_chars": -1}]}, "num_prompt_chars"),
        ({"requests": [{"hexgen": {"workflow_id": "w w"}}]}, "workflow_id"),
        # Found by schemathesis: these stood in the queue and no request behind them was placed.
        ({"requests": [{"prompt_blocks": [1]}]}, "prompt_blocks: has 1; must be at most 0"),
        ({"requests": [{"num_prompt_chars": 511, "prompt_blocks": [1, 2]}]}, "at most 1"),
        ({"requests": [{"num_prompt_tokens": 63, "prompt_blocks": [1]}]}, "at most 0"),
        ({"requests": [{"num_prompt_chars": 600, "prompt_blocks": [-1]}]}, "prompt_blocks"),
        ([], "object"),
    ],
)
async def test_what_is_malformed_is_refused_as_a_whole(
    body: Any, named: str, make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(await make_worker(), direct=True)
    status, answer = await front.call("POST", "/placements", body)
    assert status == 400
    assert named in answer["error"]["message"]
    assert front.coordinator.exchanges.live == {}


async def test_refusals_of_single_requests_do_not_hold_up_the_others(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(
        await make_worker(), direct=True, tables={"limits": {"burst": 1, "requests_per_s": 0.01}}
    )
    refused, placed = sorted(await place(front, row("a"), row("b")), key=lambda x: "url" in x)
    assert (refused["status"], refused["error"]["param"]) == (429, "requests_per_s")
    assert placed["worker_id"] == "w0"
    status, answer = await front.call("POST", "/placements", {"requests": [row("c")]})
    assert (status, answer["error"]["code"]) == (429, "tenant_limit")


async def test_keys_guard_placements_and_their_ends(
    make_worker: MakeWorker, make_front: MakeFront, tmp_path: Path
) -> None:
    path = tmp_path / "keys.toml"
    headers = {}
    for tenant, role in (("acme", Role.CLIENT), ("rival", Role.CLIENT), ("ops", Role.OPERATOR)):
        key, known = make_key(tenant, (role,))
        append_key(path, known)
        headers[tenant] = {"authorization": f"Bearer {key}"}
    front = await make_front(await make_worker(), direct=True, api_keys=str(path))
    body = {"requests": [row()]}
    assert (await front.call("POST", "/placements", body))[0] == 401
    assert (await front.call("POST", "/placements", body, headers["ops"]))[0] == 403
    [line] = await place(front, row(), headers=headers["acme"])
    assert line["workflow_id"] == "wf"
    assert line["custom_params"]["hexgen"]["workflow_id"] == "acme/wf"
    ends = {"ends": [{"request_id": line["request_id"]}]}
    assert (await front.call("POST", "/placements/ends", ends))[0] == 401
    _, answer = await front.call("POST", "/placements/ends", ends, headers["rival"])
    assert answer == {"num_ended": 0}
    _, answer = await front.call("POST", "/placements/ends", ends, headers["acme"])
    assert answer == {"num_ended": 1}


async def test_without_direct_mode_no_worker_is_named_and_with_it_the_document_says_so(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    closed = await make_front(await make_worker())
    assert (await closed.call("POST", "/placements", {"requests": [row()]}))[0] == 404
    front = await make_front(direct=True)
    _, document = await front.call("GET", "/openapi.json")
    told = {path for path, row in document["paths"].items() if "post" in row}
    served = {r.path for r in make_app(front.coordinator).routes if "POST" in r.methods}
    assert {"/placements", "/placements/ends"} <= told & served


async def test_leaving_waits_for_what_is_placed_and_then_leaves_it_to_its_worker(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    worker = await make_worker()
    front = await make_front(worker, direct=True)
    await place(front, row())
    exchanges = front.coordinator.exchanges
    assert await exchanges.drain(0.05) == 1
    exchanges.abandon()
    await asyncio.sleep(0)
    assert exchanges.live == {}
    assert worker.aborted == []
