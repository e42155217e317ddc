"""When a worker can soon start another request, and what policies see of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hexgen_sglang.coordinator.dispatcher import num_new_tokens
from hexgen_sglang.coordinator.live_request import Attempt, LiveRequest
from hexgen_sglang.coordinator.worker import RoomRules, Worker
from hexgen_sglang.policies.estimators import Rates
from hexgen_sglang.protocol.messages import Load

RULES = RoomRules(look_ahead=1, look_ahead_tokens=1_000, default_max_in_flight=4, stale_after_s=3.0)


@pytest.fixture
def fill(
    make_request: Callable[..., LiveRequest], make_attempt: Callable[..., Attempt]
) -> Callable[..., list[Attempt]]:
    """Puts `count` attempts in flight at a worker."""

    def put(worker: Worker, count: int, **fields: float) -> list[Attempt]:
        made = []
        for number in range(count):
            rid = f"{worker.worker_id}-{len(worker.in_flight)}-{number}"
            attempt = make_attempt(worker, make_request(rid), rid, **fields)
            worker.start(attempt)
            made.append(attempt)
        return made

    return put


def open_count(worker: Worker, fill: Callable[..., list[Attempt]]) -> int:
    """How many requests it takes before it has no room."""
    for number in range(100):
        if not worker.is_open(0.0, RULES):
            return number
        fill(worker, 1)
    raise AssertionError("never full")


def test_batch_limit_plus_look_ahead(
    make_worker: Callable[..., Worker], fill: Callable[..., list[Attempt]]
) -> None:
    assert open_count(make_worker("a", max_running_requests=8), fill) == 9
    assert open_count(make_worker("b"), fill) == 5


def test_the_operators_limit_is_exact(
    make_worker: Callable[..., Worker], fill: Callable[..., list[Attempt]]
) -> None:
    assert open_count(make_worker("a", max_running_requests=8, max_in_flight=2), fill) == 2


def test_prefill_waiting_there_closes_a_worker_until_the_next_report(
    make_worker: Callable[..., Worker], fill: Callable[..., list[Attempt]]
) -> None:
    worker = make_worker("a", max_running_requests=100)
    fill(worker, 1)
    worker.take_load(Load(1, 5, 900, 1_000), now_s=10.0)
    assert worker.is_open(10.0, RULES)
    fill(worker, 1, dispatched_s=10.0)  # 100 tokens more: 1,000
    assert not worker.is_open(10.0, RULES)
    worker.take_load(Load(2, 0, 0, 1_100), now_s=10.5)
    assert worker.is_open(10.5, RULES)


def test_what_has_ended_since_the_report_no_longer_waits_there(
    make_worker: Callable[..., Worker], fill: Callable[..., list[Attempt]]
) -> None:
    worker = make_worker("a", max_running_requests=64)
    (told,) = fill(worker, 1, num_uncached_tokens=900, dispatched_s=0.0)
    worker.take_load(Load(1, 0, 0, 900), 1.0)
    sent = fill(worker, 2, num_uncached_tokens=600, dispatched_s=1.5)
    assert not worker.is_open(2.0, RULES)
    worker.release(told, 2.0)  # the report counted it: nothing changes
    assert not worker.is_open(2.0, RULES)
    worker.release(sent[0], 2.0)
    assert worker.is_open(2.0, RULES)
    assert worker.sent_since_load_tokens == 600


def test_a_stale_report_counts_as_unknown(
    make_worker: Callable[..., Worker], fill: Callable[..., list[Attempt]]
) -> None:
    worker = make_worker("a", max_running_requests=100)
    fill(worker, 1)
    worker.take_load(Load(1, 50, 50_000, 1_000), now_s=10.0)
    assert not worker.is_open(13.0, RULES)
    assert worker.is_open(13.1, RULES)


def test_kv_room_by_report_else_by_own_count_and_idle_takes_anything(
    make_worker: Callable[..., Worker], fill: Callable[..., list[Attempt]]
) -> None:
    worker = make_worker("a", kv_capacity_tokens=1_000)
    assert worker.has_kv_room(5_000, 0.0, RULES)
    fill(worker, 2)  # 2 x (100 + 50) tokens
    assert worker.has_kv_room(700, 0.0, RULES)
    assert not worker.has_kv_room(701, 0.0, RULES)
    worker.take_load(Load(2, 1, 100, 600), now_s=0.0)
    assert worker.has_kv_room(300, 0.0, RULES)
    assert not worker.has_kv_room(301, 0.0, RULES)


def test_counts_return_to_zero_and_busy_time_is_measured(
    make_worker: Callable[..., Worker], fill: Callable[..., list[Attempt]]
) -> None:
    worker = make_worker("a")
    [first] = fill(worker, 1, dispatched_s=5.0)
    [second] = fill(worker, 1, dispatched_s=6.0)
    assert worker.num_in_flight_tokens == 300
    assert worker.release(first, 8.0) == pytest.approx(3.0)
    assert worker.release(first, 9.0) == 0.0
    assert worker.release(second, 9.0) == pytest.approx(1.0)
    assert (worker.num_in_flight_tokens, worker.in_flight) == (0, {})
    [third] = fill(worker, 1, dispatched_s=20.0)
    assert worker.release(third, 21.0) == pytest.approx(1.0)


def test_pending_work_shrinks_with_time_when_rates_are_known(
    make_worker: Callable[..., Worker], fill: Callable[..., list[Attempt]]
) -> None:
    worker = make_worker("a")
    fill(worker, 2, dispatched_s=0.0)
    unknown = worker.view(1.0, Rates(), RULES)
    assert (unknown.num_pending_prefill_tokens, unknown.num_pending_decode_tokens) == (200, 100)
    rates = Rates(prefill_tokens_per_s=200.0, decode_tokens_per_s=10.0)
    early = worker.view(0.4, rates, RULES)
    assert (early.num_pending_prefill_tokens, early.num_pending_decode_tokens) == (200, 92)
    later = worker.view(2.0, rates, RULES)
    assert (later.num_pending_prefill_tokens, later.num_pending_decode_tokens) == (0, 60)
    overdue = worker.view(100.0, rates, RULES)
    assert overdue.num_pending_decode_tokens == 2  # at least one token each


def test_the_reports_age_is_told(make_worker: Callable[..., Worker]) -> None:
    worker = make_worker("a")
    assert worker.view(0.0, Rates(), RULES).load is None
    worker.take_load(Load(1, 2, 3, 4), now_s=10.0)
    load = worker.view(12.5, Rates(), RULES).load
    assert load is not None
    assert (load.num_running, load.num_waiting, load.num_kv_tokens_used) == (1, 2, 4)
    assert load.age_s == pytest.approx(2.5)


def test_early_binding_finds_room_everywhere(
    make_worker: Callable[..., Worker], fill: Callable[..., list[Attempt]]
) -> None:
    rules = RoomRules(0, 1_000, 4, 3.0, early=True)
    worker = make_worker("a", max_running_requests=2, max_in_flight=2, kv_capacity_tokens=500)
    fill(worker, 50)
    assert worker.is_open(0.0, rules)
    assert worker.has_kv_room(10_000, 0.0, rules)


def test_a_prefix_of_prompts_in_flight_takes_memory_once(
    make_worker: Callable[..., Worker],
    make_request: Callable[..., LiveRequest],
    make_attempt: Callable[..., Attempt],
) -> None:
    worker = make_worker("a")
    template = "t" * 6_400
    fields = {"num_prompt_tokens": 1_984, "expected_output_tokens": 50}
    first = make_request("first", text=template + "1" * 1_536, **fields)
    second = make_request("second", text=template + "2" * 1_536, **fields)
    assert num_new_tokens(second, worker) == 2_034
    attempts = [make_attempt(worker, first, rid) for rid in ("x", "y")]
    for attempt in attempts:
        worker.start(attempt)
    assert num_new_tokens(first, worker) == 50
    assert num_new_tokens(second, worker) == 434
    worker.release(attempts[0], 1.0)
    assert num_new_tokens(second, worker) == 434, "the other one holds it"
    worker.release(attempts[1], 1.0)
    assert num_new_tokens(second, worker) == 2_034
