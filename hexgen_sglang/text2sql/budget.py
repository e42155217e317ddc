"""What to leave out when a deadline is near: expected seconds, and the rule. Pure, no clock.

`StageTimes` learns from the stages of this and of earlier questions; `plan` takes one knob after
the other down until the rest fits into the time left.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum

from hexgen_sglang.text2sql.settings import AgentSettings

LINK_SCHEMA = "link_schema"
GENERATE_CANDIDATE = "generate_candidate"
REVISE = "revise"
GENERATE_UNIT_TEST = "generate_unit_test"
EVALUATE = "evaluate"

# Weight of the newest stage in what is expected of the next.
_NEWEST = 0.3
# The part of a stage's time that grows with its requests; the rest is the same for one of them.
# An assumption between a wide accelerator (0) and a single core (1).
_WIDTH_FRAC = 0.5
# Results that a choice is usually between, for the number of evaluations.
_USUAL_GROUPS = 2


class Knob(StrEnum):
    """What can be done less of."""

    EVALUATIONS = "evaluations"
    ROUNDS = "rounds"
    CANDIDATES = "candidates"
    MODEL = "model"


# The rule. In this order, a knob is taken down step by step while the slack is below this share
# of the time left (slack: time left less what the rest is expected to take). What refines a
# found answer goes before what finds it; shares never rise, so that less time never does more.
# Even the last ones leave a fifth: what is expected is a mean, which half of the stages exceed.
RULE: tuple[tuple[Knob, float], ...] = (
    (Knob.EVALUATIONS, 0.4),
    (Knob.ROUNDS, 0.3),
    (Knob.CANDIDATES, 0.2),
    (Knob.MODEL, 0.2),
)


class Phase(IntEnum):
    """What comes next; everything behind it is still to be done."""

    LINK = 0
    CANDIDATES = 1
    REVISE = 2
    TEST = 3
    EVALUATE = 4


@dataclass(frozen=True, slots=True)
class Knobs:
    """How much is to be done: at most what is configured, and at least 1 candidate.

    Attributes:
        num_rounds: of correction, still to come.
        num_checks: unit tests; each is put to every result.
        uses_fallback: the smaller model.
    """

    num_candidates: int
    num_rounds: int
    num_checks: int
    uses_fallback: bool = False


@dataclass(frozen=True, slots=True)
class Dropped:
    """One knob that was taken down for the deadline.

    Attributes:
        configured, used: before and after, as text.
        remaining_s: seconds left when it was decided.
        expected_s: seconds that the rest would have taken as configured.
    """

    knob: Knob
    configured: str
    used: str
    remaining_s: float
    expected_s: float

    @property
    def reason(self) -> str:
        """Why, in a few words."""
        if self.remaining_s <= 0:
            return "the deadline had passed"
        return f"{self.remaining_s:.1f} s left for what takes about {self.expected_s:.1f} s"

    def __str__(self) -> str:
        return f"{self.knob.value} {self.configured} -> {self.used}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, and what it was decided on; the last two are None without a deadline."""

    knobs: Knobs
    remaining_s: float | None = None
    expected_s: float | None = None


@dataclass
class _Seen:
    elapsed_s: float
    num_requests: float


