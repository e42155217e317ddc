"""How long a workflow stays away between its stages: how long its prefix is worth keeping."""

from __future__ import annotations

from hexgen_sglang.policies.estimators import BoundedTable, Quantiles

_MAX_STAGES = 4_096
_MS = 1_000.0
_QUANTILE = 0.9
_MARGIN = 2.0
# Before anything was seen, and the range of what was learned; seconds.
_UNKNOWN_S = 30.0
_LEAST_S = 1.0
_MOST_S = 300.0


class StageGaps:
    """Learns the seconds from a stage's end to the next request of its workflow at a worker."""

    def __init__(self) -> None:
        self._gaps: BoundedTable[tuple[str, str], Quantiles] = BoundedTable(Quantiles, _MAX_STAGES)

    def note(self, workflow_type: str, stage: str, seconds: float) -> None:
        """After that stage the workflow was away for so long; below 0 counts as 0."""
        self._gaps.at((workflow_type, stage)).add(seconds * _MS)

    def usual_s(self, workflow_type: str, stage: str) -> float | None:
        """The gap that half of the workflows do not exceed; None before the first was seen."""
        seen = self._gaps.get((workflow_type, stage))
        gap_ms = None if seen is None else seen.at(0.5)
        return None if gap_ms is None else gap_ms / _MS

    def ttl_s(self, workflow_type: str, stage: str) -> float:
        """Time to live of a prefix after the stage: twice the gap that 90 % do not exceed.

        30 s before the first gap was seen; always 1 to 300 s.
        """
        seen = self._gaps.get((workflow_type, stage))
        gap_ms = None if seen is None else seen.at(_QUANTILE)
        if gap_ms is None:
            return _UNKNOWN_S
        return min(_MOST_S, max(_LEAST_S, _MARGIN * gap_ms / _MS))
