"""One late workflow of an emulated run, explained by the coordinator that served it.

    .venv/bin/python launch/bench/explain_late.py --trace ../shared/traces/trace1.json \
      --load 110% --json FILE.json

Runs `hexgen` once on emulated workers and asks the coordinator for the story of the workflow that
came out worst against its deadline: as JSON, and as `hexgen-sglang explain` prints it, in
FILE.txt. Its seconds are real ones, emulated seconds divided by the time scale.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hexgen_sglang.bench import machine
from hexgen_sglang.bench.engines import Engines
from hexgen_sglang.bench.loads import parse_loads
from hexgen_sglang.bench.plan import cluster_profiles
from hexgen_sglang.bench.run import run_one
from hexgen_sglang.bench.systems import parse_system
from hexgen_sglang.cluster.config import load_cluster
from hexgen_sglang.cluster.ports import fetch_json
from hexgen_sglang.core.errors import HexgenError
from hexgen_sglang.workload.capacity import capacity_per_s
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import Workload, WorkloadSettings, build_workload


def worst(url: str, workload: Workload) -> tuple[dict[str, Any], str]:
    """The explanation of the workflow that took most of its budget, as data and as text."""
    told = [fetch_json(f"{url}/workflows/{one.workflow_id}/explain") for one in workload.workflows]
    known = [row for row in told if row and row["budget_s"]]
    found = max(known, key=lambda row: float(row["elapsed_s"] / row["budget_s"]))
    command = [sys.executable, "-m", "hexgen_sglang", "explain", found["workflow_id"]]
    done = subprocess.run([*command, "--url", url], capture_output=True, text=True, check=True)
    return found, done.stdout


def explained(args: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], str]:
    """One run, and the story of its worst workflow."""
    cluster, trace = load_cluster(args.cluster), load_trace(args.trace)
    system = parse_system("hexgen")
    profiles = cluster_profiles(cluster, None)
    load = parse_loads(args.load, capacity_per_s(trace, list(profiles)))[0]
    settings = WorkloadSettings(load.rate_per_s, args.workflows, args.seed)
    workload = build_workload(trace, settings, profiles)
    stories: list[tuple[dict[str, Any], str]] = []
    with Engines(cluster, system.engine, args.time_scale, True, folder) as engines:
        engines.start()
        facts = run_one(
            engines,
            system,
            workload,
            cluster.coordinator,
            lambda url: stories.append(worst(url, workload)),
        )
    story, text = stories[0]
    measured = facts.run.measured()
    late = [row for row in measured if row.budget_s is not None and row.e2e_s > row.budget_s]
    return {
        "load": load.label,
        "rate_per_s": load.rate_per_s,
        "workflows": len(workload.workflows),
        "num_measured": len(measured),
        "num_late": len(late),
        "time_scale": args.time_scale,
        "valid": not facts.broken,
        "broken": facts.broken,
        "story": story,
    }, text


def main() -> int:
    """Run and write both files; 2 when an argument is wrong, 1 when the run broke a law."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--cluster", type=Path, default=Path("launch/configs/clusters/hetero-1.toml")
    )
    parser.add_argument("--trace", required=True, help="as for `hexgen-sglang bench`")
    parser.add_argument("--load", default="110%", help="as one of its --rate")
    parser.add_argument("--workflows", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time-scale", type=float, default=5.0)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="hexgen-explain-") as folder:
            found, text = explained(args, Path(folder))
    except HexgenError as error:
        print(f"explain_late: {error}", file=sys.stderr)
        return 2
    found |= {
        "command": " ".join(["launch/bench/explain_late.py", *sys.argv[1:]]),
        "versions": machine.versions(),
        "machine": machine.machine(),
    }
    args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    args.json.with_suffix(".txt").write_text(text, "utf-8")
    print(text)
    return 0 if found["valid"] else 1


if __name__ == "__main__":
    sys.exit(main())