class StageTimes:
    """What stages took so far, for what they will take; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str | None], _Seen] = {}
        self._needed: dict[str, float] = {}

    def note(
        self,
        stage: str,
        num_requests: int,
        elapsed_s: float,
        model: str | None = None,
        *,
        is_cut: bool = False,
    ) -> None:
        """A stage took that long; `is_cut`: it was not awaited to its end, so at least that."""
        with self._lock:
            seen = self._seen.get((stage, model))
            if seen is None:
                self._seen[stage, model] = _Seen(elapsed_s, num_requests)
            elif not is_cut or elapsed_s > seen.elapsed_s:
                seen.elapsed_s += _NEWEST * (elapsed_s - seen.elapsed_s)
                seen.num_requests += _NEWEST * (num_requests - seen.num_requests)

    def note_need(self, stage: str, was_needed: bool) -> None:
        """Whether a question turned out to need the stage."""
        with self._lock:
            chance = self._needed.get(stage, 1.0)
            self._needed[stage] = chance + _NEWEST * (was_needed - chance)

    def chance(self, stage: str) -> float:
        """How likely a question needs the stage, 0 to 1; 1 while nothing is known."""
        with self._lock:
            return self._needed.get(stage, 1.0)

    def expected_s(self, stage: str, num_requests: int, model: str | None = None) -> float:
        """Seconds for that many parallel requests of a stage.

        A model not seen at the stage counts as the usual one (None), a stage never seen as long
        as the mean of the others, and as 0 while nothing is known.
        """
        with self._lock:
            seen = self._seen.get((stage, model)) or self._seen.get((stage, None))
            if seen is None:
                known = [one.elapsed_s for one in self._seen.values()]
                return sum(known) / len(known) if known else 0.0
            width = num_requests / max(1.0, seen.num_requests)
            return seen.elapsed_s * (1 - _WIDTH_FRAC + _WIDTH_FRAC * width)


def configured(settings: AgentSettings) -> Knobs:
    """Everything as the settings say."""
    return Knobs(settings.num_candidates, settings.max_rounds, settings.num_checks)


def expected_s(
    knobs: Knobs, phase: Phase, times: StageTimes, fallback_model: str | None = None
) -> float:
    """Seconds for everything from `phase` on. What comes next is sure, the rest is likely."""
    model = fallback_model if knobs.uses_fallback else None
    total_s = 0.0
    if phase <= Phase.LINK:
        total_s += times.expected_s(LINK_SCHEMA, 1, model)
    if phase <= Phase.CANDIDATES:
        total_s += times.expected_s(GENERATE_CANDIDATE, knobs.num_candidates, model)
    if phase <= Phase.REVISE and knobs.num_rounds > 0:
        chance = times.chance(REVISE)
        num_rounds = chance * knobs.num_rounds
        if phase is Phase.REVISE:
            num_rounds = 1 + chance * (knobs.num_rounds - 1)
        total_s += num_rounds * times.expected_s(REVISE, 1, model)
    if knobs.num_checks > 0:
        chance = 1.0 if phase >= Phase.TEST else times.chance(GENERATE_UNIT_TEST)
        test_s = times.expected_s(EVALUATE, _USUAL_GROUPS * knobs.num_checks, model)
        if phase <= Phase.TEST:
            test_s += times.expected_s(GENERATE_UNIT_TEST, knobs.num_checks, model)
        total_s += chance * test_s
    return total_s


def plan(
    wanted: Knobs,
    phase: Phase,
    remaining_s: float | None,
    times: StageTimes,
    fallback_model: str | None = None,
) -> Plan:
    """What is to be done of `wanted` in the time left, by `RULE`.

    Without a deadline: all of it. After the deadline: as little as possible.
    """
    if remaining_s is None:
        return Plan(wanted)
    whole_s = expected_s(wanted, phase, times, fallback_model)
    knobs = wanted
    for knob, min_slack_frac in RULE:
        for less in _steps(knobs, knob, fallback_model):
            rest_s = expected_s(knobs, phase, times, fallback_model)
            if remaining_s > 0 and remaining_s - rest_s >= min_slack_frac * remaining_s:
                return Plan(knobs, remaining_s, whole_s)
            knobs = less
    return Plan(knobs, remaining_s, whole_s)


def _steps(knobs: Knobs, knob: Knob, fallback_model: str | None) -> Iterator[Knobs]:
    """The knob taken down, one step at a time."""
    if knob is Knob.EVALUATIONS:
        for number in reversed(range(knobs.num_checks)):
            yield replace(knobs, num_checks=number)
    elif knob is Knob.ROUNDS:
        for number in reversed(range(knobs.num_rounds)):
            yield replace(knobs, num_rounds=number)
    elif knob is Knob.CANDIDATES:
        for number in reversed(range(1, knobs.num_candidates)):
            yield replace(knobs, num_candidates=number)
    elif fallback_model is not None and not knobs.uses_fallback:
        yield replace(knobs, uses_fallback=True)
