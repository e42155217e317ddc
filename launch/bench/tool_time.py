"""Give the workflows of a trace time for their tools, which the public traces leave out.

    .venv/bin/python launch/bench/tool_time.py --trace TRACE.json --seconds 2 --out TRACE.jsonl

A stage that needs what a database has answered (a repair, an evaluation, a unit test) starts so
many seconds after the stage before it on average, exponentially distributed, by a fixed seed.
Everything else stays as it is. The output is a trace in our own format, for bench and simulator.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from hexgen_sglang.core.errors import HexgenError
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.formats.jsonl import write
from hexgen_sglang.workload.trace import Trace

BEHIND_A_DATABASE = frozenset({"revise", "evaluate", "unit_tester", "generate_unit_test"})
SEED = 7


def with_tool_time(trace: Trace, seconds: float) -> Trace:
    """The trace with a mean of `seconds` (at least 0) before each stage that needs an answer."""
    chance = np.random.default_rng(SEED)
    workflows = tuple(
        dataclasses.replace(
            workflow,
            stages=tuple(
                dataclasses.replace(stage, tool_s=round(float(chance.exponential(seconds)), 3))
                if stage.name in BEHIND_A_DATABASE
                else stage
                for stage in workflow.stages
            ),
        )
        for workflow in trace.workflows
    )
    return dataclasses.replace(trace, workflows=workflows)


def main() -> None:
    """Read, change and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", required=True, help="as for the bench")
    parser.add_argument("--seconds", type=float, default=2.0, help="mean (default 2)")
    parser.add_argument("--out", type=Path, required=True, help="where to write")
    args = parser.parse_args()
    if not 0 <= args.seconds <= 3_600:
        parser.error(f"--seconds={args.seconds}: must be 0 to 3600")
    write(with_tool_time(load_trace(args.trace), args.seconds), args.out)


if __name__ == "__main__":
    try:
        main()
    except HexgenError as error:
        raise SystemExit(f"tool_time: {error}") from error
