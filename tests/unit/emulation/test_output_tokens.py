"""How a caller says after how many tokens an emulated answer ends."""

from __future__ import annotations

import pytest

from hexgen_sglang.core.errors import ProtocolError
from hexgen_sglang.protocol.emulation import (
    MAX_OUTPUT_TOKENS,
    OUTPUT_TOKENS,
    emulated_output_tokens,
)


@pytest.mark.parametrize("value", [1, 137, MAX_OUTPUT_TOKENS])
def test_a_length_in_range_is_taken(value: int) -> None:
    assert emulated_output_tokens({OUTPUT_TOKENS: value, "hexgen": {}}) == value


@pytest.mark.parametrize("params", [None, {}, {"hexgen": {"workflow_id": "w"}}])
def test_without_one_the_answer_does_not_end(params: dict[str, object] | None) -> None:
    assert emulated_output_tokens(params) is None


@pytest.mark.parametrize("value", [0, -1, MAX_OUTPUT_TOKENS + 1, 1.5, "7", True, [1]])
def test_anything_else_is_refused_by_name_and_range(value: object) -> None:
    with pytest.raises(ProtocolError, match=rf"{OUTPUT_TOKENS}=.*1 to {MAX_OUTPUT_TOKENS}"):
        emulated_output_tokens({OUTPUT_TOKENS: value})
