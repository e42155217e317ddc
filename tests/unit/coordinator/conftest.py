"""Builders of the coordinator's state objects, without sockets or clocks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from hexgen_sglang.coordinator.dispatcher import in_flight_of
from hexgen_sglang.coordinator.incoming import read_request
from hexgen_sglang.coordinator.live_request import Attempt, LiveRequest
from hexgen_sglang.coordinator.worker import Worker
from hexgen_sglang.coordinator.workflows import RequestRecord, Workflow
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import WorkerState

MakeRequest = Callable[..., LiveRequest]


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop to make futures with; nothing runs on it."""
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture
def make_request(loop: asyncio.AbstractEventLoop) -> MakeRequest:
    """A live request; keyword arguments are fields of its view, `lane`, or `text`."""

    def make(
        request_id: str,
        *,
        lane: str = "",
        text: str = "hello",
        arrival_s: float = 0.0,
        **fields: Any,
    ) -> LiveRequest:
        incoming = read_request("/generate", msgspec.json.encode({"text": text}), {})
        view = RequestView(request_id, request_id, arrival_s, **fields)
        return LiveRequest(
            incoming=incoming,
            view=view,
            workflow=Workflow(request_id, "", "", False, arrival_s),
            record=RequestRecord(request_id, "", 1, 0, arrival_s),
            lane=lane,
            placed=loop.create_future(),
            cancelled=loop.create_future(),
        )

    return make


@pytest.fixture
def make_worker() -> Callable[..., Worker]:
    """A ready worker that serves the model "m"."""

    def make(worker_id: str, **fields: Any) -> Worker:
        worker = Worker(worker_id, f"http://127.0.0.1/{worker_id}", "config", **fields)
        worker.state = WorkerState.READY
        worker.models = ("m",)
        return worker

    return make


@pytest.fixture
def make_attempt() -> Callable[..., Attempt]:
    """An attempt of a request at a worker."""

    def make(worker: Worker, request: LiveRequest, rid: str = "r", **fields: Any) -> Attempt:
        values: dict[str, Any] = {
            "dispatched_s": 0.0,
            "num_prompt_tokens": 100,
            "num_uncached_tokens": 100,
            "expected_output_tokens": 50,
            "batch": 1,
            **fields,
        }
        first_byte_s = values.pop("first_byte_s", None)
        seen = in_flight_of(request.view, values["num_uncached_tokens"], values["dispatched_s"])
        seen.first_token_s = first_byte_s
        return Attempt(rid=rid, worker=worker, request=request, seen=seen, **values)

    return make
