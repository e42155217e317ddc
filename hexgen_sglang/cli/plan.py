"""`hexgen-sglang plan`: the cheapest mix of workers that holds a service level, by simulation."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from hexgen_sglang.bench.systems import parse_system
from hexgen_sglang.cli.tune import progress, say, write_json
from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.accelerator_toml import profile_from_toml
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.tuner.cheapest import Answer, Plan, ServiceLevel, cheapest, more_never_hurts
from hexgen_sglang.tuner.mixes import Bounds, Counts, Offer, load_offer, parse_counts
from hexgen_sglang.tuner.runs import Runs, usable_cores
from hexgen_sglang.tuner.trials import MixTrial
from hexgen_sglang.workload.arrivals import Arrivals
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import WorkloadSettings

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "": 1.0}


def command(
    slo: Annotated[str, typer.Option(help="Deadline of every workflow: 20s, 1500ms or 2m.")],
    rate: Annotated[float, typer.Option(help="Workflows per second.")],
    gpus: Annotated[
        str,
        typer.Option(help="Workers to choose from, by accelerator profile: h100:0-4,a100:0-8."),
    ],
    attainment: Annotated[float, typer.Option(help="Share that must meet the deadline.")] = 0.95,
    price: Annotated[
        list[str] | None,
        typer.Option(help="US dollars an hour of one worker: a100=6.4; default: the profile's."),
    ] = None,
    trace: Annotated[
        str, typer.Option(help="Trace file of any known format, or synthetic[:N[:seed]].")
    ] = "synthetic",
    system: Annotated[str, typer.Option(help="Scheduling system, as in `bench`.")] = "hexgen",
    accelerators: Annotated[Path, typer.Option(help="Folder of accelerator profiles.")] = Path(
        "launch/configs/accelerators"
    ),
    workflows: Annotated[int, typer.Option(help="Workflows of each run.", min=1)] = 200,
    seeds: Annotated[int, typer.Option(help="Most runs of a mix.", min=2)] = 8,
    first_seed: Annotated[int, typer.Option(help="The first of the seeds.", min=0)] = 0,
    arrivals: Annotated[str, typer.Option(help="poisson, fixed or gamma:<cv>.")] = "poisson",
    jobs: Annotated[int | None, typer.Option(help="Processes; default: all cores.", min=1)] = None,
    json: Annotated[Path | None, typer.Option(help="Write the result here.")] = None,
) -> None:
    """Find the cheapest mix of workers on which enough workflows meet their deadline.

    A worker is what its profile describes, several GPUs together where the model needs them.
    A mix holds when the interval of its attainment lies at or above the level. Exits with 1
    when no mix does.
    """
    began_s = time.monotonic()
    level = ServiceLevel(parse_seconds(slo), attainment, rate)
    tested = parse_system(system)
    offer = load_offer(parse_counts(gpus), _profiles(accelerators), _prices(price or []))
    loaded = load_trace(trace)
    trial = MixTrial(
        tested,
        loaded,
        WorkloadSettings(
            rate_per_s=rate,
            num_workflows=workflows,
            arrivals=Arrivals.parse(arrivals),
            deadline_scale=None,
        ),
        offer,
        level.slo_s,
    )
    with Runs(trial, jobs or usable_cores(), progress) as runs:

        def attain(counts: Counts, some: list[int]) -> list[float]:
            return runs([(counts, seed) for seed in some])

        found = cheapest(
            Bounds(offer, loaded),
            level,
            attain,
            list(range(first_seed, first_seed + seeds)),
            is_monotone=more_never_hurts(tested),
            say=say,
        )
    wall_s = time.monotonic() - began_s
    for line in _conclusion(offer, found):
        print(line)
    say(f"{found.num_simulated} mixes in {found.num_runs} runs, {wall_s:.1f} s")
    if json is not None:
        write_json(json, _result(offer, found, trial, wall_s))
    if found.best is None:
        raise typer.Exit(1)


def parse_seconds(text: str) -> float:
    """`20s`, `1500ms`, `2m` or `20` in seconds.

    Raises:
        ConfigError: anything else.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)(ms|s|m|)", text.strip())
    if match is None:
        raise ConfigError(f"slo={text!r}: must be a duration such as 20s, 1500ms or 2m")
    return float(match.group(1)) * _UNITS_S[match.group(2)]


