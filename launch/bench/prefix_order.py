"""What the order of a prompt's parts is worth: the share of prompt tokens found in a prefix cache.

Starts a coordinator and real SGLang workers on the CPU, and asks the agent the sample database's
questions, all at once and without deadlines: with our order (static part, schema, question, the
stage's tail) and with the question first, as prompts are written where nobody thinks of caches.
The workers' caches are emptied in between. Both orders hold the same text, up to the tail; what
the model makes of it differs, and so does how often the agent has to correct. A naive order still
shares a prefix among the stages of one workflow, and none between workflows.

    .venv/bin/python launch/bench/prefix_order.py --json FILE

The file also says how the questions ended, so that `--orders static_first --questions 24` is the
agent's run over all of them: `num_errors` counts exceptions and failed requests, `valid_sql_frac`
the answers whose SQL ran.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from hexgen_sglang.bench import machine
from hexgen_sglang.cluster.config import resolve_model
from hexgen_sglang.cluster.running import Cluster
from hexgen_sglang.cluster.signals import termination_raises
from hexgen_sglang.cluster.worker import WorkerSpec
from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.core.errors import HexgenError
from hexgen_sglang.text2sql import Agent, Answer, AnswerOutcome, Database, Question, prompts
from hexgen_sglang.text2sql.examples import Example
from hexgen_sglang.text2sql.sample import ensure_sample_database, sample_questions
from hexgen_sglang.text2sql.schema import Schema

ORDERS = ("static_first", "question_first")
MAX_RUNNING_REQUESTS = 8
FLUSH_S, FLUSH_TRIES = 1.0, 30
RAN = (AnswerOutcome.ROWS, AnswerOutcome.EMPTY)


def question_first(
    schema: Schema, examples: Sequence[Example], question: str, values: Sequence[str] = ()
) -> str:
    """The parts of `prompts.prefix` in the naive order."""
    shared = prompts.static_part(schema.dialect) + prompts.database_part(schema, examples)
    return prompts.question_part(question, values) + shared


@contextlib.contextmanager
def prompts_in(order: str) -> Iterator[None]:
    """Prompts are put together in that order meanwhile."""
    if order == "static_first":
        yield
        return
    with mock.patch.object(prompts, "prefix", question_first):
        yield


async def ask_all(url: str, database: Database, questions: list[Question]) -> dict[str, Any]:
    """All questions at once; what they cost and how they ended."""
    began_s = time.monotonic()
    async with Agent(url, database) as agent:
        ended = await asyncio.gather(*map(agent.ask, questions), return_exceptions=True)
    answers = [one for one in ended if isinstance(one, Answer)]
    costs = [cost for answer in answers for cost in answer.stages]
    prompt_tokens = sum(cost.prompt_tokens for cost in costs)
    cached_tokens = sum(cost.cached_tokens for cost in costs)
    failed = [one for one in ended if not isinstance(one, Answer)]
    return {
        "num_questions": len(questions),
        "num_errors": len(failed) + sum(cost.num_failed for cost in costs),
        "errors": [repr(one) for one in failed],
        "outcomes": dict(Counter(answer.outcome.value for answer in answers)),
        "valid_sql_frac": sum(one.outcome in RAN for one in answers) / len(questions),
        "num_requests": sum(cost.num_requests for cost in costs),
        "num_late": sum(cost.num_late for cost in costs),
        "prompt_tokens": prompt_tokens,
        "cached_tokens": cached_tokens,
        "cached_frac": cached_tokens / prompt_tokens if prompt_tokens else None,
        "output_tokens": sum(cost.output_tokens for cost in costs),
        "duration_s": time.monotonic() - began_s,
        "stages": by_stage(answers),
    }


def by_stage(answers: Sequence[Answer]) -> dict[str, dict[str, int]]:
    """Requests and tokens of each stage."""
    rows: dict[str, Counter[str]] = {}
    for cost in (cost for answer in answers for cost in answer.stages):
        row = rows.setdefault(cost.stage, Counter())
        for name in ("num_requests", "prompt_tokens", "cached_tokens", "output_tokens"):
            row[name] += getattr(cost, name)
    return {stage: dict(row) for stage, row in rows.items()}


def empty_caches(cluster: Cluster) -> None:
    """Empty every worker's prefix cache, once what was aborted has left it.

    Raises:
        OSError: a worker refuses for `FLUSH_TRIES` seconds.
    """
    for spec in cluster.workers.values():
        for left in reversed(range(FLUSH_TRIES)):
            request = urllib.request.Request(f"{spec.url}/flush_cache", method="POST")
            try:
                with urllib.request.urlopen(request, timeout=30):
                    break
            except OSError:
                if left == 0:
                    raise
                time.sleep(FLUSH_S)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The run of each order, on one cluster.

    Raises:
        HexgenError: the model cannot be had, or a process died.
    """
    model = resolve_model(args.model_path)
    workers = [
        WorkerSpec(
            name=f"worker-{number}",
            model_path=model,
            schedule_policy="hexgen",
            hardware="cpu",
            core=number,
            flags=("--max-running-requests", str(MAX_RUNNING_REQUESTS)),
        )
        for number in range(args.workers)
    ]
    samples = sample_questions()[: args.questions]
    questions = [Question(one.question, one.question_id) for one in samples]
    rows: dict[str, Any] = {}
    cluster = Cluster(CoordinatorConfig(port=0), workers, folder)
    with termination_raises(), Database(ensure_sample_database()) as database:
        try:
            cluster.start()
            for order in args.orders.split(","):
                with prompts_in(order):
                    rows[order] = asyncio.run(ask_all(cluster.url, database, questions))
                cluster.check()
                row = {**rows[order], "stages": "..."}
                print(f"{order}: {json.dumps(row)}", flush=True)
                empty_caches(cluster)
        finally:
            cluster.stop(5.0)
    return rows


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Cached share of prompts, by their order.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--questions", type=int, default=12, choices=range(1, 25), metavar="1-24")
    parser.add_argument("--workers", type=int, default=2, choices=range(1, 9), metavar="1-8")
    parser.add_argument("--model-path", default="default", help='"default", "tiny", or a folder')
    parser.add_argument("--orders", default=",".join(ORDERS), help="comma-separated")
    args = parser.parse_args()
    if not set(args.orders.split(",")) <= set(ORDERS):
        parser.error(f"--orders {args.orders}: must be of {', '.join(ORDERS)}")
    return args


def main() -> int:
    """Run, print, write; 1 when a request failed, 2 when the cluster did."""
    args = _arguments()
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(args, Path(folder))
    except HexgenError as error:
        print(f"prefix_order: {error}", file=sys.stderr)
        return 2
    result = {
        "orders": rows,
        "model": args.model_path,
        "versions": machine.versions(),
        "machine": machine.machine(),
    }
    for order, row in rows.items():
        print(f"{order:<15} {row['cached_tokens']:>8,} of {row['prompt_tokens']:>8,} prompt tokens")
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if any(row["num_errors"] for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
