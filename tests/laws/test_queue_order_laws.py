"""Whatever happens to a queue between steps, it is ordered as the registry's policy says."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from hexgen_sglang.plugin.ordering import QueueOrder
from hexgen_sglang.plugin.request_view import ARRIVAL_FIELD
from hexgen_sglang.policies.ordering import ORDERING, total_order_key

WORKFLOWS = ["a", "b", "c", None]
BUDGETS = st.none() | st.integers(1, 100_000)
POLICIES = st.sampled_from(list(ORDERING))
ARRIVALS = st.lists(
    st.tuples(st.sampled_from(WORKFLOWS), BUDGETS, st.floats(0, 5)), min_size=1, max_size=6
)
MOSTLY = st.sampled_from([True, True, True, False])


class Queue(RuleBasedStateMachine):
    """A scheduler's queue: requests come, are admitted, aborted and retracted; commands come.

    After most events there is a step, which orders the queue, as in a busy scheduler.
    """

    @initialize(ordering=POLICIES, arrivals=ARRIVALS)
    def start(self, ordering: str, arrivals: list[Any]) -> None:
        self.order = QueueOrder(ordering, {})
        self.policy = ORDERING.create(ordering)
        self.queue: list[Any] = []
        self.running: list[Any] = []
        self.now_s = 0.0
        self.num_made = 0
        self.num_expected = 0
        self.arrive(arrivals, step=True)

    @rule(arrivals=ARRIVALS, step=MOSTLY)
    def arrive(self, arrivals: list[Any], step: bool) -> None:
        for workflow, budget_ms, later_s in arrivals:
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
        self.step_or_not(step)

    @rule(count=st.integers(1, 4), step=MOSTLY)
    def admit(self, count: int, step: bool) -> None:
        taken, self.queue = self.queue[:count], self.queue[count:]  # SGLang makes a new list
        self.running.extend(taken)
        self.num_expected -= len(taken)
        self.step_or_not(step)

    @rule(place=st.integers(0, 5), step=MOSTLY)
    def abort(self, place: int, step: bool) -> None:
        if place < len(self.queue):
            del self.queue[place]
            self.num_expected -= 1
        self.step_or_not(step)

    @rule(step=MOSTLY)
    def retract(self, step: bool) -> None:
        if self.running:
            self.queue.append(self.running.pop())
            self.num_expected += 1
        self.step_or_not(step)

    @rule(workflow=st.sampled_from(["a", "b", "gone"]), budget_ms=BUDGETS, step=MOSTLY)
    def reprioritise(self, workflow: str, budget_ms: int | None, step: bool) -> None:
        deadline_s = None if budget_ms is None else self.now_s + budget_ms / 1000
        self.order.reprioritise(workflow, deadline_s, 0.0, self.now_s)
        self.step_or_not(step)

    @rule(ordering=POLICIES, step=MOSTLY)
    def switch(self, ordering: str, step: bool) -> None:
        self.order.use(ordering, {})
        self.policy = ORDERING.create(ordering)
        self.step_or_not(step)

    def step_or_not(self, step: bool) -> None:
        """Order the queue as a step does, and compare with the registry's policy."""
        if not step:
            return
        self.order.sort(self.queue)
        assert len(self.queue) == len({request.rid for request in self.queue}) == self.num_expected
        views = [self.order.view(request) for request in self.queue]
        keys = [total_order_key(self.policy, view) for view in views]
        assert keys == sorted(keys)


Queue.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestQueue = Queue.TestCase
