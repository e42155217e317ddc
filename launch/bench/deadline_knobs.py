"""What the agent's deadline knobs are worth on an overloaded cluster: questions answered in time.

    .venv/bin/python launch/bench/deadline_knobs.py --json FILE

What is real: the agent's stages, prompts, agreement and budget rule (`text2sql/stages.py`), and
the coordinator's queue, estimators and dispatch. What is simulated: the engines, by the simulator
of SGLang's scheduler on accelerator profiles (`launch/bench/fidelity.py` says how far it is from
real schedulers on emulated accelerators), on a virtual clock. What is made up: the model's text.
Candidates are drawn as right, wrong or not runnable with stated chances, revisions mend half of
what does not run, verdicts of unit tests are right four times in five; a request's output is as
long as that text. SQL is not executed, and takes no time.

Both arms get the same arrivals, deadlines and draws, and the coordinator knows the deadlines in
both. `off`: the agent is told of no deadline, so that it always does everything. `on`: it plans by
its rule. The simulated engines cannot abort, so that late siblings run to their end in both arms.

Capacity is measured: questions a second when all arrive at once and all is done. A deadline is a
multiple of what the question takes on an idle cluster.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hexgen_sglang.bench import machine
from hexgen_sglang.bench.dispatchers import coordinator_config
from hexgen_sglang.bench.plan import cluster_profiles
from hexgen_sglang.bench.systems import System, parse_system
from hexgen_sglang.cluster.config import ClusterConfig, load_cluster
from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.errors import ConfigError, HexgenError
from hexgen_sglang.policies.ordering import ORDERING
from hexgen_sglang.sim.clock import ARRIVAL, MESSAGE, EventQueue
from hexgen_sglang.sim.coordinator_front import CoordinatorFront, Delays
from hexgen_sglang.sim.engine import Engine
from hexgen_sglang.sim.engine_request import EngineRequest
from hexgen_sglang.sim.fronts import Asked
from hexgen_sglang.sim.queue_order import queue_order
from hexgen_sglang.sim.run import worker_names
from hexgen_sglang.text2sql import prompts
from hexgen_sglang.text2sql.answer import Answer, Question
from hexgen_sglang.text2sql.budget import EVALUATE, GENERATE_CANDIDATE, REVISE, StageTimes
from hexgen_sglang.text2sql.examples import derive_examples
from hexgen_sglang.text2sql.execution import Execution, SqlOutcome
from hexgen_sglang.text2sql.introspection import read_schema
from hexgen_sglang.text2sql.sample import SampleQuestion, ensure_sample_database, sample_questions
from hexgen_sglang.text2sql.settings import AgentSettings
from hexgen_sglang.text2sql.stages import WORKFLOW_TYPE, QuestionStages
from hexgen_sglang.text2sql.steps import Ask, AskTogether, Execute, Extend, Reply, Retrieve, Step

CLUSTER = Path(__file__).parents[1] / "configs" / "clusters" / "hetero-1.toml"
# Of the sample database's prompts, in the default model's tokens.
CHARS_PER_TOKEN = 3.3
RIGHT, WRONG = 0.5, 0.25  # chances of a candidate; the rest does not run
MENDED, JUDGED = 0.5, 0.8
NUM_WRONG = 4  # different wrong results
IDLE_GAP_S = 10_000.0
LATE = Reply(None, is_late=True)


@dataclass(frozen=True)
class Planned:
    """One question of a run: when it comes and what it may take."""

    index: int
    sample: SampleQuestion
    arrival_s: float
    deadline_s: float | None = None


@dataclass
class Ended:
    """How one question ended."""

    answer: Answer
    elapsed_s: float
    num_requests: int


class CannedModel:
    """Text for every request, drawn from (seed, question, stage, how often, sibling)."""

    def __init__(self, seed: int, planned: Planned) -> None:
        self._name = f"{seed}/{planned.index}"
        self._gold = planned.sample.gold_sql.rstrip("; ")
        self._asked: Counter[str] = Counter()

    def texts(self, ask: Ask) -> list[str]:
        """A text for each request of a stage."""
        self._asked[ask.stage] += 1
        return [
            self._text(ask, sibling, self._drawn(ask.stage, sibling))
            for sibling in range(len(ask.tails))
        ]

    def execution(self, sql: str) -> Execution:
        """What running a text's SQL would give."""
        if "broken" in sql:
            return Execution(sql, SqlOutcome.ERROR, message="no such column: broken")
        rows = (("right",),) if sql == self._gold else ((sql[:16],),)
        return Execution(sql, SqlOutcome.ROWS, ("result",), rows)

    def is_right(self, answer: Answer) -> bool:
        """Whether the gold SQL was answered."""
        return answer.sql == self._gold

    def _drawn(self, stage: str, sibling: int) -> random.Random:
        return random.Random(f"{self._name}/{stage}/{self._asked[stage]}/{sibling}")

    def _text(self, ask: Ask, sibling: int, drawn: random.Random) -> str:
        chance = drawn.random()
        if ask.stage == GENERATE_CANDIDATE:
            if chance < RIGHT:
                return self._gold
            return self._other("wrong" if chance < RIGHT + WRONG else "broken", drawn)
        if ask.stage == REVISE:
            return self._gold if chance < MENDED else self._other("broken", drawn)
        if ask.stage == EVALUATE:
            is_right = f"SQL: {self._gold};" in ask.tails[sibling]
            return "yes" if is_right == (chance < JUDGED) else "no"
        return {
            "link_schema": "trip, station, district",
            "extract_keywords": "trips, longest, district",
        }.get(ask.stage, f"There is one row for each station, test {sibling}.")

    def _other(self, word: str, drawn: random.Random) -> str:
        return self._gold.replace("SELECT ", f"SELECT {word}{drawn.randrange(NUM_WRONG)}, ", 1)


