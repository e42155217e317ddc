"""How long the group finder takes for each decode step, on the CPU.

    python kernels/bench/group_finder.py --requests 256 --json FILE

The batch is a Text-to-SQL one with three levels: a few templates, under each some schemas, under
each the candidates of some questions. Timed are a step in which nothing changed, a step in which
some requests ended and as many came, with and without the plan for the kernels, and the first
step of a full batch.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hexgen_kernels.shared_prefix_decode.groups import CostRule, GroupFinder
from hexgen_kernels.shared_prefix_decode.plan import WorkLimits, cut

TEMPLATES, SCHEMAS, QUESTIONS = 3, 8, 24
TEMPLATE_TOKENS, SCHEMA_TOKENS, QUESTION_TOKENS, OWN_TOKENS = 3000, 5000, 800, 200
SEED = 7


class Requests:
    """Makes requests: names, and rows of KV slots that share what their prompts share."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.num_slots = 0
        self.templates = [self.slots(TEMPLATE_TOKENS) for _ in range(TEMPLATES)]
        self.schemas = [self.slots(SCHEMA_TOKENS) for _ in range(SCHEMAS)]
        self.questions = [self.slots(QUESTION_TOKENS) for _ in range(QUESTIONS)]
        self.rows: dict[int, np.ndarray] = {}

    def slots(self, count: int) -> np.ndarray:
        """That many slots that nobody else has."""
        self.num_slots += count
        return np.arange(self.num_slots - count, self.num_slots, dtype=np.int32)

    def new(self) -> int:
        """A request of a random question; a question has one schema, a schema one template."""
        question = self.chance.randrange(QUESTIONS)
        schema = question % SCHEMAS
        parts = (
            self.templates[schema % TEMPLATES],
            self.schemas[schema],
            self.questions[question],
            self.slots(OWN_TOKENS),
        )
        self.rows[len(self.rows)] = np.concatenate(parts)
        return len(self.rows) - 1


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=256, help="requests in the batch")
    parser.add_argument("--steps", type=int, default=300, help="timed steps of each kind")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    report = measure(args.requests, args.steps) | {
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "machine": platform.machine(),
        "command": " ".join(["python", *sys.argv]),
    }
    print(json.dumps(report, indent=2))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(num_requests: int, steps: int) -> dict[str, Any]:
    """Microseconds of each kind of step: least, median and 99th percentile.

    CPU time of the thread: programs beside it count only by the caches they take.
    """
    made = Requests(random.Random(SEED))
    rule = CostRule.of_model(num_q_heads=64, num_kv_heads=8, head_size=128, itemsize=2)
    limits = WorkLimits(
        max_batch=num_requests, max_levels=6, num_kv_heads=8, rows_per_item=16,
        target_programs=264, min_chunk=128, num_entries=10 * num_requests,
    )  # fmt: skip
    batch = [made.new() for _ in range(num_requests)]
    finder = GroupFinder(rule)
    forest = finder.step(batch, made.rows.get)
    facts = {
        "requests": num_requests,
        "levels": forest.num_levels,
        "prefixes": finder.num_groups,
        "segments": len(forest.segments),
        "prompt_tokens_a_request": len(made.rows[0]),
        "share_of_reads_saved": forest.tokens_saved / sum(len(made.rows[r]) for r in batch),
    }
    timings: dict[str, list[float]] = {}

    def timed(kind: str, call: Callable[[], Any]) -> Any:
        began_ns = time.thread_time_ns()
        answer = call()
        timings.setdefault(kind, []).append((time.thread_time_ns() - began_ns) / 1e3)
        return answer

    def step() -> Any:
        return finder.step(batch, made.rows.get)

    for _ in range(max(3, steps // 30)):
        timed("first_step_us", lambda: GroupFinder(rule).step(batch, made.rows.get))
    for _ in range(steps):
        timed("unchanged_step_us", step)
    for num_changed in (1, 8):
        for _ in range(steps):
            for _ in range(num_changed):
                batch.pop(made.chance.randrange(len(batch)))
            batch += [made.new() for _ in range(num_changed)]
            forest = timed(f"{num_changed}_changed_us", step)
            timed("plan_us", functools.partial(cut, forest, limits, num_requests))
    return facts | {
        kind: {
            "least": round(min(values), 1),
            "median": round(statistics.median(values), 1),
            "p99": round(float(np.quantile(values, 0.99)), 1),
            "steps": len(values),
        }
        for kind, values in timings.items()
    }


if __name__ == "__main__":
    main()
