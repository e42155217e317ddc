"""Fit the accelerator profiles of this folder to published figures; says how well they fit.

`python launch/configs/accelerators/fit.py` prints a table and writes the six files;
`--check` writes nothing and fails when a file is not what the script would write. Everything
that goes in stands at the top, with its source; what is assumed is called an assumption.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hexgen_sglang.core.accelerator import (
    AcceleratorProfile,
    Capacity,
    Check,
    DecodeCost,
    Fit,
    PrefillCost,
    Price,
    Sourced,
    attended_tokens,
    decode_s,
    request_s,
)
from hexgen_sglang.core.accelerator_toml import profile_to_toml
from hexgen_sglang.profiling.least_squares import mape, nonnegative_least_squares

HERE = Path(__file__).resolve().parent
PUBLISHED = "HexGen-Flow (arXiv 2505.05286), public simulator code"

# Prompt and output tokens of one request of each stage, and its mean seconds on an unloaded
# worker with Llama-3.1-70B. Source: PUBLISHED, simulator/core/request.py.
STAGES = {
    "schema retrieval": (308, 5),
    "keyword extraction": (667, 45),
    "candidate generation": (11_748, 678),
    "revision": (5_963, 79),
    "unit tester": (275, 4),
    "unit test generation": (1_109, 103),
    "evaluation": (961, 22),
}
STAGE_SECONDS = {
    "a100": (0.2253, 1.1359, 18.2363, 3.3314, 0.1735, 2.5385, 0.8670),
    "h100": (0.1012, 0.5469, 8.7863, 1.4280, 0.0763, 1.2382, 0.3985),
    "a6000": (0.4869, 2.1088, 34.2747, 8.0309, 0.3907, 4.5617, 1.7923),
    "a40": (0.4932, 2.5157, 40.3525, 13.8657, 0.3786, 5.6343, 1.9049),
    "l40": (0.4003, 2.0330, 32.6221, 5.8850, 0.3077, 4.5497, 1.5440),
}
# Seconds a token while decoding in a batch under load. Source: PUBLISHED,
# simulator/core/obtain_latency.py. The batch is not stated.
LOADED_DECODE_SECONDS = {"a100": 0.035, "a6000": 0.058, "l40s": 0.0545}
# Whose ratio of context reading to step time stands in where no loaded figure is published:
# the same memory technology.
LOADED_LIKE = {"h100": "a100", "a40": "a6000", "l40": "l40s"}

# Assumption: the loaded figures are for 8 requests. Their context is the mean context of a
# decoded token in HexGen-Flow's traces trace1 and financial (weighted by output tokens).
LOADED_BATCH = 8
LOADED_CONTEXT_TOKENS = 8_520
# Assumption: a further request without context costs this share of a one-request step
# (activations, sampling, the engine's bookkeeping).
PER_REQUEST_SHARE = 0.024

# Llama-3.1-70B in bfloat16. Source: its config.json.
PARAMETERS, LAYERS, HIDDEN, KV_HEADS, HEAD_DIM = 70.6e9, 80, 8_192, 8, 128
WEIGHT_BYTES = 2 * PARAMETERS
KV_BYTES_PER_TOKEN = 2 * LAYERS * KV_HEADS * HEAD_DIM * 2
# FLOPs of attention (scores and weighted sum) for one more attended token, over those of all
# matrices for one token.
ATTENTION_SHARE = 4 * LAYERS * HIDDEN / (2 * PARAMETERS)
# Assumption: all-reduce bandwidth of PCIe 4.0 x16 cards without NVLink, bytes/s.
PCIE_ALL_REDUCE = 20e9
# Assumption: no engine reads weights faster than this share of the memory's data sheet rate.
BEST_MEMORY_SHARE = 0.9


@dataclass(frozen=True)
class Card:
    """Data sheet and assumptions of one GPU.

    Attributes:
        bandwidth: bytes/s of its memory. tensor_flops: dense bfloat16.
        kv_tokens, chunk_tokens: of the worker. usd_per_gpu_hour: assumption, see PRICE_DATE.
    """

    device: str
    bandwidth: float
    tensor_flops: float
    memory_gb: int
    kv_tokens: int
    chunk_tokens: int
    usd_per_gpu_hour: float


PRICE_DATE = "November 2026"
CARDS = {
    "a100": Card("NVIDIA A100 SXM 80 GB", 2_039e9, 312e12, 80, 120_000, 8_192, 1.60),
    "a6000": Card("NVIDIA RTX A6000 48 GB", 768e9, 154.8e12, 48, 60_000, 4_096, 0.75),
    "l40s": Card("NVIDIA L40S 48 GB", 864e9, 362e12, 48, 60_000, 4_096, 0.95),
    "l40": Card("NVIDIA L40 48 GB", 864e9, 181e12, 48, 60_000, 4_096, 0.90),
    "a40": Card("NVIDIA A40 48 GB", 696e9, 149.7e12, 48, 60_000, 4_096, 0.60),
    "h100": Card("NVIDIA H100 SXM 80 GB", 3_350e9, 989e12, 80, 120_000, 8_192, 2.82),
}


@dataclass(frozen=True)
class Costs:
    """What is fitted, in seconds.

    Attributes:
        base: of a prefill step. per_token: of an uncached token, attention not counted.
        step: decode step of one request without context. reading: share of `step` for each
            context token.
    """

    base: float
    per_token: float
    step: float
    reading: float


def fit_stages(name: str, reading: float) -> Costs:
    """Least squares of the relative errors of the seven stage times.

    The prefill base is at least a decode step, since a step of any kind reads the weights.
    """
    rows = []
    for prompt, output in STAGES.values():
        chunks = -(-prompt // CARDS[name].chunk_tokens)
        work = prompt + ATTENTION_SHARE * attended_tokens(prompt, 0)
        decoding = (output - 1) * (1 + reading * (prompt + output / 2))
        rows.append((chunks, work, chunks + decoding))
    extra, per_token, step = nonnegative_least_squares(rows, STAGE_SECONDS[name])
    return Costs(float(extra + step), float(per_token), float(step), reading)


def reading_share(name: str, step: float) -> float:
    """Share of `step` for each context token at which the loaded figure comes out."""
    batch = 1 + PER_REQUEST_SHARE * (LOADED_BATCH - 1)
    excess = LOADED_DECODE_SECONDS[name] / step - batch
    return excess / (LOADED_BATCH * LOADED_CONTEXT_TOKENS)


def fit_all() -> dict[str, Costs]:
    """Costs of every card; those with a loaded figure first, the others borrow from them."""
    costs: dict[str, Costs] = {}
    for name in ("a100", "a6000"):
        reading = 0.0
        for _ in range(50):  # the two fits depend on each other; converges in about ten
            reading = reading_share(name, fit_stages(name, reading).step)
        costs[name] = fit_stages(name, reading)
    # The L40S has no stage times: L40 and L40S share memory, so they share the step, and the
    # loaded figure of the one gives the context reading of both.
    reading = 0.0
    for _ in range(50):
        reading = reading_share("l40s", fit_stages("l40", reading).step)
    costs["l40"] = fit_stages("l40", reading)
    costs["l40s"] = l40s_from_l40(costs["l40"])
    for name in ("h100", "a40"):
        costs[name] = fit_stages(name, costs[LOADED_LIKE[name]].reading)
    return costs


def tensor_parallel(name: str, step: float) -> int:
    """Least power of two of GPUs that hold the weights and can read them within a step."""
    card, gpus = CARDS[name], 1
    while (
        gpus * card.memory_gb * 1e9 < WEIGHT_BYTES
        or WEIGHT_BYTES / (gpus * card.bandwidth * BEST_MEMORY_SHARE) > step
    ):
        gpus *= 2
    return gpus


def l40s_from_l40(costs: Costs) -> Costs:
    """Twice the tensor throughput, the same memory and the same PCIe."""
    gpus = tensor_parallel("l40", costs.step)
    reduced_bytes = 2 * LAYERS * HIDDEN * 2 * 2 * (gpus - 1) / gpus
    exchange = min(reduced_bytes / PCIE_ALL_REDUCE, costs.per_token)
    ratio = CARDS["l40"].tensor_flops / CARDS["l40s"].tensor_flops
    per_token = exchange + (costs.per_token - exchange) * ratio
    return Costs(costs.base, per_token, costs.step, costs.reading)


def profile_of(name: str, costs: Costs) -> AcceleratorProfile:
    """The profile with its sources and its checks against what is published."""
    card = CARDS[name]
    gpus = tensor_parallel(name, costs.step)
    fitted = f"fit of {PUBLISHED}: mean stage times of seven stages, relative least squares"
    scaled = "L40's fit: L40S has the same memory; no stage times are published for it"
    prefill_source = fitted
    if name == "l40s":
        fitted = scaled
        prefill_source = "L40's fit with twice the tensor throughput and the same PCIe exchange"
    share = f"assumption: {100 * PER_REQUEST_SHARE:g} % of a one-request step"
    if name in LOADED_DECODE_SECONDS:
        reading = (
            f"{PUBLISHED}: {LOADED_DECODE_SECONDS[name]} s a token under load, assumed to be "
            f"{LOADED_BATCH} requests with {LOADED_CONTEXT_TOKENS} tokens each"
        )
    else:
        reading = f"same share of a step as on {LOADED_LIKE[name]}; no loaded figure is published"
    per_request = PER_REQUEST_SHARE * costs.step
    profile = AcceleratorProfile(
        name=name,
        model="Llama-3.1-70B",
        device=f"{gpus} x {card.device}",
        tensor_parallel=Sourced(
            gpus,
            "calculation: fewest GPUs (power of two) that hold 141 GB of weights and read them "
            f"within the fitted step at {100 * BEST_MEMORY_SHARE:g} % of {card.bandwidth / 1e9:g} "
            "GB/s each (data sheet)",
        ),
        prefill=PrefillCost(
            base_s=Sourced(rounded(costs.base), fitted),
            per_token_s=Sourced(rounded(costs.per_token), prefill_source),
            per_token_per_1k_context_s=Sourced(
                rounded(1_000 * ATTENTION_SHARE * costs.per_token),
                "calculation: per_token_s times the FLOPs of attention for 1,000 attended tokens "
                f"over those of all matrices ({1_000 * ATTENTION_SHARE:.5f})",
            ),
            chunk_tokens=Sourced(
                card.chunk_tokens,
                f"assumption: SGLang's default for GPUs with {card.memory_gb} GB",
            ),
        ),
        decode=DecodeCost(
            base_s=Sourced(rounded(costs.step - per_request), fitted),
            per_request_s=Sourced(rounded(per_request), share),
            per_1k_context_tokens_s=Sourced(rounded(1_000 * costs.reading * costs.step), reading),
        ),
        capacity=Capacity(
            kv_tokens=Sourced(card.kv_tokens, kv_source(card, gpus)),
            max_running_requests=Sourced(128, "assumption: the KV capacity binds first"),
        ),
        price=Price(
            usd_per_hour=Sourced(
                round(gpus * card.usd_per_gpu_hour, 2),
                f"assumption, yours to edit: {gpus} GPUs at {card.usd_per_gpu_hour} USD an hour "
                f"each on demand, {PRICE_DATE}",
            )
        ),
        fit=Fit(method="filled in below"),
    )
    return with_checks(profile)


def kv_source(card: Card, gpus: int) -> str:
    """What the KV capacity is, beside what the GPUs' memory would hold."""
    fits = (0.88 * gpus * card.memory_gb * 1e9 - WEIGHT_BYTES) / KV_BYTES_PER_TOKEN
    return (
        f"assumption, yours to edit: {card.kv_tokens * KV_BYTES_PER_TOKEN / 1e9:.0f} GB at "
        f"{KV_BYTES_PER_TOKEN} bytes a token; 88 % of these GPUs' memory without the weights "
        f"would hold {round(fits, -3):,.0f} tokens"
    )


