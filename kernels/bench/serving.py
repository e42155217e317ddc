"""Decode tokens a second of a real SGLang server, with `triton` and with `hexgen_shared_prefix`.

    python kernels/bench/serving.py --json kernels/bench/results/NAME.json

Starts one server after the other on this machine's GPU, with random weights in the shape of a
Llama of 8 billion parameters. All prompts of a batch begin with the same tokens and are in the
prefix cache before anything is timed. A rate is that of the tokens by which a long answer is
longer than a short one: what prefill, HTTP and the first step cost is in both and falls out. Ours
must say what `triton` says, within `TOLERANCE`, or the exit status is 1; that it shared prefixes
is read from its own counters. Needs SGLang with its CUDA kernels.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from hexgen_kernels.gpu import require_gpu
from hexgen_sglang.cluster.process import wait_ready
from hexgen_sglang.cluster.worker import WorkerSpec
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.plugin.attention.registration import SHARED_PREFIX, TRITON

LAYERS, VOCABULARY, CONTEXT_TOKENS = 32, 32_000, 32_768
SHORT, LONG, CHECKED = 32, 288, 8  # tokens of an answer
REPEATS = 5
READY_TIMEOUT_S = 900.0
ANSWER_TIMEOUT_S = 600.0
# Of log probabilities: bfloat16 sums in another order. Not measured on a GPU yet.
TOLERANCE = 0.1
COUNTER = "hexgen_shared_prefix_layer_steps_total"


def main() -> int:
    """Serve with each backend, measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--prefix", type=int, default=8_192, help="tokens that all prompts share")
    parser.add_argument("--own", type=int, default=1_024, help="further tokens of each prompt")
    parser.add_argument("--logs", type=Path, default=Path("runs/kernels-serving"))
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    if min(*args.batches, args.prefix, args.own) < 1:
        parser.error("--batches, --prefix, --own: must be at least 1")
    if args.prefix + args.own + LONG > CONTEXT_TOKENS:
        parser.error(f"--prefix + --own: at most {CONTEXT_TOKENS - LONG}")
    try:
        device = require_gpu()
    except ConfigError as error:
        parser.error(str(error))
    from speed import versions

    model = write_model(args.logs / "model")
    prompts = prompts_of(max(args.batches), args.prefix, args.own)
    served = {
        name: serve(name, model, prompts, args.batches, args.logs)
        for name in (TRITON, SHARED_PREFIX)
    }
    report = {
        "device": device,
        "versions": versions("sglang"),
        "command": " ".join(["python", *sys.argv]),
        "model": json.loads((model / "config.json").read_text(encoding="utf-8")),
        "prefix": args.prefix,
        "own": args.own,
        **comparison(served[TRITON], served[SHARED_PREFIX]),
    }
    print(json.dumps(report, indent=2))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if report["ok"] else 1


def write_model(folder: Path) -> Path:
    """A folder with the configuration of the model; SGLang makes up the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4_096,
        "intermediate_size": 14_336,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rope_theta": 500_000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder


def prompts_of(count: int, prefix: int, own: int) -> list[list[int]]:
    """Token ids, the same in every run."""
    chance = random.Random(0)
    shared = [chance.randrange(2, VOCABULARY) for _ in range(prefix)]
    return [shared + [chance.randrange(2, VOCABULARY) for _ in range(own)] for _ in range(count)]


def serve(
    backend: str, model: Path, prompts: list[list[int]], batches: list[int], logs: Path
) -> dict[str, Any]:
    """One server: what it says first, its rates, and its counters."""
    spec = worker(backend, model)
    with spec.process(logs) as process:
        wait_ready([(process, spec.is_ready)], timeout_s=READY_TIMEOUT_S)
        generate(spec.url, prompts[:1], 1)  # the prefix, once
        generate(spec.url, prompts, 1)
        answers = generate(spec.url, prompts, CHECKED)
        rates = {batch: rate(spec.url, prompts[:batch]) for batch in batches}
        return {"answers": answers, "rates": rates, "layer_steps": layer_steps(spec.url)}


def worker(backend: str, model: Path) -> WorkerSpec:
    """A server with random weights; the same ones each time."""
    flags = ("--load-format", "dummy", "--skip-tokenizer-init", "--random-seed", "0")
    return WorkerSpec(
        name=backend,
        model_path=str(model),
        platform="cuda",
        flags=(*flags, "--attention-backend", backend, "--enable-metrics"),
    )


def generate(url: str, prompts: list[list[int]], tokens: int) -> list[list[tuple[int, float]]]:
    """Answers of `tokens` tokens to prompts sent as one batch: ids and log probabilities."""
    body = {
        "input_ids": prompts,
        "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True},
        "return_logprob": tokens == CHECKED,
    }
    request = urllib.request.Request(
        f"{url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as response:
        answers = json.load(response)
    return [
        [(token, logprob) for logprob, token, *_ in found["meta_info"]["output_token_logprobs"]]
        for found in answers
        if body["return_logprob"]
    ]


def rate(url: str, prompts: list[list[int]]) -> dict[str, float]:
    """Decode tokens a second of a batch whose prompts are cached: median, least and most."""
    rates = []
    for _ in range(REPEATS):
        seconds = []
        for tokens in (SHORT, LONG):
            began_s = time.perf_counter()
            generate(url, prompts, tokens)
            seconds.append(time.perf_counter() - began_s)
        rates.append(len(prompts) * (LONG - SHORT) / (seconds[1] - seconds[0]))
    return {"median": statistics.median(rates), "least": min(rates), "most": max(rates)}


def layer_steps(url: str) -> dict[str, float]:
    """Our backend's counter by its labels; empty with SGLang's own backend."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    found = [line.rpartition(" ") for line in lines if line.startswith(f"{COUNTER}{{")]
    return {name: float(value) for name, _, value in found}


def comparison(engine: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Rates side by side, how far the answers are apart, and whether all is as it must be."""
    compared, worst = difference(engine["answers"], ours["answers"])
    shared = sum(count for name, count in ours["layer_steps"].items() if 'reason="shared"' in name)
    return {
        "ok": worst <= TOLERANCE and shared > 0,
        "compared_tokens": compared,
        "largest_logprob_difference": worst,
        "layer_steps": ours["layer_steps"],
        "tokens_per_s": [
            {
                "batch": batch,
                TRITON: before,
                SHARED_PREFIX: ours["rates"][batch],
                "ratio": ours["rates"][batch]["median"] / before["median"],
            }
            for batch, before in engine["rates"].items()
        ],
    }


def difference(
    left: list[list[tuple[int, float]]], right: list[list[tuple[int, float]]]
) -> tuple[int, float]:
    """Largest difference of log probabilities, each answer up to where its tokens part.

    Returns:
        How many tokens were compared, and the difference.
    """
    compared, worst = 0, 0.0
    for one, other in zip(left, right, strict=True):
        for (token, logprob), (other_token, other_logprob) in zip(one, other, strict=True):
            compared += 1
            worst = max(worst, abs(logprob - other_logprob))
            if token != other_token:
                break
    return compared, worst


if __name__ == "__main__":
    sys.exit(main())
