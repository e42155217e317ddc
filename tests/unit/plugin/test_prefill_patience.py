"""Which prompts wait for decodes, on `Req` as SGLang has them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import StepCosts
from hexgen_sglang.plugin.prefill_patience import Moment, PrefillPatience

COSTS = StepCosts(0.1, 0.001, 0.0, 0.02, 0.0, 0.0)
NOW_S = 100.0


def req(rid: str, *, budget_s: float, prompt: int = 400, made: int = 0, cached: int = 0) -> Any:
    """It came at `NOW_S`, needs 2 s more and makes 50 tokens."""
    view = RequestView(
        rid,
        rid,
        NOW_S,
        deadline_s=NOW_S + budget_s,
        predicted_remaining_s=2.0,
        expected_output_tokens=50,
    )
    return SimpleNamespace(
        rid=rid,
        view=view,
        origin_input_ids=range(prompt),
        output_ids=range(made),
        num_matched_prefix_tokens=cached,
    )


def held(queue: list[Any], running: list[Any], now_s: float | None = NOW_S) -> list[str]:
    """Names of what is held; everything else stays in the queue, in its order."""
    one = PrefillPatience(10.0, lambda request: request.view)
    if now_s is not None:
        one.at(Moment(now_s, COSTS))
    one.begin((), running)
    before = list(queue)
    one.take_out(queue)
    names = [request.rid for request in one.give_back()]
    assert queue == [request for request in before if request.rid not in names]
    assert one.num_held == len(names)
    assert one.give_back() == []
    return names


def test_relaxed_prompts_wait_for_tight_decodes_and_tight_ones_do_not() -> None:
    running = [req("decode", budget_s=4.0)]
    queue = [req("tight", budget_s=4.0), req("relaxed", budget_s=4_000.0)]
    assert held(queue, running) == ["relaxed"]
    assert held([req("tight", budget_s=4.0)], [req("decode", budget_s=4_000.0)]) == []


def test_a_decode_far_from_its_end_is_not_waited_for() -> None:
    """0.02 s a token: 50 tokens are within ten prefills of 0.11 s, 100 are not."""
    relaxed, decode = req("relaxed", budget_s=4_000.0, prompt=10), req("decode", budget_s=4.0)
    assert held([relaxed], [decode]) == ["relaxed"]
    decode.view = RequestView("d", "d", NOW_S, NOW_S + 4.0, expected_output_tokens=100)
    assert held([relaxed], [decode]) == []


def test_nothing_waits_longer_than_its_patience() -> None:
    relaxed, decode = req("relaxed", budget_s=4_000.0), req("decode", budget_s=60.0, made=49)
    assert held([relaxed], [decode], NOW_S + 4.9) == ["relaxed"]
    assert held([relaxed], [decode], NOW_S + 5.1) == []


def test_what_is_cached_needs_no_prefill_to_wait_with() -> None:
    decode = req("decode", budget_s=4.0)
    prompt = req("relaxed", budget_s=100.0, prompt=2_000)
    assert held([prompt], [decode]) == ["relaxed"]
    prompt.num_matched_prefix_tokens = 1_990
    assert held([prompt], [decode]) == ["relaxed"]
    prompt.view = req("", budget_s=20.0).view
    assert held([prompt], [decode]) == []


@pytest.mark.parametrize("now_s", [None, NOW_S])
def test_before_costs_are_known_and_with_nothing_that_decodes_nobody_waits(
    now_s: float | None,
) -> None:
    running = [req("decode", budget_s=4.0)] if now_s is None else []
    assert held([req("relaxed", budget_s=4_000.0)], running, now_s) == []
