"""What a worker's steps cost, fitted to the steps that it has timed.

Least squares with non-negative terms, separately for prefill and decode steps, over samples
that are slowly forgotten. The plugin feeds it in each scheduler process, the simulator for its
engines; see `core.worker.StepCosts` for the terms.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hexgen_sglang.core.worker import StepCosts

# Steps of a kind before its terms are told.
MIN_STEPS = 8
_KEEP = 0.999
_SUBSETS = [rows for size in (1, 2) for rows in itertools.combinations(range(3), size)]
# Columns are brought to one size, so that the equations are well conditioned.
_PREFILL_UNITS = (1.0, 1e3, 1e6)  # steps, uncached tokens, sum of attended tokens
_DECODE_UNITS = (1.0, 10.0, 1e4)  # steps, requests, context tokens


class StepCostFit:
    """The fit of one worker.

    Args:
        repeated_frac: what a context token costs that another request of the step holds as well,
            as a share of reading it, 0 to 1; not fitted.

    Attributes:
        num_prefills, num_decodes: steps seen.
    """

    def __init__(self, repeated_frac: float = 1.0) -> None:
        self._repeated_frac = repeated_frac
        self.num_prefills = 0
        self.num_decodes = 0
        self._prefill = _Equations(_PREFILL_UNITS)
        self._decode = _Equations(_DECODE_UNITS)

    def add_prefill(self, num_uncached: int, num_attended: float, seconds: float) -> None:
        """A prefill step of so many uncached tokens took `seconds`.

        `num_attended`: sum over its prompts of uncached x (cached + uncached / 2).
        """
        self.num_prefills += 1
        self._prefill.add((1.0, num_uncached, num_attended), seconds, 1.0)

    def add_decode(
        self,
        num_requests: int,
        num_context_tokens: float,
        seconds: float,
        steps: int = 1,
        num_repeated_tokens: float = 0.0,
    ) -> None:
        """`steps` decode steps of so many requests took `seconds` each, on average.

        `num_context_tokens`: their contexts together, on average; `num_repeated_tokens` of them
        another request holds as well.
        """
        num_read = num_context_tokens - (1.0 - self._repeated_frac) * num_repeated_tokens
        self.num_decodes += steps
        self._decode.add((1.0, num_requests, num_read), seconds, float(steps))

    def costs(self) -> StepCosts | None:
        """The terms; None before 8 steps of each kind."""
        if self.num_prefills < MIN_STEPS or self.num_decodes < MIN_STEPS:
            return None
        return StepCosts(*self._prefill.solution(), *self._decode.solution(), self._repeated_frac)


class _Equations:
    """Normal equations of a linear model with three terms, each at least 0."""

    def __init__(self, units: tuple[float, float, float]) -> None:
        self._units = units
        # Upper triangle of X'X, X'y; plain floats, since a sample is added in every step.
        self._squares = [0.0] * 6
        self._products = [0.0] * 3

    def add(self, terms: tuple[float, float, float], seconds: float, weight: float) -> None:
        """One sample; `weight` as if it had come so often."""
        units = self._units
        a, b, c = terms[0] / units[0], terms[1] / units[1], terms[2] / units[2]
        keep = _KEEP**weight
        aa, ab, ac, bb, bc, cc = self._squares
        wa, wb, wc = weight * a, weight * b, weight * c
        self._squares = [
            keep * aa + wa * a,
            keep * ab + wa * b,
            keep * ac + wa * c,
            keep * bb + wb * b,
            keep * bc + wb * c,
            keep * cc + wc * c,
        ]
        a_y, b_y, c_y = self._products
        self._products = [
            keep * a_y + wa * seconds,
            keep * b_y + wb * seconds,
            keep * c_y + wc * seconds,
        ]

    def solution(self) -> tuple[float, float, float]:
        """The best non-negative terms: all three, else the best set of them that is feasible."""
        aa, ab, ac, bb, bc, cc = self._squares
        ridge = 1e-9 * (aa + bb + cc)
        squares = ((aa + ridge, ab, ac), (ab, bb + ridge, bc), (ac, bc, cc + ridge))
        best = _solved([list(row) for row in squares], list(self._products))
        if min(best) < 0:
            best = self._feasible(squares)
        one, two, three = (term / unit for term, unit in zip(best, self._units, strict=True))
        return one, two, three

    def _feasible(self, squares: Sequence[Sequence[float]]) -> list[float]:
        """The best terms with one or two left out, none below 0."""
        best = [0.0, 0.0, 0.0]
        least = 0.0
        for chosen in _SUBSETS:
            found = _solved(
                [[squares[row][column] for column in chosen] for row in chosen],
                [self._products[row] for row in chosen],
            )
            if min(found) < 0:
                continue
            # The squared error, less a constant.
            error = -sum(
                term * self._products[row] for term, row in zip(found, chosen, strict=True)
            )
            if error < least:
                least = error
                best = [0.0, 0.0, 0.0]
                for term, row in zip(found, chosen, strict=True):
                    best[row] = term
        return best


def _solved(rows: list[list[float]], right: list[float]) -> list[float]:
    """Solve up to three symmetric, positive definite equations; numpy takes ten times as long."""
    size = len(right)
    for pivot in range(size):
        for row in range(pivot + 1, size):
            factor = rows[row][pivot] / rows[pivot][pivot]
            for column in range(pivot, size):
                rows[row][column] -= factor * rows[pivot][column]
            right[row] -= factor * right[pivot]
    found = [0.0] * size
    for row in reversed(range(size)):
        known = sum(rows[row][column] * found[column] for column in range(row + 1, size))
        found[row] = (right[row] - known) / rows[row][row]
    return found
