"""How many workflows may be in progress: as many as keep their contexts in the workers' memory.

Between its stages a workflow leaves its context in a worker's prefix cache. With more workflows
in progress than the KV memory holds contexts of, each throws out what another is about to need,
every stage computes its prompt again, and all get slower: thrashing, as with pages of processes
(P. J. Denning, "The Working Set Model for Program Behavior", CACM 11(5), 1968, whose remedy this
is). So a workflow that has not begun waits in the central queue while the contexts of those that
have would not leave room for its own. One that has begun never waits for this, and an idle worker
takes anything.

Only counting; the dispatcher asks and tells. Runs in the coordinator and in the simulator.
"""

from __future__ import annotations

from hexgen_sglang.coordinator.tenant_shares import TenantShares
from hexgen_sglang.coordinator.workflows import Workflow
from hexgen_sglang.policies.estimators import BoundedTable, RunningMean

# A workflow without an open request for this long is not about to use its context again.
_IDLE_S = 10.0
_MAX_TYPES = 1_024


class WorkingSet:
    """The workflows that have begun, by lane, and the size of their contexts.

    Args:
        limit: share of the lane's KV memory that their contexts may take, counted as if they
            shared nothing; 0: no limit.
        shares: of this memory, a tenant may take its own whatever others hold; None: all are
            taken for one tenant.

    Attributes:
        limit: as given; it may be changed to another one above 0, if it was above 0.
    """

    def __init__(self, limit: float, shares: TenantShares | None = None) -> None:
        self.limit = limit
        self._shares = shares
        self._begun: dict[str, dict[str, Workflow]] = {}
        self._usual: BoundedTable[str, RunningMean] = BoundedTable(RunningMean, _MAX_TYPES)
        self._counted: tuple[str, float, dict[str, float]] | None = None

    def admits(
        self, workflow: Workflow, lane: str, kv_capacity_tokens: int | None, now_s: float
    ) -> bool:
        """Whether a request of the workflow may go to a worker now.

        Args:
            workflow: untagged requests and workflows that have begun are always admitted.
            lane: the model it needs.
            kv_capacity_tokens: of the lane's workers together; None while one's is not known.
            now_s: the present instant.
        """
        if workflow.has_begun or not workflow.is_tagged or not self.limit:
            return True
        held = self._held_tokens(lane, now_s)
        usual = self._usual.get(workflow.workflow_type)
        if usual is None or kv_capacity_tokens is None:
            return True  # none of its type has ended, or nobody knows the memory
        most = self.limit * kv_capacity_tokens
        if sum(held.values()) + usual.mean <= most:
            return True
        if self._shares is None:
            return False
        tenant = workflow.tenant
        share = self._shares.share(tenant, held.keys() | self._shares.tenants_waiting.keys())
        return held.get(tenant, 0.0) + usual.mean <= share * most

    def note_placed(self, workflow: Workflow, lane: str, num_tokens: int) -> None:
        """A request of `num_tokens`, prompt and expected output, went to a worker."""
        if not workflow.is_tagged or not self.limit:
            return
        workflow.has_begun = True
        workflow.context_tokens = max(workflow.context_tokens, num_tokens)
        self._begun.setdefault(lane, {})[workflow.workflow_id] = workflow
        self._counted = None

    def _held_tokens(self, lane: str, now_s: float) -> dict[str, float]:
        """The contexts of those in progress, by tenant; what they will be, where small yet."""
        if self._counted is not None and self._counted[:2] == (lane, now_s):
            return self._counted[2]
        begun = self._begun.get(lane, {})
        over = [one for one in begun.values() if one.ended_s is not None]
        for workflow in over:
            del begun[workflow.workflow_id]
            self._usual.at(workflow.workflow_type).add(workflow.context_tokens)
            workflow.has_begun = False
            workflow.context_tokens = 0
        held: dict[str, float] = {}
        for workflow in begun.values():
            if workflow.num_open or now_s - workflow.last_active_s < _IDLE_S:
                usual = self._usual.get(workflow.workflow_type)
                expected = 0.0 if usual is None else usual.mean
                before = held.get(workflow.tenant, 0.0)
                held[workflow.tenant] = before + max(expected, workflow.context_tokens)
        self._counted = (lane, now_s, held)
        return held
