"""Laws of demotion: who stands back, for how long, and what a workflow needs alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hexgen_sglang.coordinator.demotion import Demotion
from hexgen_sglang.coordinator.incoming import GENERATE, IncomingRequest
from hexgen_sglang.coordinator.live_request import Attempt, QueuedRequest
from hexgen_sglang.coordinator.prompt import PromptShape
from hexgen_sglang.coordinator.queue import CentralQueue
from hexgen_sglang.coordinator.workflows import Outcome, RequestRecord, Workflow
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.core.worker import StepCosts
from hexgen_sglang.policies.estimators import PathWork, StageVisit
from hexgen_sglang.policies.estimators.alone import longest_paths
from hexgen_sglang.policies.ordering import ORDERING

ALONE = StepCosts(0.05, 3e-4, 0.0, 0.021, 0.0, 0.0)


class Waiting(QueuedRequest):
    """A request that only waits."""

    @property
    def is_placed(self) -> bool:
        return False

    def place(self, attempt: Attempt) -> None:
        raise AssertionError("nobody places here")


@dataclass(frozen=True)
class Asked:
    """A request of a law's draw."""

    arrival_s: float
    budget_s: float | None
    alone_s: float
    workflow: int


def made(number: int, asked: Asked, workflows: dict[int, Workflow]) -> Waiting:
    """The request, in the first drawn budget of its workflow."""
    arrival_s = asked.arrival_s
    workflow = workflows.get(asked.workflow)
    if workflow is None:
        deadline_s = None if asked.budget_s is None else arrival_s + asked.budget_s
        workflow = Workflow(str(asked.workflow), "t", "", True, arrival_s, deadline_s)
        workflows[asked.workflow] = workflow
    deadline_s = workflow.deadline_s
    view = RequestView(
        f"r{number:03d}",
        workflow.workflow_id,
        arrival_s,
        deadline_s=deadline_s,
        budget_s=None if deadline_s is None else deadline_s - workflow.started_s,
        predicted_remaining_s=2 * asked.alone_s,
        predicted_alone_s=asked.alone_s,
    )
    incoming = IncomingRequest(
        GENERATE, {}, None, None, True, False, PromptShape(1, 0, 9, ()), 1, None, 0
    )
    record = RequestRecord(view.request_id, "s", 1, 0, arrival_s)
    return Waiting(incoming=incoming, view=view, workflow=workflow, record=record, lane="m")


instants = st.integers(0, 60).map(float)
asked = st.builds(
    Asked,
    arrival_s=instants,
    budget_s=st.none() | st.integers(1, 30).map(float),
    alone_s=st.sampled_from([0.0, 1.0, 4.0, 9.0]),
    workflow=st.integers(0, 6),
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(asked, max_size=14),
    st.lists(instants, max_size=6),
    st.sampled_from([0.0, 0.5, 3]),
    st.sampled_from([0.0, 1.0]),
)
def test_hopeless_work_stands_back_and_only_for_so_long(
    drawn: list[Asked], looks: list[float], ageing: float, caution: float
) -> None:
    now_s = 0.0
    demotion = Demotion(ageing, lambda: now_s, caution=caution)
    queue = CentralQueue(ORDERING.create("least_slack"), 999, 99_999, lambda: 1.0, demotion)
    workflows: dict[int, Workflow] = {}
    waiting: list[Waiting] = []
    drawn.sort(key=lambda one: one.arrival_s)
    steps: list[tuple[float, Asked | None]] = [(one.arrival_s, one) for one in drawn]
    steps += [(instant_s, None) for instant_s in looks]
    for instant_s, asked_now in sorted(steps, key=lambda step: step[0]):
        now_s = instant_s
        if asked_now is not None:
            waiting.append(made(len(waiting), asked_now, workflows))
            queue.push(waiting[-1])
        queue.advance()
        order = list(queue.in_order(set()))
        assert sorted(one.view.request_id for one in order) == [
            one.view.request_id for one in waiting
        ]
        for one in order:
            deadline_s = one.workflow.deadline_s
            needed_s = (1 + caution) * one.view.predicted_alone_s
            if deadline_s is None or not needed_s or not ageing:
                assert not one.stands_back
                assert one.view.deadline_s == deadline_s
                continue
            budget_s = deadline_s - one.workflow.started_s
            if now_s < deadline_s - needed_s:
                assert not one.stands_back
                assert one.view.deadline_s == deadline_s
            else:
                since_s = one.workflow.demoted_s
                assert since_s is not None
                assert one.view.deadline_s is not None
                assert one.view.deadline_s >= since_s + ageing * budget_s
                assert since_s <= max(deadline_s, one.view.arrival_s)
                assert one.stands_back == (now_s < since_s + ageing * budget_s)
        keys = [(one.stands_back, one.queue_key) for one in order]
        assert keys == sorted(keys)
    for one in list(queue.in_order(set())):
        assert queue.remove(one)
    assert len(queue) == 0


