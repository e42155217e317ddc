"""Synthetic Text-to-SQL traces with the published shape, so that nothing else is needed.

The order of steps, fan-outs, lengths and revision counts follow two public traces in their
means and ranges; no row of theirs is in here. A workflow is of one of two kinds: hard ones
are repaired often (as in trace1), easy ones seldom (as in financial).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.workload.streams import Subsystem, stream
from hexgen_sglang.workload.text2sql_steps import STEP_BY_NAME, WORKFLOW_TYPE
from hexgen_sglang.workload.trace import Trace, TraceRequest, TraceWorkflow, chain

FORMAT = "synthetic"
MAX_REVISIONS = 10

_Stages = list[tuple[str, tuple[TraceRequest, ...]]]


@dataclass(frozen=True, slots=True)
class SyntheticSettings:
    """What to generate.

    Attributes:
        num_workflows: 1 to 1,000,000.
        seed: at least 0.
        hard_frac: share of hard workflows, 0 to 1.
    """

    num_workflows: int = 100
    seed: int = 0
    hard_frac: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.num_workflows <= 1_000_000:
            raise ConfigError(f"synthetic workflows={self.num_workflows}: must be 1 to 1,000,000")
        if self.seed < 0:
            raise ConfigError(f"synthetic seed={self.seed}: must be at least 0")
        if not 0 <= self.hard_frac <= 1:
            raise ConfigError(f"hard_frac={self.hard_frac}: must be 0 to 1")


@dataclass(frozen=True, slots=True)
class _Kind:
    """Shape of hard or easy workflows. Triples are (low, most likely, high) of a triangle.

    Attributes:
        unrepaired_frac: share without any revise.
        repair_again_frac: chance of a further revise after one.
        keywords_frac: share with an extract_keywords step.
        long_repair_frac: share of revise answers with about 1,000 tokens.
        candidate_output: tokens of the first candidate.
        test_context: prompt tokens of generate_unit_test behind its template.
    """

    unrepaired_frac: float
    repair_again_frac: float
    keywords_frac: float
    long_repair_frac: float
    candidate_output: tuple[int, int, int]
    test_context: tuple[int, int, int]


_HARD = _Kind(0.11, 0.79, 0.67, 0.0, (460, 860, 1150), (330, 740, 950))
_EASY = _Kind(0.73, 0.65, 0.85, 0.115, (400, 640, 1040), (240, 560, 920))
_EVALUATIONS = {2: 0.01, 3: 0.09, 4: 0.24, 5: 0.35, 6: 0.27, 7: 0.03, 8: 0.01}
_TESTED_FRAC = 0.94


def synthetic_trace(settings: SyntheticSettings) -> Trace:
    """The trace that the settings describe; equal settings give equal traces."""
    generator = stream(settings.seed, Subsystem.SYNTHETIC)
    workflows = tuple(
        _workflow(index, settings.hard_frac, generator) for index in range(settings.num_workflows)
    )
    origin = f"{FORMAT}:{settings.num_workflows}:{settings.seed}"
    return Trace(name=FORMAT, origin=origin, format=FORMAT, workflows=workflows)


def _workflow(index: int, hard_frac: float, generator: np.random.Generator) -> TraceWorkflow:
    kind = _HARD if generator.random() < hard_frac else _EASY
    context = _triangle(generator, (2570, 2690, 3130))
    stages: _Stages = []
    _retrieve(stages, kind, generator)
    _draft(stages, kind, context, generator)
    _repair(stages, kind, context, generator)
    _judge(stages, kind, generator)
    return TraceWorkflow(f"{FORMAT}-{index}", WORKFLOW_TYPE, chain(stages))


def _retrieve(stages: _Stages, kind: _Kind, generator: np.random.Generator) -> None:
    """Four retrievals, most often with the extraction of keywords behind the first."""
    wordy = generator.random() < 0.38
    outputs = (int(generator.integers(20, 47)) if wordy else 5, 5, 5, 4)
    retrievals = [
        ("information_retriever", (TraceRequest(num_input, num_output),))
        for num_input, num_output in zip((301, 304, 308, 312), outputs, strict=True)
    ]
    stages.append(retrievals[0])
    if generator.random() < kind.keywords_frac:
        num_input = _template("extract_keywords") + _triangle(generator, (4, 18, 84))
        num_output = _triangle(generator, (12, 41, 75))
        stages.append(("extract_keywords", (TraceRequest(num_input, num_output),)))
    stages.extend(retrievals[1:])


def _draft(stages: _Stages, kind: _Kind, context: int, generator: np.random.Generator) -> None:
    """Two candidates at once, with the long and the short template."""
    first = _triangle(generator, kind.candidate_output)
    second = int(first * generator.uniform(0.52, 0.82))
    long_template, short_template = STEP_BY_NAME["generate_candidate"].template_tokens
    stages.append(
        (
            "generate_candidate",
            (
                TraceRequest(long_template + context, first),
                TraceRequest(short_template + context, max(second, 1)),
            ),
        )
    )


def _repair(stages: _Stages, kind: _Kind, context: int, generator: np.random.Generator) -> None:
    """0 to 10 rounds of revise, one after the other."""
    rounds = 0
    if generator.random() >= kind.unrepaired_frac:
        rounds = 1
        while rounds < MAX_REVISIONS and generator.random() < kind.repair_again_frac:
            rounds += 1
    draft = int(generator.integers(21, 80))
    for _ in range(rounds):
        error = int(min(generator.exponential(35.0), 120.0))
        if generator.random() < 0.03:
            error = int(generator.integers(850, 930))
        num_output = _triangle(generator, (11, 80, 154))
        if generator.random() < kind.long_repair_frac:
            num_output = int(generator.integers(850, 1079))
        num_input = _template("revise") + context + draft + error
        stages.append(("revise", (TraceRequest(num_input, num_output),)))


def _judge(stages: _Stages, kind: _Kind, generator: np.random.Generator) -> None:
    """Unit tests, and parallel evaluations of the candidates against them."""
    tested = generator.random() < _TESTED_FRAC
    context = _triangle(generator, kind.test_context)
    stages.append(("unit_tester", (TraceRequest(271, 6),)))
    if tested:
        num_output = _triangle(generator, (35, 108, 150))
        num_input = _template("generate_unit_test") + context
        stages.append(("generate_unit_test", (TraceRequest(num_input, num_output),)))
    stages.append(("unit_tester", (TraceRequest(275, 4),)))
    if tested:
        stages.append(("evaluate", _evaluations(context, generator)))
    stages.append(("unit_tester", (TraceRequest(278, 4),)))


def _evaluations(context: int, generator: np.random.Generator) -> tuple[TraceRequest, ...]:
    """Parallel evaluations that differ by a few tokens; a few give their reasons at length."""
    fan_outs = np.array(list(_EVALUATIONS))
    count = int(generator.choice(fan_outs, p=np.array(list(_EVALUATIONS.values()))))
    base = _template("evaluate") + context + int(generator.integers(5, 50))
    evaluations = []
    for _ in range(count):
        wordy = generator.random() < 0.06
        num_output = int(generator.integers(40, 240)) if wordy else 22
        evaluations.append(TraceRequest(base + int(generator.integers(0, 16)), num_output))
    return tuple(evaluations)


def _template(name: str) -> int:
    return STEP_BY_NAME[name].template_tokens[0]


def _triangle(generator: np.random.Generator, low_mode_high: tuple[int, int, int]) -> int:
    low, mode, high = low_mode_high
    return int(generator.triangular(low, mode, high))