def with_checks(profile: AcceleratorProfile) -> AcceleratorProfile:
    """The profile with its predictions beside the published figures."""
    checks = [
        check(f"{stage}: {prompt} prompt, {output} output tokens, unloaded", known, predicted)
        for (stage, (prompt, output)), known in zip(
            STAGES.items(), STAGE_SECONDS.get(profile.name, ()), strict=False
        )
        for predicted in (request_s(profile, prompt, output),)
    ]
    errors = [row.relative_error for row in checks]
    method = "No stage times are published for this card; see the sources of the numbers."
    if checks:
        method = (
            f"Relative least squares over {len(checks)} published mean stage times: mean "
            f"absolute error {100 * float(np.abs(errors).mean()):.1f} %, largest "
            f"{100 * max(errors, key=abs):+.1f} %. See fit.py beside this file."
        )
    if profile.name in LOADED_DECODE_SECONDS:
        predicted = decode_s(profile, LOADED_BATCH, LOADED_BATCH * LOADED_CONTEXT_TOKENS)
        what = f"decode step under load, assumed {LOADED_BATCH} x {LOADED_CONTEXT_TOKENS} tokens"
        checks.append(check(what, LOADED_DECODE_SECONDS[profile.name], predicted))
    fields = {name: getattr(profile, name) for name in profile.__struct_fields__}
    return AcceleratorProfile(**{**fields, "fit": Fit(method=method, checks=tuple(checks))})


