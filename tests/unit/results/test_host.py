"""What the host added, from records: means over requests and steps, by worker."""

from __future__ import annotations

import pytest

from hexgen_sglang.results.host import host_costs, sibling_gap_s
from hexgen_sglang.results.records import RequestRecord, RunRecord
from hexgen_sglang.results.schema import RunFacts


def request(sibling: int, sent_s: float, to_engine_s: float | None) -> RequestRecord:
    return RequestRecord(
        request_id=f"w-0-{sibling}",
        workflow=0,
        stage=0,
        stage_name="s",
        sibling=sibling,
        due_s=0.0,
        sent_s=sent_s,
        end_s=9.0,
        to_engine_s=to_engine_s,
        back_s=None if to_engine_s is None else 0.5,
    )


def run(*requests: RequestRecord) -> RunRecord:
    return RunRecord("s", 0, 1.0, 4.0, (), requests)


ROW = {"steps": 10, "overhead_s": 0.5, "busy_s": 5.0}


def test_terms_are_means_and_the_coordinators_queue_is_taken_off() -> None:
    one = run(request(0, 1.0, 0.4), request(1, 1.2, 0.8), request(2, 1.4, None))
    idle = {"steps": 0, "overhead_s": 0.0, "busy_s": 0.0}
    facts = [
        RunFacts(one, emulation={"a": ROW, "b": idle}, dispatch_waits_s=(0.1, 0.3)),
        RunFacts(run(request(0, 0.0, 0.6)), emulation={"a": {**ROW, "steps": 40}, "b": idle}),
    ]
    costs = host_costs(facts)
    assert costs is not None
    assert costs.time_scale == 4.0
    assert costs.send_s == pytest.approx(0.2)
    assert costs.to_engine_s == pytest.approx(0.6 - 0.2)
    assert costs.back_s == pytest.approx(0.5)
    assert costs.step_s == {"a": pytest.approx(1.0 / 50), "b": 0.0}


def test_real_workers_have_no_host_costs_and_silent_ones_zero() -> None:
    assert host_costs([RunFacts(run(request(0, 0.0, 0.1)))]) is None
    costs = host_costs([RunFacts(run(request(0, 0.0, None)), emulation={"a": ROW})])
    assert costs is not None
    assert (costs.to_engine_s, costs.back_s, costs.send_s) == (0.0, 0.0, 0.0)
    assert sibling_gap_s([run()]) == 0.0