def _prices(texts: list[str]) -> dict[str, float]:
    """`a100=6.4` by accelerator; several may stand in one text, separated by commas."""
    found: dict[str, float] = {}
    for text in (part for whole in texts for part in whole.split(",")):
        name, equals, value = text.strip().partition("=")
        try:
            if not equals or name in found:
                raise ValueError(text)
            found[name] = float(value)
        except ValueError as error:
            raise ConfigError(
                f"price {text!r}: must be accelerator=dollars an hour, each once"
            ) from error
    return found


def _profiles(folder: Path) -> dict[str, AcceleratorProfile]:
    """Every profile of a folder, by file name."""
    paths = sorted(folder.glob("*.toml"))
    if not paths:
        raise ConfigError(f"--accelerators={folder}: has no accelerator profile (*.toml)")
    return {path.stem: profile_from_toml(path.read_text("utf-8"), str(path)) for path in paths}


def _conclusion(offer: Offer, found: Plan) -> list[str]:
    level = found.level
    asked = f"{level.attainment:.1%} within {level.slo_s:g} s at {level.rate_per_s:g} workflows/s"
    lines = [f"No mix of {found.num_mixes} holds {asked}."]
    if found.best is not None:
        best = found.best
        lines = [f"cheapest that holds {asked}:", f"  {_told(offer, found, best)}"]
        assert best.attainment is not None
        margin = best.attainment.value - level.attainment
        surely = best.attainment.low - level.attainment
        lines.append(
            f"  margin: {margin:+.1%} attainment, surely {surely:+.1%}; its capacity bound is "
            f"{best.capacity_per_s / level.rate_per_s:.2f} times the rate"
        )
    if found.cheaper:
        lines.append("nearest cheaper ones:" if found.best else "the dearest:")
        lines += [f"  {_told(offer, found, answer)}" for answer in found.cheaper]
    return lines


def _told(offer: Offer, found: Plan, answer: Answer) -> str:
    """One mix in a line."""
    text = f"{offer.name(answer.counts)}, {answer.usd_per_hour:.2f} USD/h: {answer.verdict}"
    interval = answer.attainment
    if interval is not None:
        low, high = max(interval.low, 0.0), min(interval.high, 1.0)
        text += f", attainment {interval.value:.1%} [{low:.1%}, {high:.1%}]"
        return f"{text}, {answer.num_seeds} seeds"
    return f"{text} (capacity bound {answer.capacity_per_s:.3f} workflows/s)"


def _result(offer: Offer, found: Plan, trial: MixTrial, wall_s: float) -> dict[str, Any]:
    """The `--json` file."""

    def row(answer: Answer | None) -> dict[str, Any] | None:
        if answer is None:
            return None
        names = [profile.name for profile in offer.profiles]
        return {
            **msgspec.to_builtins(answer),
            "counts": dict(zip(names, answer.counts, strict=True)),
        }

    return {
        "level": msgspec.to_builtins(found.level),
        "system": trial.system.name,
        "trace": trial.trace.origin,
        "workflows": trial.workload.num_workflows,
        "usd_per_hour": {p.name: p.price.usd_per_hour.value for p in offer.profiles},
        "best": row(found.best),
        "cheaper": [row(answer) for answer in found.cheaper],
        "num_mixes": found.num_mixes,
        "num_simulated": found.num_simulated,
        "num_runs": found.num_runs,
        "wall_s": wall_s,
        "command": ["hexgen-sglang", *sys.argv[1:]],
    }
