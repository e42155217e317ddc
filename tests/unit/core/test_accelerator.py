"""Accelerator profiles: costs worked out by hand, and files that are refused."""

from __future__ import annotations

import pytest

from hexgen_sglang.core.accelerator import (
    attended_tokens,
    decode_s,
    mixed_s,
    prefill_s,
    request_s,
)
from hexgen_sglang.core.accelerator_toml import profile_from_toml, profile_to_toml
from hexgen_sglang.core.errors import ConfigError

TEXT = """
name = "round"
model = "a model"
device = "a device"
tensor_parallel = { value = 4, source = "stated" }

[prefill]
base_s = { value = 0.05, source = "stated" }
per_token_s = { value = 0.001, source = "stated" }
per_token_per_1k_context_s = { value = 0.0001, source = "stated" }
chunk_tokens = { value = 1000, source = "stated" }

[decode]
base_s = { value = 0.02, source = "stated" }
per_request_s = { value = 0.002, source = "stated" }
per_1k_context_tokens_s = { value = 0.003, source = "stated" }

[capacity]
kv_tokens = { value = 20000, source = "stated" }
max_running_requests = { value = 16, source = "stated" }

[price]
usd_per_hour = { value = 1.5, source = "assumption" }

[fit]
method = "none: round numbers"
"""
ROUND = profile_from_toml(TEXT, "round.toml")


def test_attention_counts_every_token_that_a_token_sees() -> None:
    by_hand = sum(100 + position for position in range(1, 6))
    assert attended_tokens(5, 100) == by_hand == 515
    assert attended_tokens(0, 100) == 0


def test_a_prefill_step_is_base_and_tokens_and_attention() -> None:
    attended = attended_tokens(100, 0) + attended_tokens(50, 2_000)
    expected = 0.05 + 150 * 0.001 + 0.0001 * attended / 1_000
    assert prefill_s(ROUND, [(100, 0), (50, 2_000)]) == pytest.approx(expected)


def test_a_decode_step_is_base_and_requests_and_contexts() -> None:
    assert decode_s(ROUND, 3, 4_000) == pytest.approx(0.02 + 3 * 0.002 + 4 * 0.003)


def test_a_token_that_others_hold_too_costs_its_share_of_a_read() -> None:
    text = TEXT.replace(
        "[capacity]",
        'repeated_read_frac = { value = 0.25, source = "stated" }\n\n[capacity]',
    )
    shares = profile_from_toml(text, "shares.toml")
    plain = decode_s(ROUND, 4, 10_000)
    assert decode_s(ROUND, 4, 10_000, 6_000) == plain  # read again for each
    # 6,000 of 10,000 tokens at a quarter: 5,500 are read.
    assert decode_s(shares, 4, 10_000, 6_000) == pytest.approx(0.02 + 4 * 0.002 + 5.5 * 0.003)
    assert decode_s(shares, 4, 10_000) == plain
    assert profile_from_toml(profile_to_toml(shares), "again.toml") == shares


def test_a_mixed_step_pays_the_larger_base_once() -> None:
    prefill_part = prefill_s(ROUND, [(100, 0)]) - 0.05
    decode_part = decode_s(ROUND, 2, 1_000) - 0.02
    mixed = mixed_s(ROUND, [(100, 0)], 2, 1_000)
    assert mixed == pytest.approx(0.05 + prefill_part + decode_part)


def test_a_request_alone_is_its_chunks_and_then_one_step_a_token() -> None:
    chunks = prefill_s(ROUND, [(1_000, 0)]) + prefill_s(ROUND, [(500, 1_000)])
    steps = sum(decode_s(ROUND, 1, 1_500 + done) for done in range(1, 10))
    assert request_s(ROUND, 1_500, 10) == pytest.approx(chunks + steps)


def test_what_is_written_reads_back_equal() -> None:
    text = profile_to_toml(ROUND, "two\nlines")
    assert text.startswith("# two\n# lines\n")
    assert profile_from_toml(text, "again") == ROUND


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("base_s = { value = 0.05,", "base_s = { value = -0.05,", "$.prefill.base_s.value"),
        ("base_s = { value = 0.05,", "base_s = { value = 61.0,", "<= 60"),
        ("base_s = { value = 0.05,", "base_s = { value = nan,", "prefill.base_s.value=nan"),
        ("base_s = { value = 0.05,", "base_s = { value = 'fast',", "Expected `float`"),
        ('{ value = 0.05, source = "stated" }', "0.05", "$.prefill.base_s"),
        ('{ value = 0.05, source = "stated" }', "{ value = 0.05 }", "`source`"),
        ('{ value = 0.05, source = "stated" }', '{ value = 0.05, source = "" }', "source"),
        ("per_token_s = { value = 0.001,", "per_token_s = { value = 0.0,", "must be above 0"),
        ("base_s = { value = 0.02,", "base_s = { value = 0.0,", "decode.base_s=0.0"),
        ("{ value = 1000,", "{ value = 30000,", "prefill.chunk_tokens=30000"),
        ("[fit]", "[fits]", "fits"),
        ('name = "round"', 'name = "a b"', "$.name"),
        ('name = "round"', "", "name"),
        ("[price]", "[price", "round.toml"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_by_field_and_range(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(ConfigError) as caught:
        profile_from_toml(TEXT.replace(old, new), "round.toml")
    assert "round.toml" in str(caught.value)
    assert message in str(caught.value)


def test_an_out_of_range_value_is_told() -> None:
    with pytest.raises(ConfigError, match=r"value 61\.0"):
        profile_from_toml(TEXT.replace("{ value = 0.05,", "{ value = 61.0,"), "round.toml")
