"""A model folder without weights: what SGLang must know of a model that is never run.

Runs in the launching process of a server with an emulated accelerator. One layer with one tiny
head, so that a KV cache of a million tokens takes little memory; the vocabulary is that of a
real tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.models.folder import cache_root, make_once

ANSWER_FILE = "answer_tokens.json"
NUM_ANSWER_TOKENS = 251  # prime, so that no usual period of prompts lines up with it
HEAD_DIM = 2
RECIPE_VERSION = 1


def make_emulated_model(tokenizer_path: str, context_tokens: int) -> Path:
    """Write the folder for this tokenizer and context length once; return it.

    `ANSWER_FILE` lists the ids that stand for the model's answers: printable ASCII text, none
    of them special, so that no answer ends by itself. The tokenizer stays where it is.

    Raises:
        ConfigError: the tokenizer cannot be loaded, has no end-of-text token or too few plain
            tokens, or the cache cannot be written.
    """
    tokenizer = _load_tokenizer(tokenizer_path)
    vocabulary = max(tokenizer.get_vocab().values()) + 1
    end_id = tokenizer.eos_token_id
    if end_id is None:
        raise ConfigError(f"tokenizer {tokenizer_path}: has no end-of-text token")
    answer = _plain_tokens(tokenizer)
    if len(answer) < NUM_ANSWER_TOKENS:
        raise ConfigError(
            f"tokenizer {tokenizer_path}: {len(answer)} tokens of plain text; at least "
            f"{NUM_ANSWER_TOKENS} are needed"
        )
    key = hashlib.sha256(json.dumps(answer).encode()).hexdigest()[:8]
    recipe = f"emulated v{RECIPE_VERSION} v={vocabulary} end={end_id} c={context_tokens} a={key}"
    folder = cache_root() / recipe.replace(" ", "-").replace("=", "")

    def write(draft: Path) -> None:
        config = _model_config(vocabulary, end_id, context_tokens)
        _write_json(draft / "config.json", config)
        _write_json(draft / ANSWER_FILE, {"token_ids": answer, "end_token_id": end_id})

    return make_once(folder, recipe, write)


def _load_tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"tokenizer {path}: {error}") from error


def _plain_tokens(tokenizer: Any) -> list[int]:
    """The first `NUM_ANSWER_TOKENS` ids whose text is printable ASCII and not special."""
    special = set(tokenizer.all_special_ids)
    plain: list[int] = []
    for token_id in sorted(tokenizer.get_vocab().values()):
        text = tokenizer.decode([token_id])
        if token_id not in special and text and text.isascii() and text.isprintable():
            plain.append(token_id)
            if len(plain) == NUM_ANSWER_TOKENS:
                break
    return plain


def _model_config(vocabulary: int, end_id: int, context_tokens: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HEAD_DIM,
        "intermediate_size": HEAD_DIM,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": HEAD_DIM,
        "vocab_size": vocabulary,
        "max_position_embeddings": context_tokens,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": end_id,
        "torch_dtype": "float32",
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
