"""The tiny model: same arguments, same bytes; any text round-trips; a folder is made once."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.models.folder import make_once
from hexgen_sglang.models.tiny import make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_same_arguments_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    assert digests(make_tiny_model(tmp_path / "again")) == digests(folder)


def test_another_seed_changes_only_the_weights(folder: Path, tmp_path: Path) -> None:
    other = digests(make_tiny_model(tmp_path / "other", seed=1))
    changed = {name for name, digest in digests(folder).items() if other[name] != digest}
    assert changed == {"model.safetensors", "hexgen-model.json"}


def test_config_fits_the_weights_and_the_tokenizer(folder: Path, tokenizer: Any) -> None:
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text())
    assert config["max_position_embeddings"] >= 8192
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    assert config["eos_token_id"] == tokenizer.token_to_id("<|im_end|>")
    with safe_open(str(folder / "model.safetensors"), framework="np") as weights:
        head = weights.get_tensor("lm_head.weight")
        q = weights.get_tensor("model.layers.3.self_attn.q_proj.weight")
        names = set(weights.keys())
    assert head.shape == (config["vocab_size"], config["hidden_size"])
    assert q.shape == (config["num_attention_heads"] * config["head_dim"], config["hidden_size"])
    assert len(names) == 9 * config["num_hidden_layers"] + 3


def test_only_printable_tokens_have_weights_in_the_head(folder: Path, tokenizer: Any) -> None:
    from safetensors import safe_open

    with safe_open(str(folder / "model.safetensors"), framework="np") as weights:
        spoken = weights.get_tensor("lm_head.weight").any(axis=1)
    texts = [tokenizer.decode([i], skip_special_tokens=False) for i in range(len(spoken))]
    assert spoken.sum() > 1000
    assert all(
        text.isascii() and text.isprintable()
        for text, may_speak in zip(texts, spoken, strict=True)
        if may_speak
    )
    assert not spoken[tokenizer.token_to_id("<|im_end|>")]


@given(text=st.text(max_size=200))
def test_any_text_round_trips(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_digits_stand_alone(tokenizer: Any) -> None:
    assert tokenizer.encode("2024").tokens == ["2", "0", "2", "4"]


def test_words_of_sql_are_single_tokens(tokenizer: Any) -> None:
    tokens = tokenizer.encode("SELECT customers FROM orders WHERE").tokens
    assert tokens == ["SELECT", "Ġcustomers", "ĠFROM", "Ġorders", "ĠWHERE"]


def test_a_greedy_answer_has_the_length_asked_for_and_depends_on_the_prompt(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    answers = set()
    for question in ("Count the orders.", "Which artist sold most?"):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            tokenize=False,
        )
        assert prompt == f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.inference_mode():
            out = model.generate(ids, max_new_tokens=24, do_sample=False)
        assert out.shape[1] - ids.shape[1] == 24
        answers.add(tokenizer.decode(out[0, ids.shape[1] :]))
    assert len(answers) == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"context_tokens": 64}, "context_tokens 64: allowed are 128 to 1048576"),
        ({"seed": -1}, "seed -1: allowed are 0"),
    ],
)
def test_an_argument_out_of_range_is_named(
    tmp_path: Path, arguments: dict[str, int], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        make_tiny_model(tmp_path / "model", **arguments)
    assert not (tmp_path / "model").exists()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds 'something that is no model of ours'"):
        make_tiny_model(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_another_recipe_in_the_folder_is_an_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match="context=16384 seed=0"):
        make_tiny_model(folder, seed=7)


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    def write(draft: Path) -> None:
        (draft / "half").write_text("half")
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        make_once(tmp_path / "model", "recipe", write)
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder_is_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = make_tiny_model(context_tokens=8192)
    assert first.parent == tmp_path / "hexgen-sglang" / "models"
    written = (first / "config.json").stat().st_mtime_ns
    assert make_tiny_model(context_tokens=8192) == first
    assert (first / "config.json").stat().st_mtime_ns == written


def test_concurrent_callers_get_one_complete_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(make_tiny_model, [target] * 4))
    assert folders == [target] * 4
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (target / "model.safetensors").stat().st_size > 10_000_000