def check(what: str, known: float, predicted: float) -> Check:
    """One row of the fit section."""
    return Check(
        what=what,
        known_s=known,
        predicted_s=rounded(predicted),
        relative_error=round(predicted / known - 1, 4) + 0.0,  # no -0.0
    )


def rounded(value: float) -> float:
    """Four significant digits: more than the figures carry."""
    return float(f"{value:.4g}")


def main() -> int:
    """Write or check the files; 1 when `--check` finds a difference."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; compare")
    only_check = parser.parse_args().check
    stale = []
    for name, costs in fit_all().items():
        profile = profile_of(name, costs)
        text = profile_to_toml(
            profile, "Written by fit.py beside this file, from published figures."
        )
        path = HERE / f"{name}.toml"
        if only_check and (not path.is_file() or path.read_text(encoding="utf-8") != text):
            stale.append(path.name)
        elif not only_check:
            path.write_text(text, encoding="utf-8")
        report(profile)
    if stale:
        print(f"not what fit.py writes: {', '.join(stale)}", file=sys.stderr)
    return 1 if stale else 0


def report(profile: AcceleratorProfile) -> None:
    """One block of the table."""
    prefill, decode = profile.prefill, profile.decode
    print(
        f"{profile.name}: prefill {prefill.base_s.value} + {prefill.per_token_s.value} x tokens, "
        f"decode {decode.base_s.value} + {decode.per_request_s.value} x requests + "
        f"{decode.per_1k_context_tokens_s.value} x 1k context; "
        f"{profile.tensor_parallel.value} GPUs, {profile.price.usd_per_hour.value} USD/h"
    )
    for row in profile.fit.checks:
        print(
            f"  {row.what:70s} {row.known_s:9.4f} {row.predicted_s:9.4f} {row.relative_error:+7.1%}"
        )
    if profile.fit.checks:
        predicted = [row.predicted_s for row in profile.fit.checks]
        print(f"  MAPE {mape(predicted, [row.known_s for row in profile.fit.checks]):.1%}")


if __name__ == "__main__":
    raise SystemExit(main())
