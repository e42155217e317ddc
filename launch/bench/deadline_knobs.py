"""What the agent's deadline knobs are worth on an overloaded cluster: questions answered in time.

    .venv/bin/python launch/bench/deadline_knobs.py --json FILE     (8 minutes on two cores)

What is real: the agent (`text2sql.Agent`, with its aborts), the coordinator, and SGLang's
schedulers. Emulated: the accelerators' forward passes. What is made up: the model's text, since
an emulated accelerator writes none. Candidates are drawn as right, wrong or not runnable with
stated chances, revisions mend half of what does not run, verdicts of unit tests are right four
times in five; a request's output is as long as that text. Instead of running SQL, its drawn
result is looked up.

Both arms get the same arrivals, deadlines and draws, and the coordinator knows the deadlines in
both. `off`: the agent is told of no deadline, so that it always does everything. `on`: it plans by
its rule. Siblings that come late after an agreement are aborted in both.

Capacity is measured: questions a second when all come at once and all is done. The deadline is a
multiple of the median latency of questions that are asked one after the other. All times are
emulated seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hexgen_sglang.bench import machine
from hexgen_sglang.bench.dispatchers import dispatching
from hexgen_sglang.bench.engines import Engines, emulation_between
from hexgen_sglang.bench.systems import Place, parse_system
from hexgen_sglang.client.completions import Completion, CompletionsClient, HeaderMaker, Remaining
from hexgen_sglang.cluster.config import load_cluster
from hexgen_sglang.cluster.signals import termination_raises
from hexgen_sglang.core.errors import ConfigError, HexgenError
from hexgen_sglang.protocol.tag import HEADER_PREFIX
from hexgen_sglang.results import laws
from hexgen_sglang.text2sql import Agent, AgentSettings, Answer, Database, Question
from hexgen_sglang.text2sql.budget import EVALUATE, GENERATE_CANDIDATE, REVISE, StageTimes
from hexgen_sglang.text2sql.execution import Execution, SqlOutcome
from hexgen_sglang.text2sql.sample import SampleQuestion, ensure_sample_database, sample_questions

CLUSTER = Path(__file__).parents[1] / "configs" / "clusters" / "hetero-1.toml"
CHARS_PER_TOKEN = 2.3  # of the agent's prompts, in the tiny model's tokens, which engines count
RIGHT, WRONG = 0.5, 0.25  # chances of a candidate; the rest does not run
MENDED, JUDGED = 0.5, 0.8
NUM_WRONG = 4  # different wrong results
LEAD_S, TIMEOUT_S = 0.5, 3_600.0
DRAWS = 10_000


@dataclass(frozen=True)
class Planned:
    """One question of a run: when it comes and what it may take, in emulated seconds."""

    index: int
    sample: SampleQuestion
    arrival_s: float
    deadline_s: float | None = None


@dataclass(frozen=True)
class Ended:
    """How one question ended."""

    answer: Answer
    elapsed_s: float
    is_right: bool


class CannedModel:
    """Text for every request, drawn from (seed, question, stage, how often, sibling)."""

    def __init__(self, seed: int, planned: Planned) -> None:
        self._name = f"{seed}/{planned.index}"
        self.gold = planned.sample.gold_sql.rstrip("; ")
        self._asked: Counter[tuple[str, int]] = Counter()

    def text(self, stage: str, sibling: int, prompt: str) -> str:
        """The text for one request of a stage."""
        self._asked[stage, sibling] += 1
        drawn = random.Random(f"{self._name}/{stage}/{self._asked[stage, sibling]}/{sibling}")
        chance = drawn.random()
        if stage == GENERATE_CANDIDATE:
            if chance < RIGHT:
                return self.gold
            return self._other("wrong" if chance < RIGHT + WRONG else "broken", drawn)
        if stage == REVISE:
            return self.gold if chance < MENDED else self._other("broken", drawn)
        if stage == EVALUATE:
            is_right = f"SQL: {self.gold};" in prompt.rpartition("\nQ: ")[2]
            return "yes" if is_right == (chance < JUDGED) else "no"
        return {
            "link_schema": "trip, station, district",
            "extract_keywords": "trips, longest, district",
        }.get(stage, f"There is one row for each station, test {sibling}.")

    def _other(self, word: str, drawn: random.Random) -> str:
        return self.gold.replace("SELECT ", f"SELECT {word}{drawn.randrange(NUM_WRONG)}, ", 1)


class CannedClient(CompletionsClient):
    """Asks the cluster for as many tokens as the canned text has, and gives that text.

    The coordinator is told the deadline also where the agent knows none.
    """

    def __init__(self, url: str, model: CannedModel, due_s: float | None) -> None:
        super().__init__(url, None, TIMEOUT_S)
        self._model = model
        self._due_s = due_s

    async def complete(
        self, body: dict[str, Any], make_headers: HeaderMaker, remaining_s: Remaining
    ) -> Completion:
        headers = make_headers()
        sibling = int(headers.get(f"{HEADER_PREFIX}sibling-index", 0))
        text = self._model.text(headers[f"{HEADER_PREFIX}stage"], sibling, body["prompt"])
        num_tokens = min(body["max_tokens"], max(1, round(len(text) / CHARS_PER_TOKEN)))
        body = {key: value for key, value in body.items() if key != "stop"}
        body |= {"max_tokens": num_tokens, "ignore_eos": True}
        if self._due_s is not None:
            budget_ms = max(1, round(1_000 * (self._due_s - time.monotonic())))
            headers |= {f"{HEADER_PREFIX}budget-ms": str(budget_ms)}
        completion = await super().complete(body, lambda: headers, remaining_s)
        if completion.output_tokens != num_tokens:
            raise ConfigError(f"output tokens {completion.output_tokens}: must be {num_tokens}")
        return replace(completion, text=text)


class CannedDatabase(Database):
    """The sample database, whose sandbox looks results up."""

    def __init__(self) -> None:
        super().__init__(ensure_sample_database())
        self._golds = {one.gold_sql.rstrip("; ") for one in sample_questions()}
        self.sandbox.run = self._run  # type: ignore[method-assign]

    def _run(self, sql: str) -> Execution:
        if "broken" in sql:
            return Execution(sql, SqlOutcome.ERROR, message="no such column: broken")
        rows = (("right",),) if sql in self._golds else ((sql[:16],),)
        return Execution(sql, SqlOutcome.ROWS, ("result",), rows)


class Bench:
    """Runs questions on one running cluster, each run behind a coordinator of its own."""

    def __init__(self, args: argparse.Namespace, engines: Engines, database: Database) -> None:
        self._args = args
        self._engines = engines
        self._database = database
        self._base = load_cluster(args.cluster).coordinator
        self._system = parse_system(args.system)
        self.runs: dict[str, Any] = {}
        self.broken: list[str] = []

    def run(
        self, name: str, planned: Sequence[Planned], *, knobs: bool, in_turn: bool = False
    ) -> list[Ended]:
        """All of them from empty caches, in the order of `planned`; what broke is in `broken`.

        Args:
            name: of the run.
            planned: the questions.
            knobs: whether the agent knows the deadline.
            in_turn: each when the one before has ended, whatever its arrival.

        Raises:
            ProcessError: a worker or the coordinator died.
        """
        engines, scale = self._engines, self._args.time_scale
        engines.check()
        engines.flush()
        before, ticks = engines.read(), machine.cpu_ticks()
        folder = engines.folder / name
        with dispatching(self._system, engines, self._base, scale, folder) as (_, url):
            ended = asyncio.run(self._ask_all(f"{url}/v1", planned, knobs, in_turn))
        busy_frac = machine.busy_frac(ticks, machine.cpu_ticks())
        emulation = emulation_between(before, engines.read())
        num_failed = sum(cost.num_failed for one in ended for cost in one.answer.stages)
        failed = [f"{num_failed} requests failed"] if num_failed else []
        self.broken += [f"{name}: {one}" for one in [*laws.broken_emulation(emulation), *failed]]
        self.runs[name] = {"machine_busy_frac": busy_frac, "workers": emulation}
        latency_s = statistics.median(one.elapsed_s for one in ended)
        print(f"{name}: {len(ended)} questions, median {latency_s:.2f} s", flush=True)
        return ended

    async def _ask_all(
        self, url: str, planned: Sequence[Planned], knobs: bool, in_turn: bool
    ) -> list[Ended]:
        times, start_s = StageTimes(), time.monotonic() + LEAD_S
        if in_turn:
            return [await self._ask(url, one, time.monotonic(), times, knobs) for one in planned]
        asked = (self._ask(url, one, start_s, times, knobs) for one in planned)
        return list(await asyncio.gather(*asked))

    async def _ask(
        self, url: str, planned: Planned, start_s: float, times: StageTimes, knobs: bool
    ) -> Ended:
        scale, wanted_s = self._args.time_scale, planned.deadline_s
        arrival_s = start_s + planned.arrival_s / scale
        await asyncio.sleep(max(0.0, arrival_s - time.monotonic()))
        due_s = None if wanted_s is None else arrival_s + wanted_s / scale
        model = CannedModel(self._args.seed, planned)
        settings = AgentSettings(num_candidates=self._args.candidates)
        async with Agent(
            CannedClient(url, model, due_s), self._database, model="default", settings=settings,
            times=times,
        ) as agent:  # fmt: skip
            left_s = max(0.001, due_s - time.monotonic()) if knobs and due_s is not None else None
            answer = await agent.ask(Question(planned.sample.question, deadline_s=left_s))
            elapsed_s = (time.monotonic() - arrival_s) * scale
        return Ended(answer, elapsed_s, answer.sql == model.gold)


def arms(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Unloaded latency, capacity, and both arms at the wanted load."""
    samples = list(itertools.islice(itertools.cycle(sample_questions()), args.questions))
    alone = [Planned(index, one, 0.0) for index, one in enumerate(samples[: args.alone])]
    unloaded_s = statistics.median(
        one.elapsed_s for one in bench.run("alone", alone, knobs=False, in_turn=True)
    )
    at_once = [Planned(index, one, 0.0) for index, one in enumerate(samples)]
    whole_s = max(one.elapsed_s for one in bench.run("capacity", at_once, knobs=False))
    capacity_per_s = len(samples) / whole_s

    drawn = random.Random(f"{args.seed}/arrivals")
    rate_per_s, now_s = args.load * capacity_per_s, 0.0
    planned = []
    for index, sample in enumerate(samples):
        now_s += drawn.expovariate(rate_per_s)
        planned.append(Planned(index, sample, now_s, args.deadline_scale * unloaded_s))
    off = bench.run("off", planned, knobs=False)
    on = bench.run("on", planned, knobs=True)
    return {
        "capacity_per_s": capacity_per_s,
        "rate_per_s": rate_per_s,
        "unloaded_s": unloaded_s,
        "deadline_s": args.deadline_scale * unloaded_s,
        "off": figures(planned, off),
        "on": figures(planned, on),
        "gain": {
            "in_time_frac": gain(planned, off, on, lambda one: True),
            "right_in_time_frac": gain(planned, off, on, lambda one: one.is_right),
        },
    }