class Cluster:
    """Simulated engines behind the coordinator's own code, on a virtual clock."""

    def __init__(
        self, system: System, config: ClusterConfig, profiles: Sequence[AcceleratorProfile]
    ) -> None:
        self.events = EventQueue()
        ordering = system.engine.ordering
        order_settings = dict(ORDERING.defaults(ordering)) if ordering else {}
        self._engines = [
            Engine(
                name,
                profile,
                queue_order(
                    system.engine.policy,
                    ordering,
                    order_settings,
                    holds_prefixes=system.engine.holds_prefixes,
                ),
                self.events,
                on_first_token=lambda request, _: self._front.first_token(request.view.request_id),
                on_end=self._ended,
                on_change=lambda engine: self._front.load_changed(engine),
            )
            for name, profile in zip(worker_names(profiles), profiles, strict=True)
        ]
        self._front = CoordinatorFront(
            coordinator_config(system, "", config.coordinator, 1.0),
            self._engines,
            self._send,
            self.events,
            Delays(),
            linked=system.linked,
        )
        self._waiting: dict[str, Callable[[], None]] = {}
        self._at: dict[str, Engine] = {}

    def send(self, asked: Asked, on_end: Callable[[], None]) -> None:
        """Give a request to the coordinator."""
        self._waiting[asked.request_id] = on_end
        self._front.take(asked)

    def _send(self, engine: Engine, request: EngineRequest) -> None:
        self._at[request.view.request_id] = engine
        engine.submit(request)

    def _ended(self, request: EngineRequest, now_s: float) -> None:
        request_id = request.view.request_id
        self._front.ended(self._at.pop(request_id), request)
        self._waiting.pop(request_id)()


@dataclass
class Stage:
    """Requests of one stage that are under way."""

    ask: Ask
    started_s: float
    replies: list[Reply | None]
    is_over: bool = False


