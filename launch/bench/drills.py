"""Fault drills on real processes: what callers see when something breaks.

Two SGLang workers with an emulated accelerator and a coordinator, started once; then one drill
after the other (`hexgen_sglang.bench.drills.faults`). Status 1 when a request was lost, a token
came twice or never, a deadline moved, or a drill did not see what it expected:

    .venv/bin/python launch/bench/drills.py --json FILE [--only kill,hang]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hexgen_sglang.bench.drills.drill import DrillReport
from hexgen_sglang.bench.drills.faults import DRILLS
from hexgen_sglang.bench.drills.stage import Stage
from hexgen_sglang.bench.machine import machine, versions
from hexgen_sglang.core.errors import ConfigError, HexgenError


def main() -> int:
    """Run the drills, print the table, write the JSON file."""
    args = _arguments()
    reports = asyncio.run(run(_chosen(args.only), args))
    print(table(reports))
    return 0 if all(report.is_good for report in reports) else 1


async def run(names: list[str], args: argparse.Namespace) -> list[DrillReport]:
    """The reports of the named drills, on one stage; the JSON file grows with each."""
    reports: list[DrillReport] = []
    with tempfile.TemporaryDirectory(prefix="hexgen-drills-") as temporary:
        async with Stage((args.folder or Path(temporary)) / "stage") as stage:
            for name in names:
                began_s = time.monotonic()
                report = await _one(stage, name)
                report.facts["took_s"] = round(time.monotonic() - began_s, 1)
                reports.append(report)
                print(json.dumps(report.row()), flush=True)
                if args.json is not None:
                    args.json.write_text(_document(reports), encoding="utf-8")
    return reports


def _document(reports: list[DrillReport]) -> str:
    result = {
        "command": " ".join(["launch/bench/drills.py", *sys.argv[1:]]),
        "versions": versions(),
        "machine": machine(),
        "drills": [report.row() for report in reports],
    }
    return json.dumps(result, indent=2) + "\n"


async def _one(stage: Stage, name: str) -> DrillReport:
    """One drill; one that cannot go on is a broken drill, and the others follow."""
    try:
        return await DRILLS[name](stage)
    except HexgenError as error:
        return DrillReport(name, broken=[str(error)])


def table(reports: list[DrillReport]) -> str:
    """One row a drill, as Markdown."""
    lines = [
        "| drill | in flight | lost | duplicated tokens | errors | recovery s | good |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for row in reports:
        shown: list[Any] = [row.name, row.in_flight, row.lost, row.duplicated_tokens, row.errors]
        shown += [row.recovery_s, row.skipped or ("yes" if row.is_good else "no")]
        lines.append(f"| {' | '.join('-' if cell is None else str(cell) for cell in shown)} |")
    return "\n".join(lines)


def _chosen(only: str | None) -> list[str]:
    """The drills to run, in their order.

    Raises:
        ConfigError: there is no such drill.
    """
    wanted = list(DRILLS) if only is None else only.split(",")
    unknown = sorted(set(wanted) - set(DRILLS))
    if unknown:
        raise ConfigError(f"--only={only}: {unknown[0]!r} is none of {', '.join(DRILLS)}")
    return [name for name in DRILLS if name in wanted]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", help=f"comma-separated, of {', '.join(DRILLS)}")
    parser.add_argument("--folder", type=Path, help="keep the logs there")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
