"""`hexgen-sglang profile`: measure a live SGLang worker and write its accelerator profile."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.accelerator_toml import profile_to_toml
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.profiling.fit import (
    DEFAULT_MAX_ERROR,
    fit_decode,
    fit_prefill,
    profile_from_measurements,
)
from hexgen_sglang.profiling.measure import Grid, WorkerProbe, measure

QUICK = Grid(
    prompt_tokens=(32, 128, 256, 512, 1_024, 2_048),
    cached=((64, 512), (64, 1_024)),
    batches=((1, 32), (2, 32), (4, 32), (8, 32), (1, 1_024), (2, 1_024), (4, 512)),
    output_tokens=16,
    repeats=1,
)


def command(
    url: Annotated[str, typer.Option(help="Base address of an idle SGLang server.")],
    out: Annotated[Path, typer.Option(help="TOML file to write.")],
    name: Annotated[str, typer.Option(help="Profile's name, e.g. a100.")] = "",
    device: Annotated[str, typer.Option(help="What the accelerator is, in words.")] = "",
    usd_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Price of the whole worker.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="Small grid: shorter prompts, one repeat.")] = False,
    max_error: Annotated[
        float, typer.Option(min=0.001, max=1, help="Largest mean relative error accepted.")
    ] = DEFAULT_MAX_ERROR,
    seed: Annotated[int | None, typer.Option(help="Of the random prompts.")] = None,
) -> None:
    """Measure an idle SGLang worker over HTTP and write an accelerator profile with its error.

    Takes one to several minutes and empties the worker's prefix cache. Nothing is written when
    the measured times do not follow a profile's formulas.
    """
    profile = asyncio.run(
        _measured(
            url,
            Grid() if not quick else QUICK,
            name or out.stem,
            device,
            usd_per_hour,
            max_error,
            seed,
        )
    )
    out.write_text(
        profile_to_toml(profile, f"Measured by `hexgen-sglang profile --url {url}`."),
        encoding="utf-8",
    )
    fit = profile.fit
    print(f"{out}: prefill error {fit.prefill_mape:.1%}, decode error {fit.decode_mape:.1%}")


async def _measured(
    url: str,
    grid: Grid,
    name: str,
    device: str,
    usd_per_hour: float | None,
    max_error: float,
    seed: int | None,
) -> AcceleratorProfile:
    async with WorkerProbe(url, seed) as probe:
        facts = await probe.facts()
        if facts.time_scale != 1.0:
            raise ConfigError(
                f"{url}: time scale {facts.time_scale}: must be 1; a scaled emulated worker's "
                "seconds are not its profile's"
            )
        prefills, decodes = await measure(probe, facts, grid, _say)
    prefill = fit_prefill(prefills, facts.chunk_tokens)
    decode = fit_decode(decodes)
    device = device or f"the accelerator behind {url}, not described"
    return profile_from_measurements(name, device, facts, prefill, decode, usd_per_hour, max_error)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