@dataclass
class Flow:
    """One question's way: carries out the steps of its `QuestionStages` on the cluster."""

    planned: Planned
    model: CannedModel
    stages: QuestionStages
    cluster: Cluster
    times: StageTimes
    num_shared_chars: int
    knows_deadline: bool
    on_end: Callable[[Ended], None]
    prefix: str = ""
    num_requests: int = 0
    started_s: float = 0.0
    open: list[Stage] = field(default_factory=list)
    is_together: bool = False
    steps: Any = None

    def start(self) -> None:
        """The question arrives now."""
        self.started_s = self.cluster.events.now_s
        self.steps = self.stages.run()
        if self.knows_deadline and self.planned.deadline_s is not None:
            at_s = self.started_s + self.planned.deadline_s
            self.cluster.events.at(at_s, MESSAGE, self._cut)
        self._advance(None)

    def _advance(self, result: Any) -> None:
        """Give the stages what they wanted, until requests are under way or all is done."""
        while True:
            try:
                step: Step = self.steps.send(result)
            except StopIteration as end:
                elapsed_s = self.cluster.events.now_s - self.started_s
                self.on_end(Ended(end.value, elapsed_s, self.num_requests))
                return
            match step:
                case Retrieve():
                    result = []
                case Extend():
                    self.prefix += step.text
                    result = None
                case Execute():
                    result = [self.model.execution(sql) for sql in step.sqls]
                case Ask():
                    return self._send((step,), is_together=False)
                case AskTogether():
                    return self._send(step.asks, is_together=True)

    def _send(self, asks: Sequence[Ask], *, is_together: bool) -> None:
        self.is_together = is_together
        now_s = self.cluster.events.now_s
        self.open = [Stage(ask, now_s, [None] * len(ask.tails)) for ask in asks]
        for stage in list(self.open):
            for sibling, text in enumerate(self.model.texts(stage.ask)):
                self._send_one(stage, sibling, text)

    def _send_one(self, stage: Stage, sibling: int, text: str) -> None:
        ask, name = stage.ask, f"q{self.planned.index}"
        request_id = f"{name}-{self.num_requests}"
        self.num_requests += 1
        question = len(self.prefix) - self.num_shared_chars
        deadline_s, now_s = self.planned.deadline_s, self.cluster.events.now_s
        budget_s = None if deadline_s is None else self.started_s + deadline_s - now_s
        asked = Asked(
            request_id=request_id,
            workflow_id=name,
            workflow_type=WORKFLOW_TYPE,
            stage=ask.stage,
            siblings=len(ask.tails),
            sibling_index=sibling,
            final=False,
            budget_s=budget_s,
            segments=(
                ("shared", tokens(self.num_shared_chars)),
                (name, tokens(question)),
                (request_id, tokens(len(ask.tails[sibling]))),
            ),
            num_output_tokens=min(ask.max_new_tokens, tokens(len(text))),
        )
        self.cluster.send(asked, lambda: self._replied(stage, sibling, Reply(text)))

    def _replied(self, stage: Stage, sibling: int, reply: Reply) -> None:
        if stage.is_over:
            return
        stage.replies[sibling] = reply
        agreement = stage.ask.agreement
        if agreement is not None:
            written, new = agreement.statements([reply.text])
            agreement.note(written, [self.model.execution(sql) for sql in new])
        is_complete = None not in stage.replies
        is_settled = agreement is not None and agreement.is_enough
        if is_complete or is_settled or (self._is_late and stage.ask.may_be_cut):
            self._stage_over(stage)

    @property
    def _is_late(self) -> bool:
        deadline_s = self.planned.deadline_s if self.knows_deadline else None
        return deadline_s is not None and self.cluster.events.now_s >= self.started_s + deadline_s

    def _cut(self) -> None:
        """The deadline is there: what the answer can do without is not awaited."""
        for stage in list(self.open):
            if not stage.is_over and stage.ask.may_be_cut:
                self._stage_over(stage)

    def _stage_over(self, stage: Stage) -> None:
        stage.is_over = True
        elapsed_s = self.cluster.events.now_s - stage.started_s
        is_cut = None in stage.replies
        self.times.note(stage.ask.stage, len(stage.replies), elapsed_s, is_cut=is_cut)
        if all(one.is_over for one in self.open):
            stages, self.open = self.open, []
            replies = [[reply or LATE for reply in one.replies] for one in stages]
            self._advance(replies if self.is_together else replies[0])


def tokens(num_chars: int) -> int:
    """About how many tokens that much text is; at least 1."""
    return max(1, round(num_chars / CHARS_PER_TOKEN))