def is_in_time(planned: Planned, ended: Ended) -> bool:
    """Whether the answer came before the deadline."""
    return planned.deadline_s is not None and ended.elapsed_s <= planned.deadline_s


def figures(planned: Sequence[Planned], ended: Sequence[Ended]) -> dict[str, Any]:
    """What became of an arm's questions."""
    in_time = [is_in_time(*pair) for pair in zip(planned, ended, strict=True)]
    latencies = [one.elapsed_s for one in ended]
    costs = [cost for one in ended for cost in one.answer.stages]
    return {
        "in_time_frac": statistics.mean(in_time),
        "right_frac": statistics.mean(one.is_right for one in ended),
        "right_in_time_frac": statistics.mean(
            was and one.is_right for was, one in zip(in_time, ended, strict=True)
        ),
        "requests_per_question": sum(cost.num_requests for cost in costs) / len(ended),
        "aborted_per_question": sum(cost.num_late for cost in costs) / len(ended),
        "latency_s_p50": statistics.median(latencies),
        "latency_s_max": max(latencies),
        "dropped": dict(Counter(drop.knob.value for one in ended for drop in one.answer.dropped)),
    }


def gain(
    planned: Sequence[Planned],
    off: Sequence[Ended],
    on: Sequence[Ended],
    counts: Callable[[Ended], bool],
) -> list[float]:
    """The share that `on` has more, with the 95 % interval of a bootstrap over questions."""
    differences = np.array(
        [
            float(is_in_time(one, with_knobs) and counts(with_knobs))
            - float(is_in_time(one, without) and counts(without))
            for one, without, with_knobs in zip(planned, off, on, strict=True)
        ]
    )
    drawn = np.random.default_rng(0).integers(len(differences), size=(DRAWS, len(differences)))
    low, high = np.quantile(differences[drawn].mean(axis=1), [0.025, 0.975])
    return [float(differences.mean()), float(low), float(high)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Deadline knobs on an overloaded cluster.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cluster", type=Path, default=CLUSTER, help="of emulated accelerators")
    parser.add_argument("--system", default="hexgen", help="with a coordinator; as in the bench")
    parser.add_argument("--time-scale", type=float, default=0.4, help="emulated s in a real one")
    parser.add_argument("--load", type=float, default=1.2, help="share of the capacity")
    parser.add_argument("--questions", type=int, default=280)
    parser.add_argument("--alone", type=int, default=12, help="questions asked in turn")
    parser.add_argument("--deadline-scale", type=float, default=4.0)
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start the cluster and run everything.

    Raises:
        HexgenError: an argument is wrong, or a process died.
    """
    system = parse_system(args.system)
    if system.place is not Place.COORDINATOR:
        raise ConfigError(f"--system {args.system}: must have a coordinator")
    cluster = load_cluster(args.cluster)
    with (
        termination_raises(),
        Engines(cluster, system.engine, args.time_scale, system.linked, folder) as engines,
        CannedDatabase() as database,
    ):
        engines.start()
        bench = Bench(args, engines, database)
        return arms(bench, args) | {
            "valid": not bench.broken,
            "broken": bench.broken,
            "runs": bench.runs,
        }


def main() -> int:
    """Run both arms, print, write; 1 when a law broke, 2 when it cannot be done."""
    args, began_s = _arguments(), time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(args, Path(folder))
    except HexgenError as error:
        print(f"deadline_knobs: {error}", file=sys.stderr)
        return 2
    print(
        f"capacity {result['capacity_per_s']:.2f} questions/s, asked {result['rate_per_s']:.2f}/s; "
        f"unloaded {result['unloaded_s']:.1f} s, deadline {result['deadline_s']:.1f} s"
    )
    for arm in ("off", "on"):
        row = result[arm]
        print(
            f"knobs {arm:<3}: {100 * row['in_time_frac']:.1f} % in time, "
            f"{100 * row['right_in_time_frac']:.1f} % right and in time, "
            f"{row['requests_per_question']:.1f} requests a question, {row['dropped']}"
        )
    settings = {key: v.name if isinstance(v, Path) else v for key, v in vars(args).items()}
    result |= {
        "settings": settings | {"agent": asdict(AgentSettings(num_candidates=args.candidates))},
        "chances": {"right": RIGHT, "wrong": WRONG, "mended": MENDED, "judged": JUDGED},
        "wall_s": time.monotonic() - began_s,
        "versions": machine.versions(),
        "machine": machine.machine(),
    }
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    for line in result["broken"]:
        print(f"void: {line}", file=sys.stderr)
    return 1 if result["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
