"""How wrong the estimates were is told in `/metrics`, for a bounded number of workflow types."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]


async def metrics(front: Any) -> str:
    async with front.session.get(front.url + "/metrics") as response:
        assert response.status == 200
        return await response.text()


async def test_errors_of_estimates_appear_once_something_was_estimated(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    worker = await make_worker(num_tokens=5)
    front = await make_front(worker)
    assert "hexgen_estimate_error_ratio{" not in await metrics(front)
    for number in range(3):
        worker.num_tokens = 5 if number < 2 else 10
        for stage, final in (("draft", False), ("vote", True)):
            tag = {
                "workflow_id": f"wf{number}",
                "workflow_type": "sql",
                "stage": stage,
                "final": final,
            }
            status, _ = await front.generate(hexgen=tag)
            assert status == 200
    text = await metrics(front)
    found = dict(
        re.findall(
            r'hexgen_estimate_error_ratio\{estimate="(\w+)",workflow_type="sql"\} (\S+)', text
        )
    )
    # Expected 5 and 5, came 5 and 10 tokens: wrong by 2.5 of 7.5 on average.
    assert abs(float(found["output_tokens"]) - 2.5 / 7.5) < 1e-6
    assert {"stage_s", "remaining_s", "remaining_chain_s", "gap_s"} <= set(found)
    assert 'hexgen_estimate_bias_ratio{estimate="output_tokens",workflow_type="sql"} -0.3' in text
    assert "hexgen_worker_reports_refused_total 0.0" in text


async def test_workflow_types_beyond_the_bound_make_no_more_series(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(await make_worker())
    parts = front.coordinator.parts
    for number in range(500):
        parts.estimates.stages.errors.note("stage_s", f"type-{number}", 1.0, 2.0)
    text = await metrics(front)
    series = re.findall(r"hexgen_estimate_error_ratio\{(.*?)\}", text)
    assert 0 < len(series) == len(set(series)) <= 64