class Bench:
    """Runs questions on fresh simulated clusters."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._config = load_cluster(args.cluster)
        self._profiles = list(cluster_profiles(self._config, None))
        self._system = parse_system(args.system)
        self._settings = AgentSettings(num_candidates=args.candidates, agree_at=args.agree_at)
        self._seed = args.seed
        self._schema = read_schema(ensure_sample_database())
        self._examples = derive_examples(self._schema)
        shared = prompts.static_part() + prompts.database_part(self._schema, self._examples)
        self._num_shared_chars = len(shared)

    def run(self, planned: Sequence[Planned], *, knobs: bool) -> list[Ended]:
        """All of them on one cluster, in the order of `planned`.

        Raises:
            ConfigError: a question did not end.
        """
        cluster, times = Cluster(self._system, self._config, self._profiles), StageTimes()
        ended: dict[int, Ended] = {}
        for one in planned:
            flow = self._flow(one, cluster, times, knobs, ended)
            cluster.events.at(one.arrival_s, ARRIVAL, flow.start)
        cluster.events.run()
        if len(ended) != len(planned):
            raise ConfigError(f"{len(planned) - len(ended)} questions did not end: a defect")
        return [ended[one.index] for one in planned]

    def _flow(
        self,
        planned: Planned,
        cluster: Cluster,
        times: StageTimes,
        knobs: bool,
        ended: dict[int, Ended],
    ) -> Flow:
        def remaining_s() -> float | None:
            if not knobs or planned.deadline_s is None:
                return None
            return planned.arrival_s + planned.deadline_s - cluster.events.now_s

        stages = QuestionStages(
            Question(planned.sample.question),
            self._schema,
            self._examples,
            self._settings,
            remaining_s,
            times,
        )
        return Flow(
            planned,
            CannedModel(self._seed, planned),
            stages,
            cluster,
            times,
            self._num_shared_chars,
            knobs,
            lambda one: ended.__setitem__(planned.index, one),
        )

    def is_right(self, planned: Planned, ended: Ended) -> bool:
        """Whether the answer is the gold SQL."""
        return CannedModel(self._seed, planned).is_right(ended.answer)


def arms(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Capacity, unloaded latencies, and both arms at the wanted load."""
    samples = list(itertools.islice(itertools.cycle(sample_questions()), args.questions))
    at_once = [Planned(index, one, 0.0) for index, one in enumerate(samples)]
    capacity_per_s = len(samples) / max(one.elapsed_s for one in bench.run(at_once, knobs=False))
    idle = [Planned(index, one, index * IDLE_GAP_S) for index, one in enumerate(samples)]
    unloaded_s = [one.elapsed_s for one in bench.run(idle, knobs=False)]

    drawn = random.Random(f"{args.seed}/arrivals")
    rate_per_s, now_s = args.load * capacity_per_s, 0.0
    planned = []
    for index, sample in enumerate(samples):
        now_s += drawn.expovariate(rate_per_s)
        planned.append(Planned(index, sample, now_s, args.deadline_scale * unloaded_s[index]))
    return {
        "capacity_per_s": capacity_per_s,
        "rate_per_s": rate_per_s,
        "unloaded_s_p50": statistics.median(unloaded_s),
        "off": figures(bench, planned, bench.run(planned, knobs=False)),
        "on": figures(bench, planned, bench.run(planned, knobs=True)),
    }


def figures(bench: Bench, planned: Sequence[Planned], ended: Sequence[Ended]) -> dict[str, Any]:
    """What became of an arm's questions."""
    pairs = list(zip(planned, ended, strict=True))
    in_time = [end.elapsed_s <= (one.deadline_s or 0) for one, end in pairs]
    right = [bench.is_right(one, end) for one, end in pairs]
    latencies = [end.elapsed_s for end in ended]
    dropped = Counter(drop.knob.value for end in ended for drop in end.answer.dropped)
    return {
        "in_time_frac": statistics.mean(in_time),
        "right_frac": statistics.mean(right),
        "right_in_time_frac": statistics.mean(map(all, zip(in_time, right, strict=True))),
        "requests_per_question": statistics.mean(end.num_requests for end in ended),
        "latency_s_p50": statistics.median(latencies),
        "latency_s_max": max(latencies),
        "dropped": dict(dropped),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Deadline knobs on an overloaded cluster.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cluster", type=Path, default=CLUSTER)
    parser.add_argument("--system", default="hexgen", help="as in `hexgen-sglang bench`")
    parser.add_argument("--load", type=float, default=1.2, help="share of the capacity")
    parser.add_argument("--questions", type=int, default=600)
    parser.add_argument("--deadline-scale", type=float, default=4.0)
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--agree-at", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    """Run both arms, print, write; 2 when an argument is wrong."""
    args = _arguments()
    try:
        result = arms(Bench(args), args)
    except HexgenError as error:
        print(f"deadline_knobs: {error}", file=sys.stderr)
        return 2
    print(
        f"capacity {result['capacity_per_s']:.2f} questions/s, asked {result['rate_per_s']:.2f}/s; "
        f"unloaded {result['unloaded_s_p50']:.1f} s"
    )
    for arm in ("off", "on"):
        row = result[arm]
        print(
            f"knobs {arm:<3}: {100 * row['in_time_frac']:.1f} % in time, "
            f"{100 * row['right_in_time_frac']:.1f} % right and in time, "
            f"{row['requests_per_question']:.1f} requests a question, {row['dropped']}"
        )
    result |= {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "chances": {"right": RIGHT, "wrong": WRONG, "mended": MENDED, "judged": JUDGED},
        "versions": machine.versions(),
    }
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
