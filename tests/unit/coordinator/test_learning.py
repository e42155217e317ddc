"""What the coordinator learns from an answer, with and without a link to the engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.live_request import Attempt, LiveRequest
from hexgen_sglang.coordinator.usage import Usage
from hexgen_sglang.coordinator.worker import Worker
from hexgen_sglang.protocol.messages import RequestFinished

MakeAttempt = Callable[..., Attempt]


@pytest.fixture
def attempt(
    make_worker: Callable[..., Worker],
    make_request: Callable[..., LiveRequest],
    make_attempt: MakeAttempt,
) -> Attempt:
    """Dispatched at 10 s, of a prompt of 4,000 characters that no worker has seen."""
    request = make_request("r", text="x" * 4_000, lane="m", workflow_type="sql", stage="draft")
    return make_attempt(
        make_worker("w"), request, "r", dispatched_s=10.0, num_uncached_tokens=1_000, batch=3
    )


def finished(**fields: object) -> RequestFinished:
    values: dict[str, object] = {
        "request_id": "r",
        "workflow_id": None,
        "stage": None,
        "prompt_tokens": 800,
        "cached_tokens": 300,
        "output_tokens": 21,
        "queue_ms": 1_000.0,
        "ttft_ms": 1_500.0,
        "e2e_ms": 2_500.0,
        "aborted": False,
        **fields,
    }
    return RequestFinished(**values)  # type: ignore[arg-type]


def test_a_streams_first_byte_divides_prefill_from_decode(attempt: Attempt) -> None:
    estimates = Estimates()
    attempt.first_byte_s = 10.5
    estimates.note_answered(attempt, Usage(800, 41, 300), busy_s=2.0, now_s=12.5)
    rates = estimates.rates.of("w")
    assert rates.prefill_tokens_per_s == pytest.approx((800 - 300) / 0.5)
    assert rates.decode_tokens_per_s == pytest.approx(40 / 2.0)
    assert rates.usual_batch == 3.0
    assert rates.tokens_per_s == pytest.approx(841 / 2.0)
    assert estimates.stages.request_s("sql", "draft", "w") == pytest.approx(2.5)
    assert estimates.num_prompt_tokens("m", attempt.request.incoming.shape) == 800


def test_an_answer_in_one_piece_is_decode_but_for_the_known_prefill(attempt: Attempt) -> None:
    estimates = Estimates()
    estimates.rates.state("w", 1_000.0, None)
    estimates.note_answered(attempt, Usage(800, 20, None), busy_s=2.0, now_s=13.0)
    # 3 s, of which 1 s for the 1,000 tokens believed uncached at dispatch
    assert estimates.rates.of("w").decode_tokens_per_s == pytest.approx(10.0)


def test_with_a_link_only_the_engines_own_times_count(attempt: Attempt) -> None:
    estimates = Estimates()
    attempt.worker.linked = True
    estimates.note_sent(attempt)
    estimates.note_answered(attempt, Usage(800, 21, None), busy_s=2.0, now_s=13.0)
    assert estimates.rates.of("w").decode_tokens_per_s is None
    assert estimates.note_reported(finished()) is attempt.request.record
    rates = estimates.rates.of("w")
    assert rates.prefill_tokens_per_s == pytest.approx(500 / 0.5)
    assert rates.decode_tokens_per_s == pytest.approx(20 / 1.0)
    assert estimates.note_reported(finished()) is None  # told once


def test_reports_of_aborted_and_foreign_requests_teach_nothing(attempt: Attempt) -> None:
    estimates = Estimates()
    attempt.worker.linked = True
    estimates.note_sent(attempt)
    assert estimates.note_reported(finished(request_id="somebody's")) is None
    assert estimates.note_reported(finished(aborted=True)) is None
    assert estimates.rates.of("w").prefill_tokens_per_s is None


def test_what_was_sent_is_believed_to_be_cached_there_only(attempt: Attempt) -> None:
    estimates = Estimates()
    shape = attempt.request.incoming.shape
    assert estimates.num_cached_tokens("w", shape, 1_000) == 0
    estimates.note_sent(attempt)
    # 15 whole blocks of 256 characters out of 4,000
    assert estimates.num_cached_tokens("w", shape, 1_000) == 1_000 * 15 * 256 // 4_000
    assert estimates.num_cached_tokens("other", shape, 1_000) == 0
    estimates.forget_cache("w")
    assert estimates.num_cached_tokens("w", shape, 1_000) == 0


def test_a_stage_is_predicted_once_seen_and_only_for_workflows_with_a_type(
    attempt: Attempt,
) -> None:
    estimates = Estimates()
    estimates.note_answered(attempt, Usage(800, 41, 300), busy_s=2.0, now_s=12.5)
    assert estimates.predicted_stage_s("sql", "draft") == pytest.approx(2.5)
    assert estimates.predicted_remaining_s("sql", "draft") == pytest.approx(2.5)
    assert estimates.predicted_remaining_s("sql", "other") is None
    assert estimates.predicted_remaining_s("", "draft") is None


def test_a_report_of_somebody_else_is_refused_and_the_true_one_still_counts(
    attempt: Attempt,
) -> None:
    estimates = Estimates()
    attempt.worker.linked = True
    estimates.note_sent(attempt)
    assert estimates.note_reported(finished(), "other", 13.0) is None
    assert estimates.num_refused_reports == 1
    assert estimates.rates.of("other").prefill_tokens_per_s is None
    assert estimates.note_reported(finished(), "w", 13.0) is attempt.request.record
    assert estimates.rates.of("w").prefill_tokens_per_s == pytest.approx(1_000)


@pytest.mark.parametrize(
    "wrong",
    [
        {"queue_ms": 1_600.0},  # after the first token
        {"ttft_ms": 2_600.0},  # after the end
        {"cached_tokens": 801},
        {"e2e_ms": 600_000.0, "ttft_ms": 500_000.0},  # it was sent 3 s ago
    ],
)
def test_times_that_cannot_be_teach_nothing(attempt: Attempt, wrong: dict[str, object]) -> None:
    estimates = Estimates()
    attempt.worker.linked = True
    estimates.note_sent(attempt)
    assert estimates.note_reported(finished(**wrong), "w", 13.0) is attempt.request.record
    assert estimates.num_refused_reports == 1
    assert estimates.rates.of("w").prefill_tokens_per_s is None
    assert attempt.request.record.prefill_s is None


def test_an_answer_teaches_no_more_output_than_it_could_have(attempt: Attempt) -> None:
    estimates = Estimates()
    estimates.note_answered(attempt, Usage(800, 2**50, 300), busy_s=2.0, now_s=12.5)
    assert estimates.stages.output_tokens("sql", "draft") == 2**20
