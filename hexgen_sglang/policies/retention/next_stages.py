"""Which stage follows which, as far as workflows of a type agree on it."""

from __future__ import annotations

from collections import Counter

from hexgen_sglang.policies.estimators import BoundedTable

_MAX_STAGES = 4_096
_MAX_FOLLOWING = 64
# Halved at so many, so that what was learned follows the workflows of today.
_MOST = 256
_ENOUGH = 3
_SHARE = 0.5


class NextStages:
    """Counts, for each stage of a workflow type, what its workflows went on with."""

    def __init__(self) -> None:
        self._counts: BoundedTable[tuple[str, str], Counter[str]] = BoundedTable(
            Counter, _MAX_STAGES
        )

    def note(self, workflow_type: str, stage: str, following: str) -> None:
        """After that stage the workflow went on with `following`."""
        counts = self._counts.at((workflow_type, stage))
        counts[following] += 1
        if counts.total() >= _MOST or len(counts) > _MAX_FOLLOWING:
            for name in list(counts):
                counts[name] //= 2
            counts += Counter()  # in place: drops what is 0

    def after(self, workflow_type: str, stage: str) -> str | None:
        """The stage that most workflows went on with; None below 3 of them, or below a half."""
        counts = self._counts.get((workflow_type, stage))
        if not counts or counts.total() < _ENOUGH:
            return None
        name, count = counts.most_common(1)[0]
        return name if count >= _SHARE * counts.total() else None
