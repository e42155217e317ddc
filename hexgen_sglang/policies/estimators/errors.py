"""How wrong the estimates were: each prediction against what came, once it came."""

from __future__ import annotations

from dataclasses import dataclass, field

from hexgen_sglang.policies.estimators.averages import BoundedTable, RunningMean


@dataclass(slots=True)
class EstimateError:
    """Running means over predictions that have come true or not.

    Attributes:
        actual: of what came.
        absolute: of |predicted - actual|.
        bias: of predicted - actual.
    """

    actual: RunningMean = field(default_factory=RunningMean)
    absolute: RunningMean = field(default_factory=RunningMean)
    bias: RunningMean = field(default_factory=RunningMean)

    def note(self, predicted: float, actual: float) -> None:
        """One prediction, and what came; both finite."""
        self.actual.add(actual)
        self.absolute.add(abs(predicted - actual))
        self.bias.add(predicted - actual)

    @property
    def absolute_frac(self) -> float:
        """Mean absolute error over the mean of what came; 0 before any."""
        return self.absolute.mean / self.actual.mean if self.actual.mean > 0 else 0.0

    @property
    def bias_frac(self) -> float:
        """Mean error over the mean of what came: above 0 means predicted too much."""
        return self.bias.mean / self.actual.mean if self.actual.mean > 0 else 0.0


class EstimateErrors:
    """Errors by (estimate, workflow type).

    Args:
        max_entries: the longest unused goes first.
    """

    def __init__(self, max_entries: int = 1_024) -> None:
        self._table: BoundedTable[tuple[str, str], EstimateError] = BoundedTable(
            EstimateError, max_entries
        )

    def note(
        self, estimate: str, workflow_type: str, predicted: float | None, actual: float
    ) -> None:
        """What `estimate` said of a workflow of the type, and what came; None: it said nothing."""
        if predicted is not None:
            self._table.at((estimate, workflow_type)).note(predicted, actual)

    def of(self, estimate: str, workflow_type: str) -> EstimateError | None:
        """The errors of one estimate; None before the first."""
        return self._table.get((estimate, workflow_type))

    def rows(self) -> list[tuple[str, str, EstimateError]]:
        """Everything: estimate, workflow type, errors."""
        return [(*key, error) for key, error in self._table.items()]
