"""What the coordinator can carry, proxying and direct, beside sglang-router; and decision times.

One run, one machine, the same mock workers (one process) and the same load generator for all:
`mock_workers` and `front_load` in `hexgen_sglang.bench`. The fronts are measured in turn, several
times over, each while the others idle; figures are medians. A `direct` user asks the coordinator
for 1 or 8 placements at a time and talks to the workers itself; the workers' plugins report the
ends. wrk, where installed, measures the proxies once more.

    .venv/bin/python launch/bench/coordinator.py --json FILE
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from hexgen_sglang.bench import decision_time, machine
from hexgen_sglang.bench.front_load import completion_body
from hexgen_sglang.cluster.coordinator import CoordinatorSpec
from hexgen_sglang.cluster.ports import answers, fetch_json, free_port
from hexgen_sglang.cluster.process import ChildProcess, wait_ready
from hexgen_sglang.coordinator.config import CoordinatorConfig

_TICKS = os.sysconf("SC_CLK_TCK")
_READY_S = 120.0
_WRK = """wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [[%s]]
"""


def child(name: str, folder: Path, *command: str) -> ChildProcess:
    """A Python process of the bench, not started."""
    log = folder / f"{name}.log"
    full = [sys.executable, "-P", "-m", *command]
    return ChildProcess(name, full, env=dict(os.environ), log_path=log)


@contextmanager
def coordinator(folder: Path) -> Iterator[tuple[ChildProcess, CoordinatorSpec]]:
    """Ours, with its defaults and direct mode."""
    config = CoordinatorConfig(port=0, direct=True, log_level="warning")
    spec = CoordinatorSpec.with_ports(config)
    with spec.process(folder) as process:
        wait_ready([(process, spec.is_ready)], timeout_s=_READY_S)
        yield process, spec


@contextmanager
def mock_workers(folder: Path, number: int, spec: CoordinatorSpec) -> Iterator[list[str]]:
    """The workers' URLs, once the coordinator has them all."""
    module = "hexgen_sglang.bench.mock_workers"
    with child("workers", folder, module, "--num", str(number), "--link", spec.config.link) as one:
        wait_ready([(one, lambda: len(spec.ready_workers()) == number)], timeout_s=_READY_S)
        lines = (folder / "workers.log").read_text().splitlines()
        yield json.loads(next(line for line in lines if line.startswith("[")))


