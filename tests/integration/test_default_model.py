"""The default model, converted from the real package: the right weights, and sense in its text."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hexgen_sglang.models.smollm2 import write_default_model

# Of the weights as transformers 5.19 (with accelerate 1.15) itself reads them from the GGUF file;
# the logits of both were equal too. Tensors in the order of their names.
WEIGHTS_SHA256 = "15de52720e20a45e4e8358f990c18d70df7af4ed1b83eb20b5ac6ff3cb0dae2e"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # Not pytest's own temporary folder, of which it keeps three: this one takes 540 MB.
    with tempfile.TemporaryDirectory() as folder:
        write_default_model(Path(folder))
        yield Path(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_weights_are_those_transformers_reads(folder: Path) -> None:
    from safetensors import safe_open

    digest = hashlib.sha256()
    with safe_open(str(folder / "model.safetensors"), framework="np") as weights:
        for name in sorted(weights.keys()):
            tensor = weights.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
            digest.update(tensor.tobytes())
    assert digest.hexdigest() == WEIGHTS_SHA256


def test_config_says_what_the_file_says(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == 30
    assert config["max_position_embeddings"] == 8192
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_theta"] == 100_000


@pytest.mark.parametrize(
    "text",
    [
        "SELECT COUNT(*) FROM orders WHERE year >= 2024;\n\tLIMIT 10",
        "naïve café 漢字 🌍\r\n",
        "def f(x):\n        return x ** 2  # twelve  spaces",
    ],
)
def test_text_round_trips_through_transformers(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text


def test_transformers_keeps_digits_apart(tokenizer: Any) -> None:
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("in 2024").input_ids)
    assert tokens == ["in", "Ġ", "2", "0", "2", "4"]


def test_it_knows_the_capital_of_france(folder: Path, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert prompt.endswith("<|im_start|>assistant\n")
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        out = model.generate(ids, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(out[0, ids.shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"
