"""A soak: load for a long time, workers killed at random, and what the coordinator still holds.

Two SGLang workers with an emulated accelerator at a share of the rate that they serve, measured
first. Every `--kill-every` seconds (on average) one of them is killed and started again. Memory
and file descriptors of the coordinator are read all the time; growth is the last quarter over the
second quarter, since the first fills what is bounded: the coordinator remembers `--remember`
workflows here, not its default of 10,000, which the soak would not fill. Of memory the quarters'
means count, of descriptors the least, since a call in flight holds some. Status 1 when a request
was lost, a token came twice or never, memory grew by 5 % or descriptors grew:

    .venv/bin/python launch/bench/soak.py --minutes 30 --json FILE
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hexgen_sglang.bench.drills.callers import Callers
from hexgen_sglang.bench.drills.drill import KINDS
from hexgen_sglang.bench.drills.stage import WORKERS, Stage
from hexgen_sglang.bench.machine import machine, versions

_TOKENS = 30
_CALIBRATION_CALLERS = 14
_SAMPLE_S = 2.0
_MAX_GROWTH = 0.05
_END_TIMEOUT_S = 600.0


@dataclass
class Usage:
    """What the coordinator's process held over time: seconds, bytes, descriptors."""

    at_s: list[float] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def sample(self, pid: int, now_s: float) -> None:
        """Read /proc now."""
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        self.at_s.append(round(now_s, 1))
        self.memory_bytes.append(pages * os.sysconf("SC_PAGE_SIZE"))
        self.descriptors.append(len(os.listdir(f"/proc/{pid}/fd")))

    @property
    def memory_growth(self) -> float | None:
        """The last quarter's mean over the second quarter's, less one; None for few samples."""
        return _growth(self.memory_bytes, statistics.mean)

    @property
    def descriptor_growth(self) -> float | None:
        """The last quarter's least over the second quarter's, less one; None for few samples."""
        return _growth(self.descriptors, min)


def _growth(values: list[int], figure: Callable[[list[int]], float]) -> float | None:
    quarter = len(values) // 4
    if not quarter:
        return None
    return figure(values[-quarter:]) / figure(values[quarter : 2 * quarter]) - 1


def main() -> int:
    """Run, print, write the JSON file."""
    args = _arguments()
    with tempfile.TemporaryDirectory(prefix="hexgen-soak-") as temporary:
        result = asyncio.run(run(args, args.folder or Path(temporary)))
    print(json.dumps(result, indent=2))
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if result["good"] else 1


async def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Calibrate, soak, and gather the figures."""
    async with Stage(folder / "stage", max_workflows=args.remember) as stage:
        full_rate = await measured_rate(stage, args.calibrate)
        usage, callers = Usage(), stage.callers()
        killing = asyncio.create_task(kill_at_random(stage, args.kill_every, args.seed))
        watching = asyncio.create_task(watch(stage, usage))
        await send(stage, callers, args.load * full_rate, args.minutes * 60)
        killing.cancel()
        [kills] = await asyncio.gather(killing, return_exceptions=False)
        await callers.finish(_END_TIMEOUT_S)
        watching.cancel()
    return result_of(args, full_rate, kills, usage, callers)


async def measured_rate(stage: Stage, seconds: float) -> float:
    """Requests a second that both workers serve together, from callers that never pause."""
    end_s, callers = time.monotonic() + seconds, stage.callers()
    kinds = itertools.cycle(KINDS)
    while time.monotonic() < end_s:
        while callers.num_open < _CALIBRATION_CALLERS:
            callers.send(stage.call(next(kinds), count=_TOKENS))
        await asyncio.sleep(0.05)
    ended = sum(call.ended_s is not None for call in callers.calls)
    await callers.finish(_END_TIMEOUT_S)
    return ended / seconds


async def send(stage: Stage, callers: Callers, rate: float, seconds: float) -> None:
    """Poisson arrivals, until the time is over."""
    dice, kinds = random.Random(1), itertools.cycle(KINDS)
    due_s = time.monotonic()
    end_s = due_s + seconds
    while due_s < end_s:
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        callers.send(stage.call(next(kinds), count=_TOKENS))
        due_s += dice.expovariate(rate)


async def kill_at_random(stage: Stage, every_s: float, seed: int) -> int:
    """Kill a worker now and then, and start it again; returns how many when cancelled."""
    dice, kills = random.Random(seed), 0
    try:
        while True:
            await asyncio.sleep(dice.uniform(0.5, 1.5) * every_s)
            name = dice.choice(WORKERS)
            kills += 1
            await asyncio.to_thread(stage.processes[name].kill)
            await stage.start_worker(name)
    except asyncio.CancelledError:
        return kills


async def watch(stage: Stage, usage: Usage) -> None:
    """Sample the coordinator until cancelled."""
    began_s = time.monotonic()
    while True:
        usage.sample(stage.processes["coordinator"].pid, time.monotonic() - began_s)
        await asyncio.sleep(_SAMPLE_S)


def result_of(
    args: argparse.Namespace, full_rate: float, kills: int, usage: Usage, callers: Callers
) -> dict[str, Any]:
    """The figures as JSON data."""
    calls = callers.calls
    lost = sum(not call.has_ended_well for call in calls)
    repeated = sum(call.repeated for call in calls)
    missing = sum(call.missing for call in calls if not call.error)
    memory, descriptors = usage.memory_growth, usage.descriptor_growth
    is_flat = memory is not None and memory < _MAX_GROWTH
    is_flat = is_flat and descriptors is not None and descriptors < _MAX_GROWTH
    return {
        "command": " ".join(["launch/bench/soak.py", *sys.argv[1:]]),
        "versions": versions(),
        "machine": machine(),
        "minutes": args.minutes,
        "load": args.load,
        "max_workflows": args.remember,
        "full_rate_per_s": round(full_rate, 2),
        "kills": kills,
        "requests": len(calls),
        "lost": lost,
        "errors": sum(bool(call.error) for call in calls),
        "told": sorted({call.error for call in calls if call.error})[:5],
        "duplicated_tokens": repeated,
        "missing_tokens": missing,
        "memory_growth_frac": memory,
        "descriptor_growth_frac": descriptors,
        "usage": {
            "at_s": usage.at_s,
            "memory_bytes": usage.memory_bytes,
            "descriptors": usage.descriptors,
        },
        "good": not (lost or repeated or missing) and is_flat,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--load", type=float, default=0.8, help="share of the measured rate")
    parser.add_argument("--kill-every", type=float, default=180.0, metavar="SECONDS")
    parser.add_argument("--calibrate", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--remember", type=int, default=500, metavar="WORKFLOWS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the logs there")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
