"""The runs as a Chrome trace-event file, which ui.perfetto.dev and chrome://tracing open.

A process for each run, threads for the places of each worker's batch, a slice for each
request with its decoding inside, and a counter of requests for each worker. Times are
emulated ones.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hexgen_sglang.bench.plan import Facts
from hexgen_sglang.results.records import RequestRecord, RunRecord

_MICROSECONDS = 1e6
_PLACES = 1_000  # thread ids for each worker


def write_trace(facts: Facts, path: Path) -> None:
    """Write the first seed's run of every system at every load."""
    runs = [
        (f"{system}, {label}, seed {some[0].run.seed}", some[0].run)
        for (label, system), some in facts.items()
        if some
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(trace(runs)))


def trace(runs: Sequence[tuple[str, RunRecord]]) -> dict[str, Any]:
    """The trace of named runs."""
    events: list[dict[str, Any]] = []
    for number, (name, run) in enumerate(runs, start=1):
        events.append(_name("process_name", number, 0, name))
        workers = sorted({request.worker for request in run.requests})
        for place, worker in enumerate(workers):
            served = [request for request in run.requests if request.worker == worker]
            events.extend(_worker(number, place * _PLACES, worker or "unknown", served))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _worker(
    process: int, first: int, worker: str, requests: list[RequestRecord]
) -> Iterator[dict[str, Any]]:
    """Slices of one worker, each at the lowest place that is free when it is sent."""
    free: list[int] = []
    leaving: list[tuple[float, int]] = []
    num_places = 0
    for request in sorted(requests, key=lambda one: (one.sent_s, one.request_id)):
        while leaving and leaving[0][0] <= request.sent_s:
            heapq.heappush(free, heapq.heappop(leaving)[1])
        if free:
            place = heapq.heappop(free)
        else:
            place = num_places
            num_places += 1
            yield _name("thread_name", process, first + place + 1, f"{worker} #{place:02d}")
        heapq.heappush(leaving, (request.end_s, place))
        yield from _slices(process, first + place + 1, request)
    for instant, change in _changes(requests):
        yield {
            "ph": "C",
            "name": f"requests at {worker}",
            "pid": process,
            "ts": instant * _MICROSECONDS,
            "args": {"requests": change},
        }


def _slices(process: int, thread: int, request: RequestRecord) -> Iterator[dict[str, Any]]:
    """The request, and inside it the part behind its first byte."""
    base = {"ph": "X", "pid": process, "tid": thread, "cat": "request"}
    yield {
        **base,
        "name": request.stage_name,
        "ts": request.sent_s * _MICROSECONDS,
        "dur": (request.end_s - request.sent_s) * _MICROSECONDS,
        "args": {
            "request": request.request_id,
            "input_tokens": request.input_tokens,
            "cached_tokens": request.cached_tokens,
            "output_tokens": request.output_tokens,
            "queue_s": request.queue_s,
            "outcome": request.outcome,
        },
    }
    if request.first_byte_s is not None:
        yield {
            **base,
            "name": "decode",
            "ts": request.first_byte_s * _MICROSECONDS,
            "dur": (request.end_s - request.first_byte_s) * _MICROSECONDS,
        }


def _changes(requests: list[RequestRecord]) -> Iterator[tuple[float, int]]:
    """(instant, requests in flight from then on)."""
    steps = [(request.sent_s, 1) for request in requests]
    steps += [(request.end_s, -1) for request in requests]
    count = 0
    for instant, step in sorted(steps):
        count += step
        yield instant, count


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}
