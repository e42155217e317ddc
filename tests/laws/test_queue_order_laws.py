"""Whatever happens to a queue between steps, it is ordered as the registry's policy says."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hexgen_sglang.plugin.ordering import QueueOrder
from hexgen_sglang.plugin.request_view import ARRIVAL_FIELD
from hexgen_sglang.policies.ordering import ORDERING, total_order_key

WORKFLOWS = ["a", "b", "c", None]
BUDGETS = st.none() | st.integers(1, 100_000)
POLICIES = st.sampled_from(list(ORDERING))


class Queue(RuleBasedStateMachine):
    """A scheduler's queue: requests come, are admitted, aborted and retracted; commands come."""

    @initialize(ordering=POLICIES)
    def start(self, ordering: str) -> None:
        self.order = QueueOrder(ordering, {})
        self.policy = ORDERING.create(ordering)
        self.queue: list[Any] = []
        self.running: list[Any] = []
        self.now_s = 0.0
        self.num_made = 0
        self.num_expected = 0
        self.is_sorted = True

    @rule(workflow=st.sampled_from(WORKFLOWS), budget_ms=BUDGETS, later_s=st.floats(0, 5))
    def arrive(self, workflow: str | None, budget_ms: int | None, later_s: float) -> None:
        self.now_s += later_s
        self.num_made += 1
        params: dict[str, Any] = {ARRIVAL_FIELD: self.now_s}
        if workflow is not None:
            params["hexgen"] = {"workflow_id": workflow, "budget_ms": budget_ms}
        request = SimpleNamespace(
            rid=f"r{self.num_made}",
            sampling_params=SimpleNamespace(custom_params=params),
            origin_input_ids=array("q", [1]),
        )
        self.queue.append(request)
        self.num_expected += 1
        self.is_sorted = False

    @rule(count=st.integers(1, 4))
    def admit(self, count: int) -> None:
        taken, self.queue = self.queue[:count], self.queue[count:]  # SGLang makes a new list
        self.running.extend(taken)
        self.num_expected -= len(taken)

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        if self.queue:
            del self.queue[data.draw(st.integers(0, len(self.queue) - 1))]
            self.num_expected -= 1

    @rule()
    def retract(self) -> None:
        if self.running:
            self.queue.append(self.running.pop())
            self.num_expected += 1
            self.is_sorted = False

    @rule(workflow=st.sampled_from(["a", "b", "gone"]), budget_ms=BUDGETS)
    def reprioritise(self, workflow: str, budget_ms: int | None) -> None:
        deadline_s = None if budget_ms is None else self.now_s + budget_ms / 1000
        self.order.reprioritise(workflow, deadline_s, 0.0, self.now_s)
        self.is_sorted = False

    @rule(ordering=POLICIES)
    def switch(self, ordering: str) -> None:
        self.order.use(ordering, {})
        self.policy = ORDERING.create(ordering)
        self.is_sorted = False

    @rule()
    def step(self) -> None:
        self.order.sort(self.queue)
        self.is_sorted = True

    @invariant()
    def ordered_as_the_registry_says(self) -> None:
        if not hasattr(self, "order"):
            return
        assert len(self.queue) == len({request.rid for request in self.queue}) == self.num_expected
        if self.is_sorted:
            keys = [
                total_order_key(self.policy, self.order.view(request)) for request in self.queue
            ]
            assert keys == sorted(keys)


Queue.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestQueue = Queue.TestCase