@contextmanager
def router(folder: Path, workers: list[str], policy: str) -> Iterator[tuple[ChildProcess, str]]:
    """sglang-router in front of the same workers."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = child(
        f"router-{policy}",
        folder,
        "hexgen_sglang.bench.router_process",
        *("--host", "127.0.0.1", "--port", str(port), "--worker-urls", *workers),
        *("--policy", policy, "--prometheus-port", str(free_port()), "--log-level", "warn"),
        *("--worker-startup-check-interval", "1"),
    )

    def is_ready() -> bool:
        listing = fetch_json(f"{url}/workers")
        known = listing.get("workers", []) if isinstance(listing, dict) else []
        return answers(f"{url}/health") and len(known) == len(workers)

    with process:
        wait_ready([(process, is_ready)], timeout_s=_READY_S)
        yield process, url


def cpu_s(processes: list[ChildProcess]) -> float:
    """Processor seconds that these and their children used so far."""
    total = 0
    for pid in {pid for process in processes for pid in process.members()}:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def load(url: str, seconds: float, users: int, *more: str) -> dict[str, Any]:
    """One measurement with our generator."""
    command = [sys.executable, "-P", "-m", "hexgen_sglang.bench.front_load", "--url", url]
    command += ["--users", str(users), "--seconds", str(seconds), "--warm-up", "0.5", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def wrk(url: str, seconds: float, folder: Path) -> float | None:
    """Requests per second by wrk; None where it is not installed."""
    program = shutil.which("wrk")
    if program is None:
        return None
    script = folder / "post.lua"
    script.write_text(_WRK % completion_body().decode())
    command = [program, "-t1", "-c64", f"-d{max(1, round(seconds))}s", "-s", str(script)]
    done = subprocess.run(
        [*command, f"{url}/v1/completions"], capture_output=True, text=True, check=True
    )
    rows = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    if "Non-2xx or 3xx responses" in {name.strip() for name in rows}:
        raise SystemExit(f"wrk: {done.stdout}")
    return float(rows["Requests/sec"])


def median(rows: list[dict[str, Any]], name: str) -> float | None:
    """Of the values that there are."""
    values = [row[name] for row in rows if row[name] is not None]
    return statistics.median(values) if values else None


def measured(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every front in turn, `rounds` times: rows by front."""
    with ExitStack() as stack:
        ours, spec = stack.enter_context(coordinator(folder))
        workers = stack.enter_context(mock_workers(folder, arguments.workers, spec))
        fronts: dict[str, tuple[list[ChildProcess], str, list[str]]] = {
            "proxy": ([ours], spec.url, [])
        }
        for size in (1, 8):
            options = ["--placements", str(size), "--workers", *workers]
            fronts[f"direct_{size}"] = ([ours], spec.url, options)
        for policy in ("round_robin", "cache_aware"):
            process, url = stack.enter_context(router(folder, workers, policy))
            fronts[f"sglang_router_{policy}"] = ([process], url, [])
        fronts["no_front"] = ([], workers[0], [])
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in fronts}
        alone: dict[str, list[dict[str, Any]]] = {name: [] for name in fronts}
        by_wrk: dict[str, list[float]] = {}
        for _ in range(arguments.rounds):
            for name, (processes, url, options) in fronts.items():
                # As many requests at a time, however many go into one call.
                users = 64 // (int(options[1]) if options else 1)
                before = cpu_s(processes)
                row = load(url, arguments.seconds, users, *options)
                num_requests = row["requests"] * (arguments.seconds + 0.5) / arguments.seconds
                row["cpu_ms"] = 1e3 * (cpu_s(processes) - before) / max(1.0, num_requests)
                rows[name].append(row)
                alone[name].append(load(url, arguments.seconds / 2, 1, *options))
                if not options:
                    found = wrk(url, arguments.seconds, folder)
                    if found is not None:
                        by_wrk.setdefault(name, []).append(found)
        return {name: summary(name, rows, alone, by_wrk) for name in fronts}


def summary(
    name: str,
    rows: dict[str, list[dict[str, Any]]],
    alone: dict[str, list[dict[str, Any]]],
    by_wrk: dict[str, list[float]],
) -> dict[str, Any]:
    """Medians of one front; added latency: over no front at all, with one request at a time."""
    found: dict[str, Any] = {
        "rps": median(rows[name], "rps"),
        "errors": sum(row["errors"] for row in rows[name]),
        "p50_ms": median(rows[name], "p50_ms"),
        "p99_ms": median(rows[name], "p99_ms"),
        "front_cpu_ms_per_request": median(rows[name], "cpu_ms"),
        "wrk_rps": statistics.median(by_wrk[name]) if name in by_wrk else None,
    }
    for share in ("p50_ms", "p99_ms"):
        with_front, without = median(alone[name], share), median(alone["no_front"], share)
        if with_front is not None and without is not None:
            found[f"added_{share}"] = with_front - without
    return found


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--decisions", type=int, default=2_000, help="ended requests, each a pass")
    arguments = parser.parse_args()
    decisions = decision_time.measure(64, 10_000, arguments.decisions)
    busy_from = machine.cpu_ticks()
    with tempfile.TemporaryDirectory() as folder:
        fronts = measured(arguments, Path(folder))
    result = {
        "proxy_rps": fronts["proxy"]["rps"],
        "direct_rps": fronts["direct_8"]["rps"],
        "sglang_router_rps": fronts["sglang_router_round_robin"]["rps"],
        "decision_p50_us": decisions["decision_p50_us"],
        "decision_p99_us": decisions["decision_p99_us"],
        "fronts": fronts,
        "decisions": decisions,
        "settings": {
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
            "workers": arguments.workers,
            "requests_at_a_time": 64,
        },
        "machine": {
            **machine.machine(),
            "busy_frac": machine.busy_frac(busy_from, machine.cpu_ticks()),
            "load_1min": os.getloadavg()[0],
        },
        "versions": machine.versions(),
    }
    text = msgspec.json.format(msgspec.json.encode(result), indent=2).decode()
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
