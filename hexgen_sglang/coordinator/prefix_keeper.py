"""Tells workers which workflows will come back, so that they keep those prefixes meanwhile.

Knows what workers cannot: that a stage has ended everywhere, how long its workflows stay away,
and when one has ended or cannot meet its deadline any more. What a worker does about it is
`policies.retention`'s. Runs in the coordinator and in the simulator.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from hexgen_sglang.coordinator.live_request import QueuedRequest
from hexgen_sglang.coordinator.prewarmer import Prewarmer
from hexgen_sglang.coordinator.workflows import Workflow
from hexgen_sglang.policies.retention import StageGaps
from hexgen_sglang.protocol.messages import Release, Retain

_MAX_WORKFLOWS = 10_000

Tell = Callable[[str, "Retain | Release"], None]


@dataclass(slots=True)
class _Held:
    """Where a workflow's prefixes are, and since when it is between two stages."""

    worker_ids: dict[str, None] = field(default_factory=dict)
    left_s: float | None = None
    stage: str = ""
    lane: str = ""


class PrefixKeeper:
    """Follows the workflows whose prefixes are at workers that keep them, or compute them ahead.

    Args:
        tell: hands a message to a worker by its id; must not wait.
        keeps: whether that worker keeps prefixes or prewarms; others are not told anything.
        prewarmer: told of prompts and of pauses; None: nothing is sent ahead.
    """

    def __init__(
        self, tell: Tell, keeps: Callable[[str], bool], prewarmer: Prewarmer | None = None
    ) -> None:
        self._tell = tell
        self._keeps = keeps
        self._prewarmer = prewarmer
        self._gaps = StageGaps()
        self._held: OrderedDict[str, _Held] = OrderedDict()

    def placed(self, request: QueuedRequest, worker_id: str, now_s: float) -> None:
        """A request goes to a worker."""
        workflow = request.workflow
        if not workflow.is_tagged or not self._keeps(worker_id):
            return
        held = self._held.get(workflow.workflow_id)
        if held is None:
            held = self._held[workflow.workflow_id] = _Held()
            if len(self._held) > _MAX_WORKFLOWS:
                self._held.popitem(last=False)  # its workers forget it by themselves
        left_stage = None
        if held.left_s is not None:
            self._gaps.note(workflow.workflow_type, held.stage, now_s - held.left_s)
            left_stage, held.left_s = held.stage, None
        held.lane = request.lane
        held.worker_ids[worker_id] = None
        if self._prewarmer is not None:
            self._prewarmer.placed(request, worker_id, left_stage)

    def ended(self, workflow: Workflow, stage: str, now_s: float) -> None:
        """A request of that stage ended, however; its workflow may have ended with it."""
        held = self._held.get(workflow.workflow_id)
        if held is None or workflow.num_open:
            return
        if workflow.ended_s is not None:
            self._release(workflow)
            return
        held.left_s, held.stage = now_s, stage
        if _is_hopeless(workflow, now_s):
            self._tell_all(held, Release(workflow.workflow_id))
            return
        ttl_s = self._gaps.ttl_s(workflow.workflow_type, stage)
        self._tell_all(held, Retain(workflow.workflow_id, ttl_s * 1_000))
        if self._prewarmer is not None:
            gap_s = self._gaps.usual_s(workflow.workflow_type, stage)
            told = self._prewarmer.left(workflow, stage, held.lane, gap_s, ttl_s)
            if told is not None:
                held.worker_ids[told] = None

    def over(self, workflow: Workflow) -> None:
        """The workflow ended, by its last request, idleness or cancellation."""
        self._release(workflow)

    def _release(self, workflow: Workflow) -> None:
        held = self._held.pop(workflow.workflow_id, None)
        if held is not None:
            self._tell_all(held, Release(workflow.workflow_id))
        if self._prewarmer is not None:
            self._prewarmer.over(workflow)

    def _tell_all(self, held: _Held, message: Retain | Release) -> None:
        for worker_id in held.worker_ids:
            self._tell(worker_id, message)


def _is_hopeless(workflow: Workflow, now_s: float) -> bool:
    """Its deadline has passed, or is known to be out of reach."""
    if workflow.deadline_s is None:
        return False
    return workflow.deadline_s < now_s or workflow.demoted_s is not None
