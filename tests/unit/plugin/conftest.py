"""A request as SGLang's scheduler holds it, with only what the plugin reads."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from hexgen_sglang.plugin.request_view import ARRIVAL_FIELD


def make_request(
    rid: str = "r", arrival_s: float | None = 0.0, tag: object = None, num_prompt: int = 3
) -> Any:
    """`tag` is what a caller put into `custom_params["hexgen"]`, well formed or not."""
    params = {} if arrival_s is None else {ARRIVAL_FIELD: arrival_s}
    if tag is not None:
        params["hexgen"] = tag
    return SimpleNamespace(
        rid=rid,
        sampling_params=SimpleNamespace(custom_params=params),
        origin_input_ids=array("q", range(num_prompt)),
        output_ids=array("q"),
        cached_tokens=0,
        finished_reason=None,
        time_stats=SimpleNamespace(forward_entry_time=0.0, prefill_finished_time=0.0),
    )


@pytest.fixture(scope="session")
def request_of() -> Callable[..., Any]:
    """The factory above."""
    return make_request
