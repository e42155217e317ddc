"""The model of sglang-router's tree: whose a prompt is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from hexgen_sglang.sim.engine import Engine
from hexgen_sglang.sim.fronts import Asked, Router, Segments
from hexgen_sglang.sim.router_tree import RouterTree

TEMPLATE = ("template", 100)


def test_a_prefix_belongs_to_the_worker_that_had_it_first() -> None:
    tree = RouterTree(0)
    tree.insert((TEMPLATE, ("a", 50)), "one")
    tree.insert((TEMPLATE, ("b", 50)), "two")
    assert tree.match((TEMPLATE, ("a", 50))) == (150, "one")
    assert tree.match((TEMPLATE, ("b", 20))) == (120, "two")
    assert tree.match((("template", 60),)) == (60, "one")
    tree.insert((TEMPLATE, ("a", 50)), "two")
    assert tree.match((TEMPLATE, ("a", 50))) == (150, "one")
    assert tree.match((("other", 9),))[0] == 0


def test_a_new_context_follows_another_with_the_same_first_digits() -> None:
    tree = RouterTree(0)
    tree.insert((TEMPLATE, ("a", 50)), "one")
    for number in range(40):
        tree.insert((TEMPLATE, (f"context {number}", 50)), f"worker {number}")
    owners = {tree.match((TEMPLATE, (f"new {number}", 50))) for number in range(200)}
    assert {matched for matched, _ in owners} == {100}
    assert len(owners) > 3


def asked(segments: Segments) -> Asked:
    """A request with that prompt."""
    return Asked("r", "w", "t", "s", 1, 0, False, None, segments, 1)


@pytest.mark.parametrize(("shared", "target"), [(31, "one"), (29, "two")])
def test_the_router_follows_a_prefix_of_more_than_30_per_cent(shared: int, target: str) -> None:
    chosen: list[str] = []
    engines = [cast(Engine, SimpleNamespace(name=name)) for name in ("one", "two")]
    router = Router(
        engines,
        lambda engine, _: chosen.append(engine.name),
        "cache_aware",
        0,
    )
    router.take(asked((("template", 50), ("a", 50))))
    router.take(asked((("template", shared), ("b", 100 - shared))))
    assert chosen == ["one", target]


def test_out_of_balance_the_router_takes_the_least_loaded() -> None:
    chosen: list[str] = []
    engines = [cast(Engine, SimpleNamespace(name=name)) for name in ("one", "two")]
    router = Router(
        engines,
        lambda engine, _: chosen.append(engine.name),
        "cache_aware",
        0,
    )
    for _ in range(66):
        router.take(asked((TEMPLATE,)))
    assert chosen == ["one"] * 65 + ["two"]
    router.left("one")
    router.take(asked((TEMPLATE,)))
    assert chosen[-1] == "one"