@settings(max_examples=25, deadline=None)
@given(st.lists(asked, min_size=1, max_size=10), st.sampled_from([0.5, 2.0]))
def test_what_has_stood_back_long_enough_goes_before_what_comes_after(
    drawn: list[Asked], ageing: float
) -> None:
    now_s = 0.0
    queue = CentralQueue(
        ORDERING.create("least_slack"), 999, 99_999, lambda: 1.0, Demotion(ageing, lambda: now_s)
    )
    workflows: dict[int, Workflow] = {}
    for number, one in enumerate(sorted(drawn, key=lambda one: one.arrival_s)):
        now_s = one.arrival_s
        queue.push(made(number, one, workflows))
    # The stated bound: a workflow is demoted at its deadline at the latest, or when a request of
    # it comes after that, and stands back for `ageing` budgets.
    now_s = 61.0 + 31.0 + ageing * 31.0
    newcomer = made(500, Asked(now_s, 5.0, 1.0, 99), workflows)
    queue.push(newcomer)
    queue.advance()
    # (Latest start: best effort counts as 30 s after it came.)
    assert list(queue.in_order(set()))[-1] is newcomer


@pytest.mark.parametrize("ageing", [0.5, 2.0])
def test_nobody_starves_in_a_day_of_overload(ageing: float) -> None:
    """A server that can do a request in 11 s gets one each 10 s, for 24 hours.

    From (1 + ageing) budgets after its arrival on a request goes before whatever comes then, so
    that it waits for no more than the work that has piled up by that instant.
    """
    now_s = 0.0
    demotion = Demotion(ageing, lambda: now_s)
    queue = CentralQueue(ORDERING.create("least_slack"), 99_999, 9_999_999, lambda: 1.0, demotion)
    waiting: dict[str, float] = {}
    number = served = 0
    free_s = longest_s = 0.0
    while number < 8_640 or len(queue):
        while number < 8_640 and 10.0 * number <= free_s:
            now_s = 10.0 * number
            budget_s = (60.0, 200.0, 600.0)[number % 3]
            request = made(number, Asked(now_s, budget_s, 4.0, number), {})
            waiting[request.view.request_id] = now_s + (1 + ageing) * budget_s
            queue.push(request)
            number += 1
        now_s = max(free_s, now_s)
        queue.advance()
        request = next(queue.in_order(set()))
        queue.remove(request)
        request.record.outcome = Outcome.COMPLETED
        aged_s = waiting.pop(request.view.request_id)
        assert now_s <= aged_s + 0.1 * min(aged_s, 86_400.0) + 11.0
        longest_s = max(longest_s, now_s - request.view.arrival_s)
        served += 1
        free_s = now_s + 11.0
    assert served == 8_640
    assert demotion.num_demoted > 4_000
    assert longest_s < 0.1 * 86_400.0 + 1.1 * (1 + ageing) * 600.0 + 11.0


def test_a_request_that_ended_is_not_looked_at_again() -> None:
    now_s = 0.0
    demotion = Demotion(1.0, lambda: now_s)
    queue = CentralQueue(ORDERING.create("least_slack"), 9_999, 9_999_999, lambda: 1.0, demotion)
    for number in range(3_000):
        request = made(number, Asked(0.0, 50.0, 1.0, number), {})
        queue.push(request)
        queue.remove(request)
        request.record.outcome = Outcome.COMPLETED
    assert len(demotion._watched) <= 1_024
    now_s = 100.0
    assert demotion.due() == []
    assert demotion.num_demoted == 0


visit = st.builds(
    lambda start, length, tokens: (float(start), float(start + length), tokens),
    st.integers(0, 30),
    st.integers(0, 12),
    st.integers(1, 400),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(visit, max_size=9))
def test_paths_are_the_longest_there_are(rows: list[tuple[float, float, int]]) -> None:
    rows.sort()
    visits = [
        StageVisit(f"s{at}", start, end, 0.0, 1, 0, tokens, 10)
        for at, (start, end, tokens) in enumerate(rows)
    ]
    found = longest_paths(visits)

    def gap_s(at: int) -> float:
        before = [one.end_s for one in visits if one.end_s <= visits[at].start_s]
        return visits[at].start_s - max(before) if before else 0.0

    def best_s(at: int) -> float:
        own = PathWork(1.0, visits[at].num_path_tokens, 10).seconds(ALONE)
        later = [
            gap_s(after) + best_s(after)
            for after in range(at + 1, len(visits))
            if visits[after].start_s >= visits[at].end_s
        ]
        return own + max(later, default=0.0)

    for at, work in enumerate(found):
        assert abs(work.seconds(ALONE) - best_s(at)) < 1e-9
