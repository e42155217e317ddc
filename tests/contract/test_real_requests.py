"""The plugin's view and order of real SGLang requests, under SGLang's real policy class."""

from __future__ import annotations

import random
import time
import warnings
from array import array
from typing import Any

import pytest

from hexgen_sglang.plugin import scheduler_process
from hexgen_sglang.plugin.config import PluginConfig
from hexgen_sglang.plugin.ordering import QueueOrder
from hexgen_sglang.plugin.request_view import stamp_arrival
from hexgen_sglang.policies.ordering import ORDERING, total_order_key

pytestmark = pytest.mark.timeout(300)  # importing SGLang takes 10 to 60 s on a busy machine


@pytest.fixture(scope="module")
def sglang() -> Any:
    """SGLang's request and cache classes; on a CPU their import warns of what is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sglang.srt.managers.schedule_batch import Req
        from sglang.srt.mem_cache.radix_cache import RadixCache
        from sglang.srt.sampling.sampling_params import SamplingParams

        from hexgen_patches.schedule_policy import HexgenSchedulePolicy

    class Names:
        request = Req
        cache = RadixCache
        params = SamplingParams
        policy = HexgenSchedulePolicy

    return Names


def make_request(sglang: Any, rid: str, arrival_s: float, tag: dict[str, Any] | None) -> Any:
    params = sglang.params(max_new_tokens=8)
    params.custom_params = None if tag is None else {"hexgen": tag, "own": 1}

    class Received:  # what the receiver's hook stamps is a struct with these fields
        sampling_params = params

    stamp_arrival(Received, arrival_s)
    return sglang.request(rid, "", array("q", range(5)), params)


@pytest.fixture
def policy(sglang: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`policy("hexgen")`: the replaced class, made as SGLang's scheduler makes it."""

    def make(name: str) -> Any:
        process = scheduler_process.SchedulerProcess(PluginConfig(ordering="least_slack"))
        monkeypatch.setattr("hexgen_patches.schedule_policy.this_process", lambda: process)
        # Refreshing prefixes reads the configuration of a running server; here is none.
        monkeypatch.setenv("SGLANG_ENABLE_WAITING_PREFIX_REFRESH", "0")
        return sglang.policy(name, sglang.cache.create_simulated(), False, False, False)

    return make


def test_a_real_request_carries_tag_and_arrival(sglang: Any) -> None:
    tag = {"workflow_id": "w", "stage": "s", "budget_ms": 500, "predicted_remaining_ms": 100}
    request = make_request(sglang, "r", 20.0, tag)
    view = QueueOrder("least_slack", {}).view(request)
    assert (view.request_id, view.workflow_id, view.stage) == ("r", "w", "s")
    assert (view.arrival_s, view.deadline_s) == (20.0, 20.5)
    assert view.latest_start_s == pytest.approx(20.4)
    assert view.num_prompt_tokens == 5
    assert request.sampling_params.custom_params["own"] == 1


def test_a_deep_queue_of_real_requests_is_ordered_as_the_registry_says(
    sglang: Any, policy: Any
) -> None:
    chance = random.Random(3)
    queue = []
    for number in range(1_000):
        tag = {"workflow_id": f"w{number // 4}", "budget_ms": chance.randrange(1, 100_000)}
        arrival_s = chance.uniform(0.0, 60.0)
        queue.append(make_request(sglang, f"r{number}", arrival_s, tag if number % 3 else None))
    hexgen = policy("hexgen")
    hexgen.calc_priority(queue, None)
    least_slack = ORDERING.create("least_slack")
    keys = [total_order_key(least_slack, hexgen.hexgen_order.view(req)) for req in queue]
    assert len({req.rid for req in queue}) == 1_000
    assert keys == sorted(keys)
    arrived = [req.rid for req in sorted(queue, key=lambda req: int(req.rid[1:]))]
    assert [req.rid for req in queue] != arrived


def test_another_policy_is_left_alone(sglang: Any, policy: Any) -> None:
    queue = [
        make_request(sglang, "slack", 0.0, {"workflow_id": "a", "budget_ms": 90_000}),
        make_request(sglang, "tight", 1.0, {"workflow_id": "b", "budget_ms": 1}),
    ]
    fcfs = policy("fcfs")
    fcfs.calc_priority(queue, None)
    assert fcfs.hexgen_order is None
    assert [req.rid for req in queue] == ["slack", "tight"]


def test_an_unknown_policy_is_refused_by_sglang(policy: Any) -> None:
    with pytest.raises(ValueError, match="Unknown schedule_policy"):
        policy("other")


def test_ordering_a_thousand_waiting_requests_has_no_cliff(sglang: Any, policy: Any) -> None:
    """Ten times the queue may cost about ten times as much, not a hundred times."""

    def seconds(num_waiting: int) -> float:
        hexgen = policy("hexgen")
        queue = [
            make_request(sglang, f"r{n}", float(n), {"workflow_id": f"w{n}", "budget_ms": n + 1})
            for n in range(num_waiting)
        ]
        hexgen.calc_priority(queue, None)
        best_s = float("inf")
        for step in range(50):
            queue.pop(0)
            queue.append(
                make_request(sglang, f"n{step}", 5.0, {"workflow_id": "n", "budget_ms": 9})
            )
            begin_s = time.perf_counter()
            hexgen.calc_priority(queue, None)
            best_s = min(best_s, time.perf_counter() - begin_s)
        return best_s

    seconds(100)
    assert seconds(1_000) < 20 * seconds(100)
