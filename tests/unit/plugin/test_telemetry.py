"""What the scheduler thread reports: ends of requests and stages, loads; whom a cancel means."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hexgen_sglang.plugin import telemetry as module
from hexgen_sglang.plugin.telemetry import Telemetry
from hexgen_sglang.protocol.codec import encode
from hexgen_sglang.protocol.messages import Cancel, Load, RequestFinished, StageFinished


class Recorder:
    """An agent's end for the scheduler: keeps what it is given, checked as for the wire."""

    def __init__(self) -> None:
        self.loads: list[Load] = []
        self.messages: list[Any] = []
        self.commands: list[Any] = []

    def report_load(self, load: Load) -> None:
        encode(load)
        self.loads.append(load)

    def report(self, message: Any) -> None:
        encode(message)
        self.messages.append(message)

    def take_commands(self) -> list[Any]:
        commands, self.commands = self.commands, []
        return commands


class Clock:
    """Seconds that pass only when told to."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def telemetry(recorder: Recorder, clock: Clock) -> Telemetry:
    return Telemetry(recorder, clock)


def tag(index: int = 0, siblings: int = 1, workflow: str = "w") -> dict[str, Any]:
    return {"workflow_id": workflow, "stage": "s", "siblings": siblings, "sibling_index": index}


def snapshot(running: int, waiting: int) -> Any:
    return SimpleNamespace(
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        num_waiting_uncached_tokens=10 * waiting,
        num_used_tokens=100 * running,
    )


def test_a_finished_request_is_reported_once_with_its_timings(
    request_of, telemetry, recorder, clock
) -> None:
    request = request_of("r", 10.0, tag(), num_prompt=5)
    telemetry.arrived(request, 10.0)
    request.time_stats = SimpleNamespace(forward_entry_time=10.5, prefill_finished_time=11.0)
    request.output_ids.extend([7, 8])
    request.cached_tokens = 3
    clock.now_s = 12.0
    telemetry.ended(request, aborted=False)
    telemetry.ended(request, aborted=False)
    finished, stage = recorder.messages
    assert finished == RequestFinished(
        request_id="r",
        workflow_id="w",
        stage="s",
        prompt_tokens=5,
        cached_tokens=3,
        output_tokens=2,
        queue_ms=500.0,
        ttft_ms=1000.0,
        e2e_ms=2000.0,
        aborted=False,
    )
    assert stage == StageFinished("w", "s", num_requests=1, siblings=1, e2e_ms=2000.0)


def test_a_request_aborted_in_the_queue_has_waited_all_its_time(
    request_of, telemetry, recorder, clock
) -> None:
    request = request_of("r", 10.0)
    telemetry.arrived(request, 10.0)
    clock.now_s = 13.0
    telemetry.ended(request, aborted=True)
    (finished,) = recorder.messages
    assert (finished.queue_ms, finished.ttft_ms, finished.e2e_ms) == (3000.0, 0.0, 3000.0)
    assert finished.aborted
    assert (finished.workflow_id, finished.stage) == (None, None)


def test_a_stage_ends_with_the_last_of_its_requests_here(
    request_of, telemetry, recorder, clock
) -> None:
    requests = [request_of(f"r{n}", 0.0, tag(n, siblings=5)) for n in range(3)]
    for number, request in enumerate(requests):
        telemetry.arrived(request, float(number))
    for number, request in enumerate(requests):
        clock.now_s = 10.0 + number
        telemetry.ended(request, aborted=False)
    stages = [message for message in recorder.messages if isinstance(message, StageFinished)]
    assert stages == [StageFinished("w", "s", num_requests=3, siblings=5, e2e_ms=12_000.0)]


def test_siblings_that_come_after_the_others_ended_are_a_share_of_their_own(
    request_of, telemetry, recorder
) -> None:
    for name in ("first", "second"):
        request = request_of(name, 0.0, tag(siblings=2))
        telemetry.arrived(request, 0.0)
        telemetry.ended(request, aborted=False)
    stages = [message for message in recorder.messages if isinstance(message, StageFinished)]
    assert [stage.num_requests for stage in stages] == [1, 1]


def test_requests_that_were_not_seen_to_come_are_not_reported(
    request_of, telemetry, recorder
) -> None:
    telemetry.ended(request_of("stranger"), aborted=False)
    assert recorder.messages == []


def test_a_request_id_that_does_not_fit_the_wire_is_counted(
    request_of, telemetry, recorder
) -> None:
    request = request_of("x" * 129)
    telemetry.arrived(request, 0.0)
    telemetry.ended(request, aborted=False)
    assert recorder.messages == []
    assert telemetry.num_unnameable == 1


def test_what_is_remembered_is_bounded(request_of, recorder, clock, monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_LIVE_REQUESTS", 2)
    telemetry = Telemetry(recorder, clock)
    for number in range(3):
        telemetry.arrived(request_of(f"r{number}", 0.0, tag(workflow=f"w{number}")), 0.0)
    assert telemetry.num_forgotten == 1
    assert telemetry.requests_to_cancel(Cancel("w0", None)) == []
    assert telemetry.requests_to_cancel(Cancel("w2", None)) == ["r2"]


def test_a_cancel_means_the_live_requests_of_a_workflow_or_one_request(
    request_of, telemetry
) -> None:
    for name, workflow in (("a", "w"), ("b", "other"), ("c", "w")):
        telemetry.arrived(request_of(name, 0.0, tag(workflow=workflow)), 0.0)
    assert telemetry.requests_to_cancel(Cancel("w", None)) == ["a", "c"]
    assert telemetry.requests_to_cancel(Cancel(None, "b")) == ["b"]
    assert telemetry.requests_to_cancel(Cancel(None, "gone")) == []


def test_a_load_is_due_on_change_but_not_more_than_twenty_times_a_second(
    telemetry, recorder, clock
) -> None:
    assert not telemetry.load_is_due(0, 0)
    assert telemetry.load_is_due(1, 0)
    telemetry.load(snapshot(1, 0))
    assert recorder.loads == [Load(1, 0, 0, 100)]
    clock.now_s += 0.049
    assert not telemetry.load_is_due(1, 5)
    clock.now_s += 0.002
    assert telemetry.load_is_due(1, 5)
    assert not telemetry.load_is_due(1, 0)


def test_loads_below_zero_are_reported_as_zero(telemetry, recorder) -> None:
    telemetry.load(
        SimpleNamespace(
            num_running_reqs=0,
            num_waiting_reqs=0,
            num_waiting_uncached_tokens=-3,
            num_used_tokens=-1,
        )
    )
    assert recorder.loads == [Load(0, 0, 0, 0)]
