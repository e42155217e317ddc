"""A tiny Llama with random weights and a tokenizer of its own, for tests that need speed.

Runs in the tests and the command line. The same arguments give the same bytes. Its text means
nothing; what is real are the tokens, the KV cache and the time every layer takes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.models.folder import cache_root, make_once

MAX_VOCABULARY = 4096
HIDDEN, FEED_FORWARD, LAYERS, HEADS, KV_HEADS = 256, 704, 4, 4, 2
HEAD_DIM = HIDDEN // HEADS
START, END = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Bumped when the same arguments come to mean other bytes.
RECIPE_VERSION = 1


def make_tiny_model(
    folder: Path | None = None, *, context_tokens: int = 16_384, seed: int = 0
) -> Path:
    """Write the tiny model to `folder` (default: the user's cache) once, and return the folder.

    About 3.8 million float32 weights; `context_tokens` is the longest sequence it takes. Greedy
    decoding never ends by itself and yields ASCII text only, so that a test which asks for n
    tokens gets n tokens, each with its own piece of text. Atomic and safe to call concurrently.

    Raises ConfigError when `folder` holds something else, or an argument is out of range.
    """
    if not 128 <= context_tokens <= 1_048_576:
        raise ConfigError(f"context_tokens {context_tokens}: allowed are 128 to 1048576")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed {seed}: allowed are 0 to 2**32 - 1")
    corpus = (Path(__file__).parent / "tiny_corpus.txt").read_text("utf-8")
    key = hashlib.sha256(f"{CHAT_TEMPLATE}{corpus}".encode()).hexdigest()[:8]
    recipe = f"tiny-llama v{RECIPE_VERSION} context={context_tokens} seed={seed} corpus={key}"
    if folder is None:
        folder = cache_root() / recipe.replace(" ", "-").replace("=", "-")

    def write(draft: Path) -> None:
        tokenizer = _train_tokenizer(corpus)
        tokenizer.save(str(draft / "tokenizer.json"))
        size = tokenizer.get_vocab_size()
        end_id = tokenizer.token_to_id(END)
        _write_json(draft / "tokenizer_config.json", _tokenizer_config(context_tokens))
        _write_json(draft / "config.json", _model_config(size, end_id, context_tokens))
        _write_json(draft / "generation_config.json", {"eos_token_id": end_id, "do_sample": False})
        _write_weights(draft / "model.safetensors", _silent_tokens(tokenizer), size, seed)

    return make_once(folder, recipe, write)


def _train_tokenizer(corpus: str) -> Any:
    """Byte-level BPE over `corpus`: every UTF-8 text round-trips, digits stand alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(  # type: ignore[no-untyped-call]
        vocab_size=MAX_VOCABULARY,
        min_frequency=1,
        special_tokens=[START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.splitlines(keepends=True), trainer)
    return tokenizer


def _silent_tokens(tokenizer: Any) -> list[int]:
    """Ids that greedy decoding must not choose: special tokens and what is not plain ASCII."""
    silent = []
    for token, token_id in tokenizer.get_vocab().items():
        text = tokenizer.decode([token_id], skip_special_tokens=False)
        if token in (START, END) or not text or not (text.isprintable() and text.isascii()):
            silent.append(token_id)
    return sorted(silent)


def _write_weights(path: Path, silent: list[int], vocabulary: int, seed: int) -> None:
    """Write seeded normal weights in float32; rows of `silent` tokens in the head are zero.

    A zero row gives logit 0, below the largest of the thousands of random ones.
    """
    import numpy as np
    from safetensors.numpy import save_file

    random = np.random.Generator(np.random.PCG64(seed))

    def normal(rows: int, columns: int) -> Any:
        return random.standard_normal((rows, columns), dtype=np.float32) * columns**-0.5

    weights = {"model.embed_tokens.weight": normal(vocabulary, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        weights |= {
            f"{prefix}self_attn.q_proj.weight": normal(HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}self_attn.k_proj.weight": normal(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}self_attn.v_proj.weight": normal(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}self_attn.o_proj.weight": normal(HIDDEN, HEADS * HEAD_DIM),
            f"{prefix}mlp.gate_proj.weight": normal(FEED_FORWARD, HIDDEN),
            f"{prefix}mlp.up_proj.weight": normal(FEED_FORWARD, HIDDEN),
            f"{prefix}mlp.down_proj.weight": normal(HIDDEN, FEED_FORWARD),
            f"{prefix}input_layernorm.weight": np.ones(HIDDEN, dtype=np.float32),
            f"{prefix}post_attention_layernorm.weight": np.ones(HIDDEN, dtype=np.float32),
        }
    head = normal(vocabulary, HIDDEN)
    head[silent] = 0.0
    weights |= {"model.norm.weight": np.ones(HIDDEN, dtype=np.float32), "lm_head.weight": head}
    save_file(weights, str(path), metadata={"format": "pt"})


def _model_config(vocabulary: int, end_id: int, context_tokens: int) -> dict[str, Any]:
    """The `config.json` of the model, as transformers and SGLang read it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": vocabulary,
        "max_position_embeddings": context_tokens,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": end_id,
        "torch_dtype": "float32",
    }


def _tokenizer_config(context_tokens: int) -> dict[str, Any]:
    """The `tokenizer_config.json`: a plain fast tokenizer with a ChatML-like template."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_tokens,
        "bos_token": None,
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
