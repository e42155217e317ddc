"""What the coordinator expects of a request that it has not seen the end of."""

from __future__ import annotations

import msgspec

from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.incoming import GENERATE, IncomingRequest, read_request


def generate(limit: int) -> IncomingRequest:
    body = {"text": "SELECT", "sampling_params": {"max_new_tokens": limit}}
    return read_request(GENERATE, msgspec.json.encode(body), {})


def test_a_trusted_limit_caps_what_is_expected() -> None:
    estimates = Estimates()
    assert estimates.expected_output_tokens("t", "s", generate(7)) == 7
    estimates.stages.note_request("w", "t", "s", output_tokens=40, seconds=1.0)
    assert estimates.expected_output_tokens("t", "s", generate(7)) == 7


def test_an_untrusted_limit_tells_nothing() -> None:
    """Two requests that differ in their limit only are expected to be alike."""
    estimates = Estimates(trust_output_limits=False)
    assert estimates.expected_output_tokens("t", "s", generate(7)) is None
    estimates.stages.note_request("w", "t", "s", output_tokens=40, seconds=1.0)
    for limit in (7, 4_000):
        assert estimates.expected_output_tokens("t", "s", generate(limit)) == 40


def test_the_second_of_two_siblings_is_expected_to_be_as_long_as_second_ones_were() -> None:
    estimates = Estimates()
    for sibling, length in [(0, 800), (1, 500)] * 4:
        estimates.stages.note_request("w", "t", "s", length, 1.0, sibling=sibling)
    for sibling, expected in ((0, 800), (1, 500), (2, 650)):
        tag = {"workflow_id": "q", "stage": "s", "siblings": 3, "sibling_index": sibling}
        body = {"text": "SELECT", "hexgen": tag}
        incoming = read_request(GENERATE, msgspec.json.encode(body), {})
        assert incoming.tag is not None
        assert incoming.tag.sibling_index == sibling
        assert estimates.expected_output_tokens("t", "s", incoming) == expected
