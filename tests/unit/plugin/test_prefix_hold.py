"""Which requests wait for a prefix, and that none is lost."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hexgen_sglang.plugin.prefix_hold import PrefixHold


def req(name: str, shared: int, *, workflow: str = "w", cached: int = 0, own: int = 50) -> Any:
    """A prompt of which the first `shared` tokens are the workflow's, the rest its own."""
    common = [sum(map(ord, workflow)) * 10_000 + place for place in range(shared)]
    rest = [sum(map(ord, name)) * 1_000_000 + place for place in range(own)]
    return SimpleNamespace(
        rid=name,
        workflow=workflow,
        origin_input_ids=array("q", common + rest),
        num_matched_prefix_tokens=cached,
    )


def hold() -> PrefixHold:
    """A fresh one."""
    return PrefixHold(lambda request: request.workflow)


def held_of(queue: list[Any], in_progress: list[Any] = ()) -> list[str]:  # type: ignore[assignment]
    """Names of what is held; the rest stays in `queue`, in order."""
    one = hold()
    one.begin(in_progress, ())
    before = list(queue)
    one.take_out(queue)
    held = one.give_back()
    assert sorted(r.rid for r in [*queue, *held]) == sorted(r.rid for r in before)
    assert one.give_back() == []
    return [request.rid for request in held]


def test_siblings_wait_for_the_first_of_them() -> None:
    queue = [req("a", 900), req("b", 900), req("c", 900)]
    assert held_of(queue) == ["b", "c"]
    assert [request.rid for request in queue] == ["a"]


def test_a_sibling_waits_for_a_prompt_in_progress() -> None:
    assert held_of([req("b", 900)], [req("a", 900)]) == ["b"]


def test_what_the_cache_has_already_is_not_waited_for() -> None:
    assert held_of([req("a", 900, cached=850), req("b", 900, cached=850)]) == []


def test_little_in_common_is_not_worth_waiting_for() -> None:
    assert held_of([req("a", 127), req("b", 127)]) == []
    assert held_of([req("a", 128), req("b", 128)]) == ["b"]


def test_workflows_do_not_wait_for_each_other() -> None:
    assert held_of([req("a", 900), req("b", 900, workflow="v")]) == []


def test_prompts_that_part_early_are_not_held() -> None:
    first, second = req("a", 900), req("b", 900)
    second.origin_input_ids[5] = -1
    assert held_of([first, second]) == []


def test_one_that_is_the_beginning_of_the_other_counts_as_shared() -> None:
    assert held_of([req("a", 400, own=0), req("b", 900)]) == ["b"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("wv"), st.integers(0, 400), st.integers(0, 400)), max_size=8
    ),
    st.integers(0, 3),
)
def test_the_first_of_every_workflow_can_always_go(
    rows: list[tuple[str, int, int]], num_in_progress: int
) -> None:
    requests = [
        req(f"r{number}", shared, workflow=workflow, cached=min(cached, shared))
        for number, (workflow, shared, cached) in enumerate(rows)
    ]
    in_progress, queue = requests[:num_in_progress], requests[num_in_progress:]
    busy = {request.workflow for request in in_progress}
    heads = {}
    for request in queue:
        heads.setdefault(request.workflow, request.rid)
    held = held_of(queue, in_progress)
    assert not {rid for workflow, rid in heads.items() if workflow not in busy} & set(held)
