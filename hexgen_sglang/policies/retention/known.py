"""With what the next prompt of a workflow's stage will begin, as far as earlier prompts tell.

A second prompt of a stage begins with what its workflow's earlier ones have in common; the first
one with what the stage's prompts of other workflows have in common: its template. Runs in the
coordinator and in the simulator.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from hexgen_sglang.policies.estimators import BoundedTable, RunningMean
from hexgen_sglang.policies.retention.prefixes import WORTH_KEEPING

P = TypeVar("P")

_MAX_STAGES = 1_024
_MAX_STAGES_OF_ONE = 16


@dataclass(slots=True, eq=False)
class _Latest(Generic[P]):
    """The newest prompt of a stage, and how much it shares with an earlier one; 0: with none."""

    prompt: P
    num_shared: int = 0


@dataclass(slots=True, eq=False)
class _Prompts(Generic[P]):
    """Of one workflow."""

    stages: dict[str, _Latest[P]] = field(default_factory=dict)
    num_tokens: int = 0


@dataclass(slots=True, eq=False)
class _Stage(Generic[P]):
    """Of a type's stage: its template, from prompts of two workflows, and how long tails are."""

    prompt: P | None = None
    workflow_id: str = ""
    num_tokens: int = 0
    tail: RunningMean = field(default_factory=RunningMean)


class KnownPrefixes(Generic[P]):
    """What was seen of prompts of workflows in progress.

    Args:
        common: tokens that two prompts share from the first on.
        length: tokens of a prompt.
        max_tokens: of all prompts kept; the workflows longest unheard of go first.
    """

    def __init__(
        self,
        common: Callable[[P, P], int],
        length: Callable[[P], int],
        max_tokens: int = 16_000_000,
    ) -> None:
        self._common = common
        self._length = length
        self._max_tokens = max_tokens
        self._num_tokens = 0
        self._workflows: OrderedDict[str, _Prompts[P]] = OrderedDict()
        self._stages: BoundedTable[tuple[str, str], _Stage[P]] = BoundedTable(_Stage, _MAX_STAGES)

    def note(self, workflow_id: str, workflow_type: str, stage: str, prompt: P) -> None:
        """A prompt of the stage was sent."""
        known = self._workflows.setdefault(workflow_id, _Prompts())
        self._workflows.move_to_end(workflow_id)
        learned = self._stages.at((workflow_type, stage))
        latest = known.stages.get(stage)
        if latest is None:
            known.stages[stage] = _Latest(prompt)
            self._count(known, self._length(prompt))
        else:
            shared = self._common(latest.prompt, prompt)
            self._count(known, self._length(prompt) - self._length(latest.prompt))
            latest.prompt = prompt
            latest.num_shared = shared if shared >= WORTH_KEEPING else 0
            if latest.num_shared:
                learned.tail.add(float(self._length(prompt) - shared))
        if len(known.stages) > _MAX_STAGES_OF_ONE:
            oldest = known.stages.pop(next(iter(known.stages)))
            self._count(known, -self._length(oldest.prompt))
        self._learn_template(learned, workflow_id, prompt)
        while self._num_tokens > self._max_tokens and len(self._workflows) > 1:
            self.release(next(iter(self._workflows)))

    def expected(self, workflow_id: str, workflow_type: str, stage: str) -> tuple[P, int] | None:
        """A prompt, and with how many of its tokens the stage's next one will begin.

        None when nothing is known, or too little to be worth a step.
        """
        learned = self._stages.get((workflow_type, stage))
        known = self._workflows.get(workflow_id)
        latest = known.stages.get(stage) if known is not None else None
        if latest is not None:
            num_tokens = latest.num_shared
            if not num_tokens and learned is not None and learned.tail.count:
                num_tokens = self._length(latest.prompt) - math.ceil(learned.tail.mean)
            if num_tokens >= WORTH_KEEPING:
                return latest.prompt, num_tokens
        if learned is None or learned.prompt is None or not learned.num_tokens:
            return None
        return learned.prompt, learned.num_tokens

    def release(self, workflow_id: str) -> None:
        """The workflow has ended: its prompts are forgotten."""
        known = self._workflows.pop(workflow_id, None)
        if known is not None:
            self._num_tokens -= known.num_tokens

    def _count(self, known: _Prompts[P], num_tokens: int) -> None:
        known.num_tokens += num_tokens
        self._num_tokens += num_tokens

    def _learn_template(self, stage: _Stage[P], workflow_id: str, prompt: P) -> None:
        if stage.prompt is None:
            stage.prompt, stage.workflow_id = prompt, workflow_id
        elif stage.workflow_id != workflow_id:
            shared = self._common(stage.prompt, prompt)
            if shared >= WORTH_KEEPING or not stage.num_tokens:
                stage.prompt, stage.workflow_id = prompt, workflow_id
                stage.num_tokens = shared if shared >= WORTH_KEEPING else 0
