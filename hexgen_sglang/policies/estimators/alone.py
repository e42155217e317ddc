"""What a workflow would still need with the cluster to itself, learned from ended ones.

Counts of what cannot be done at the same time: the output tokens, uncached prompt tokens and tool
seconds along the longest path of its stages. Priced with the fastest worker's step costs they
say whether a deadline can be met at all, however long the stages of loaded workers take.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hexgen_sglang.core.worker import StepCosts
from hexgen_sglang.policies.estimators.averages import BoundedTable, RunningMean

# Which of two branches is longer; only ever compared with one another. About an A100's.
_REFERENCE = StepCosts(0.05, 3e-4, 0.0, 0.021, 0.0, 0.0)
# Tokens that a request attends to: for what its decode steps cost beyond their base.
_CONTEXT_TOKENS = 2_000


class PathVisit(Protocol):
    """What is read of a visit of a stage; see `stages.StageVisit`."""

    @property
    def stage(self) -> str: ...
    @property
    def start_s(self) -> float: ...
    @property
    def end_s(self) -> float: ...
    @property
    def num_path_tokens(self) -> int: ...
    @property
    def num_path_uncached(self) -> int: ...


@dataclass(frozen=True, slots=True)
class PathWork:
    """Work along a path of stages, one after the other.

    Attributes:
        num_stages: on the path.
        num_output_tokens: of the longest request of each.
        num_uncached_tokens: prompt tokens to compute, of the longest such prompt of each.
        gap_s: tool seconds between them.
    """

    num_stages: float = 0.0
    num_output_tokens: float = 0.0
    num_uncached_tokens: float = 0.0
    gap_s: float = 0.0

    def plus(self, other: PathWork) -> PathWork:
        """Both, one after the other."""
        return PathWork(
            self.num_stages + other.num_stages,
            self.num_output_tokens + other.num_output_tokens,
            self.num_uncached_tokens + other.num_uncached_tokens,
            self.gap_s + other.gap_s,
        )

    def seconds(self, costs: StepCosts) -> float:
        """On a worker with these step costs and nothing else to do."""
        step_s = costs.decode_s(1, _CONTEXT_TOKENS)
        decodes = max(0.0, self.num_output_tokens - self.num_stages)
        token_s = costs.prefill_token_s + _CONTEXT_TOKENS / 2 * costs.prefill_context_s
        prefill_s = self.num_stages * costs.prefill_base_s + self.num_uncached_tokens * token_s
        return self.gap_s + prefill_s + decodes * step_s


@dataclass(slots=True)
class _Means:
    """Means over visits of a stage."""

    num_stages: RunningMean = field(default_factory=RunningMean)
    num_output_tokens: RunningMean = field(default_factory=RunningMean)
    num_uncached_tokens: RunningMean = field(default_factory=RunningMean)
    gap_s: RunningMean = field(default_factory=RunningMean)


class AlonePaths:
    """The work along the longest path from the start of a stage on, by (type, stage).

    Args:
        max_entries: the longest unused goes first.
    """

    def __init__(self, max_entries: int = 4_096) -> None:
        self._means: BoundedTable[tuple[str, str], _Means] = BoundedTable(_Means, max_entries)

    def note(self, workflow_type: str, visits: Sequence[PathVisit]) -> None:
        """A workflow ended in order; `visits` by start."""
        for visit, work in zip(visits, longest_paths(visits), strict=True):
            means = self._means.at((workflow_type, visit.stage))
            means.num_stages.add(work.num_stages)
            means.num_output_tokens.add(work.num_output_tokens)
            means.num_uncached_tokens.add(work.num_uncached_tokens)
            means.gap_s.add(work.gap_s)

    def work(self, workflow_type: str, stage: str) -> PathWork | None:
        """The mean work from the start of the stage to the workflow's end; None when unseen."""
        means = self._means.get((workflow_type, stage))
        if means is None:
            return None
        return PathWork(
            means.num_stages.mean,
            means.num_output_tokens.mean,
            means.num_uncached_tokens.mean,
            means.gap_s.mean,
        )


def longest_paths(visits: Sequence[PathVisit]) -> list[PathWork]:
    """For each visit, its own work and that of the longest path of visits after it.

    A visit comes after another when it began once the other had ended; its gap is the time since
    the latest end before it.

    Args:
        visits: by start.
    """
    starts = [visit.start_s for visit in visits]
    ends = sorted(visit.end_s for visit in visits)
    none = PathWork()
    paths = [none] * len(visits)
    longest = [none] * (len(visits) + 1)  # of the paths that begin with a visit from here on
    for at in range(len(visits) - 1, -1, -1):
        visit = visits[at]
        after = longest[max(at + 1, bisect_left(starts, visit.end_s))]
        own = PathWork(1.0, visit.num_path_tokens, visit.num_path_uncached)
        paths[at] = own.plus(after)
        before = bisect_right(ends, visit.start_s)
        gap_s = visit.start_s - ends[before - 1] if before else 0.0
        from_gap = paths[at].plus(PathWork(gap_s=max(0.0, gap_s)))
        longest[at] = max(longest[at + 1], from_gap, key=lambda work: work.seconds(_REFERENCE))
    return paths
