"""What emulated workers cost the host: start, memory, CPU time a step, drift and overhead.

Starts `--workers` SGLang servers with one emulated accelerator each, keeps `--concurrency`
requests running on every one of them for `--seconds`, and prints what their own accounting and
/proc say. Use it to see which time scale a machine can follow:

    .venv/bin/python launch/bench/emulated_workers.py --workers 4 --time-scale 2 --json FILE
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from hexgen_sglang.cluster.process import ChildProcess, stop_all, wait_ready
from hexgen_sglang.cluster.worker import WorkerSpec
from hexgen_sglang.models.tiny import make_tiny_model
from hexgen_sglang.protocol.emulation import OUTPUT_TOKENS

PROFILES = Path(__file__).resolve().parents[1] / "configs" / "accelerators"
START_TIMEOUT_S = 300.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Run, print, and return 1 when a worker calls its own run invalid."""
    args = _arguments()
    with tempfile.TemporaryDirectory(prefix="hexgen-emulated-") as folder:
        result = run(args, Path(folder))
    print(json.dumps(result, indent=2))
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if all(worker["valid"] is not False for worker in result["workers"]) else 1


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start the workers, load them, and gather the figures; stops all of them."""
    specs = [spec_of(args, name, folder) for name in range(args.workers)]
    children = [spec.process(folder) for spec in specs]
    began_s = time.monotonic()
    try:
        for child in children:
            child.start()
        probes = [(child, spec.is_ready) for child, spec in zip(children, specs, strict=True)]
        wait_ready(probes, timeout_s=START_TIMEOUT_S)
        start_s = time.monotonic() - began_s
        before = [cpu_by_process(child) for child in children]
        asyncio.run(load([spec.url for spec in specs], args))
        after = [cpu_by_process(child) for child in children]
        memory = [memory_by_process(child) for child in children]
        states = asyncio.run(summaries([spec.url for spec in specs]))
    finally:
        stop_all(children, 3.0)
    return {
        "command": " ".join(sys.argv),
        "cores": os.cpu_count(),
        "profile": args.profile,
        "time_scale": args.time_scale,
        "concurrency": args.concurrency,
        "all_started_s": round(start_s, 1),
        "workers": [
            worker_figures(*row) for row in zip(states, memory, before, after, strict=True)
        ],
    }


def worker_figures(
    state: dict[str, Any],
    memory: dict[str, int],
    before: dict[str, float],
    after: dict[str, float],
) -> dict[str, Any]:
    """One worker's row: the accounting, megabytes (proportional share), CPU ms a step."""
    steps = sum(state["num_steps"].values())
    used = {name: after[name] - before.get(name, 0.0) for name in after}
    return {
        **{name: state[name] for name in ("valid", "overhead_frac", "drift_frac", "late_frac")},
        **{name: state[name] for name in ("num_steps", "mean_batch", "cpu_per_step_s")},
        "memory_mb": {**memory, "all": sum(memory.values())},
        "cpu_ms_per_step": {name: round(1_000 * s / max(steps, 1), 2) for name, s in used.items()},
    }


def spec_of(args: argparse.Namespace, number: int, folder: Path) -> WorkerSpec:
    """One emulated worker, not pinned."""
    return WorkerSpec(
        name=f"worker-{number}",
        model_path=str(make_tiny_model()),
        emulate=PROFILES / f"{args.profile}.toml",
        schedule_policy=args.schedule_policy,
        flags=(
            *("--hexgen-time-scale", str(args.time_scale)),
            *("--hexgen-step-log", str(folder / f"steps-{number}")),
        ),
    )


async def load(urls: list[str], args: argparse.Namespace) -> None:
    """Closed loop: `concurrency` requests at a time on each worker, shared and own prefixes."""
    end_s = time.monotonic() + args.seconds
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        await asyncio.gather(
            *(
                client(session, url, end_s, random.Random(f"{url} {number}"), args)
                for url in urls
                for number in range(args.concurrency)
            )
        )


async def client(
    session: aiohttp.ClientSession,
    url: str,
    end_s: float,
    dice: random.Random,
    args: argparse.Namespace,
) -> None:
    """Send one request after another until the end."""
    template = [20 + place % 200 for place in range(args.template_tokens)]
    while time.monotonic() < end_s:
        own = dice.choices(range(20, 220), k=args.prompt_tokens)
        output = max(1, round(dice.gauss(args.output_tokens, args.output_tokens / 4)))
        sampling = {"max_new_tokens": 1_024, "custom_params": {OUTPUT_TOKENS: output}}
        body = {"input_ids": template + own, "sampling_params": sampling}
        async with session.post(f"{url}/generate", json=body) as answer:
            got = (await answer.json())["meta_info"]["completion_tokens"]
        if got != output:
            raise SystemExit(f"{url}: {got} output tokens instead of {output}")


async def summaries(urls: list[str]) -> list[dict[str, Any]]:
    """The accounting of every worker."""
    found = []
    async with aiohttp.ClientSession() as session:
        for url in urls:
            async with session.get(f"{url}/server_info") as answer:
                info = await answer.json()
            found.append(info["internal_states"][0]["hexgen_emulation"])
    return found


def cpu_by_process(child: ChildProcess) -> dict[str, float]:
    """CPU seconds so far of the worker's processes, by role."""
    return {
        role: sum(int(ticks) for ticks in stat_of(pid)[11:13]) / _TICKS_PER_S
        for role, pid in processes(child).items()
    }


def memory_by_process(child: ChildProcess) -> dict[str, int]:
    """Proportional set sizes in MB: pages shared with others count for their share."""
    sizes = {}
    for role, pid in processes(child).items():
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                sizes[role] = int(line.split()[1]) // 1_024
    return sizes


def processes(child: ChildProcess) -> dict[str, int]:
    """Process ids of one server by role: its HTTP front, scheduler and detokenizer."""
    found = {}
    for pid in child.members():
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
        role = command.rpartition("::")[2] if "::" in command else "http"
        found[role if role not in found else f"{role}-{pid}"] = pid
    return found


def stat_of(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--profile", default="a100", choices=[p.stem for p in PROFILES.glob("*.toml")]
    )
    parser.add_argument("--time-scale", type=float, default=1.0)
    parser.add_argument("--schedule-policy", default=None)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--template-tokens", type=int, default=2_000)
    parser.add_argument("--prompt-tokens", type=int, default=300)
    parser.add_argument("--output-tokens", type=int, default=100)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
