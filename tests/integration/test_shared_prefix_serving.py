"""A real server with our attention backend: the same answers as without it, and it was used.

Over `torch_native` it is the second worker of the shared cluster, asked past the coordinator. Over
`triton`, whose kernels Triton interprets here, it is a server of its own: what a GPU would run, but
for CUDA graphs and the overlap schedule. The tiny model says the same to everything, so what is
compared are the probabilities of what it says.
"""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(300)

SHARES_PREFIXES = "worker-1"  # of `cluster`
# Long enough that two requests save more by sharing it than a segment costs.
TEMPLATE = "CREATE TABLE orders (id INTEGER, customer TEXT, amount REAL, placed DATE); " * 40
QUESTIONS = (
    "Which customer paid most?",
    "How many orders were placed in May, and by whom?",
    "SELECT amount FROM orders WHERE id = 7 ORDER BY placed",
    "zebra quartz vivid 12345",
    "List every id whose amount is above the mean of all amounts.",
    "yes",
)
NEW_TOKENS = 24
# Float32 sums in another order differ by far less than answers to two questions.
TOLERANCE = 1e-4


def generate(url: str, prompt: str | list[int], new_tokens: int = NEW_TOKENS) -> dict[str, Any]:
    body = {
        "text" if isinstance(prompt, str) else "input_ids": prompt,
        "sampling_params": {
            "temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True,
        },
        "return_logprob": True,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=200) as answer:
        return dict(json.load(answer))


def answers_of(url: str) -> list[list[tuple[int, float]]]:
    """Tokens and their log probabilities, of questions about one cached template at once."""
    prompts = [f"{TEMPLATE} {question}" for question in QUESTIONS]
    generate(url, prompts[0])
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda prompt: generate(url, prompt), prompts))
    assert all(answer["meta_info"]["cached_tokens"] > 500 for answer in answers)
    return [said(answer) for answer in answers]


def said(answer: dict[str, Any]) -> list[tuple[int, float]]:
    """Tokens of an answer, each with its log probability."""
    return [(token, logprob) for logprob, token, *_ in answer["meta_info"]["output_token_logprobs"]]


def furthest(one: list[tuple[int, float]], other: list[tuple[int, float]]) -> float:
    """Largest difference of log probabilities; infinite when the tokens differ."""
    if [token for token, _ in one] != [token for token, _ in other]:
        return float("inf")
    return max(abs(left - right) for (_, left), (_, right) in zip(one, other, strict=True))


def layer_steps(url: str) -> dict[str, float]:
    """The backend's counter by its labels."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("hexgen_shared_prefix_layer_steps_total{")
    }


def test_a_server_that_shares_prefixes_says_the_same(cluster: Any, stock_worker: Any) -> None:
    url = cluster.workers[SHARES_PREFIXES].url
    ours, stock = answers_of(url), answers_of(stock_worker.url)
    assert min(furthest(*pair) for pair in combinations(stock, 2)) > 10 * TOLERANCE
    assert max(map(furthest, ours, stock)) < TOLERANCE
    steps = layer_steps(url)
    shared = [count for name, count in steps.items() if 'reason="shared"' in name]
    assert sum(shared) > 0, steps
    log = cluster.processes[SHARES_PREFIXES].log_path.read_text(errors="replace")
    assert "attention backend: hexgen_shared_prefix over torch_native" in log


def test_what_a_gpu_would_run_says_what_the_model_says(shared_worker: Any, tiny_model: str) -> None:
    flags = ("--attention-backend", "hexgen_shared_prefix", "--enable-metrics")
    worker = shared_worker(name="interpreted", flags=flags, env={"TRITON_INTERPRET": "1"})
    template = list(range(300, 460))
    prompts = [[*template, *range(500 + 7 * number, 512 + 9 * number)] for number in range(3)]
    generate(worker.url, prompts[0], 1)
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda prompt: said(generate(worker.url, prompt, 6)), prompts))
    wanted = [logprobs_of(tiny_model, *pair) for pair in zip(prompts, answers, strict=True)]
    assert min(furthest(*pair) for pair in combinations(wanted, 2)) > 10 * TOLERANCE
    assert max(map(furthest, answers, wanted)) < TOLERANCE
    steps = layer_steps(worker.url)
    assert any('reason="shared"' in name for name in steps), steps
    log = worker.process.log_path.read_text(errors="replace")
    assert "attention backend: hexgen_shared_prefix over triton" in log


def logprobs_of(
    model: str, prompt: list[int], answer: list[tuple[int, float]]
) -> list[tuple[int, float]]:
    """The most probable tokens behind a prompt and each part of an answer, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    tokens = [token for token, _ in answer]
    weights = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        logits = weights(torch.tensor([[*prompt, *tokens[:-1]]])).logits[0, len(prompt) - 1 :]
    best = torch.log_softmax(logits, dim=-1).max(dim=-1)
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
