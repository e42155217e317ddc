"""What a search makes better: a figure of one simulated run, its unit and its direction.

Pure. The definitions of latency quantiles and met deadlines are those of `results`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from hexgen_sglang.core.errors import ConfigError, LawViolation
from hexgen_sglang.results import statistics
from hexgen_sglang.results.figures import deadlines_met
from hexgen_sglang.results.records import RunRecord
from hexgen_sglang.results.schema import RunFacts


@dataclass(frozen=True, slots=True)
class Objective:
    """One figure to search for.

    Attributes:
        name: as on the command line.
        unit: of the figure, for tables.
        less_is_better: its direction.
        is_relative: two values are compared by their quotient (positive figures with long
            tails) and not by their difference.
        figure: of one run and the price of its cluster in US dollars an hour.
    """

    name: str
    unit: str
    less_is_better: bool
    is_relative: bool
    figure: Callable[[RunRecord, float], float]

    def value(self, facts: RunFacts, usd_per_hour: float) -> float:
        """The figure of one run, finite.

        Raises:
            LawViolation: the run broke a law, or the figure is not finite since a workflow
                never completed.
            ConfigError: the figure needs deadlines or a price that are not there.
        """
        if facts.broken:
            raise LawViolation(f"{facts.run.system}, seed {facts.run.seed}: {facts.broken[0]}")
        value = self.figure(facts.run, usd_per_hour)
        if not math.isfinite(value) or (self.is_relative and value <= 0):
            raise LawViolation(
                f"{facts.run.system}, seed {facts.run.seed}: {self.name}={value}: every "
                "workflow of a simulated run must complete and take time"
            )
        return value

    def effect(self, value: float, reference: float) -> float:
        """How much better `value` is than `reference`, above 0 when better.

        The difference, or the logarithm of the quotient for a relative figure: effects of
        independent runs can be averaged.
        """
        change = math.log(value / reference) if self.is_relative else value - reference
        return -change if self.less_is_better else change

    def gain(self, effect: float) -> float:
        """An effect in terms for people: times better for a relative figure, else the unit."""
        return math.exp(effect) if self.is_relative else effect

    @property
    def no_gain(self) -> float:
        """The gain of a setting that changes nothing."""
        return self.gain(0.0)


def _quantile(share: float) -> Callable[[RunRecord, float], float]:
    return lambda run, _: statistics.quantile(statistics.latencies(run), share)


def _mean(run: RunRecord, _: float) -> float:
    return float(statistics.latencies(run).mean())


def _attainment(run: RunRecord, _: float) -> float:
    met = deadlines_met(run)
    if not met.size:
        raise ConfigError("attainment and goodput need deadlines: give a deadline scale above 0")
    return float(met.mean())


def _goodput(run: RunRecord, usd_per_hour: float) -> float:
    """From the first measured arrival to the last end, so that a lasting queue counts."""
    share = _attainment(run, usd_per_hour)
    measured = run.measured()
    return share * len(measured) / (run.span_s - measured[0].arrival_s)


def _goodput_per_usd(run: RunRecord, usd_per_hour: float) -> float:
    if usd_per_hour <= 0:
        raise ConfigError(f"usd_per_hour={usd_per_hour}: goodput per dollar needs a price above 0")
    return _goodput(run, usd_per_hour) * 3600 / usd_per_hour


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("p95", "s", True, True, _quantile(0.95)),
        Objective("p99", "s", True, True, _quantile(0.99)),
        Objective("mean", "s", True, True, _mean),
        # Share of the workflows sent that met their deadline.
        Objective("attainment", "of workflows", False, False, _attainment),
        # Workflows within their deadline, at the arrival rate of the run.
        Objective("goodput", "workflows/s", False, False, _goodput),
        Objective("goodput_per_usd", "workflows/USD", False, False, _goodput_per_usd),
    )
}


def parse_objective(name: str) -> Objective:
    """The objective of that name.

    Raises:
        ConfigError: unknown; names those there are.
    """
    objective = OBJECTIVES.get(name)
    if objective is None:
        raise ConfigError(f"objective={name!r}: must be one of {', '.join(OBJECTIVES)}")
    return objective
