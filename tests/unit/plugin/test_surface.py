"""The reader of SGLang's sources finds what is there and says what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from hexgen_patches.declarations import AnyOf, Fact, Hook, Names, Need, Signature, Text
from hexgen_patches.manifest import HOOKS
from hexgen_sglang.core.errors import CompatibilityError
from hexgen_sglang.plugin.surface import SourceTree

SOURCE = """
import os
if os.name == "posix":
    LIMIT = 3

class Engine:
    field: int = 0
    def __init__(self, args, cache=None):
        self.queue, self.other = [], None
        self.batch: list = []
    def step(self, now, *, deep=False):
        self.policy.order(self.queue,
                          now)
    async def serve(self): ...

def launch(argv): return Engine(argv)
"""


@pytest.fixture
def tree(tmp_path: Path) -> SourceTree:
    (tmp_path / "sglang" / "srt").mkdir(parents=True)
    (tmp_path / "sglang" / "srt" / "engine.py").write_text(SOURCE)
    return SourceTree(tmp_path / "sglang")


ENGINE = "sglang.srt.engine.Engine"


@pytest.mark.parametrize(
    "what",
    [
        Signature(f"{ENGINE}.step", ("self", "now")),
        Signature(f"{ENGINE}.serve", ("self",)),
        Signature(ENGINE, ("self", "args")),
        Signature("sglang.srt.engine.launch", ("argv",)),
        Names(ENGINE, ("field", "queue", "other", "batch", "step", "serve")),
        Names("sglang.srt.engine", ("LIMIT", "Engine", "launch")),
        Text(f"{ENGINE}.step", "self.policy.order(self.queue, now)"),
        AnyOf((Names(ENGINE, ("gone",)), Names(ENGINE, ("field",)))),
    ],
)
def test_what_holds_is_found(tree: SourceTree, what) -> None:
    assert tree.fact(Fact(what, "")).problem is None


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        (Signature(f"{ENGINE}.stop", ("self",)), f"{ENGINE}.stop is missing"),
        (
            Signature(f"{ENGINE}.step", ("self", "then")),
            "parameters (self, now), known (self, then, ...)",
        ),
        (Names(ENGINE, ("field", "gone")), f"{ENGINE} has no gone"),
        (Names("sglang.srt.moved.Engine", ("field",)), "sglang.srt.moved.Engine is missing"),
        (Text(f"{ENGINE}.step", "self.policy.order(now)"), "does not contain"),
        (AnyOf((Names(ENGINE, ("x",)), Names(ENGINE, ("y",)))), "has no x; "),
    ],
)
def test_what_does_not_hold_is_named(tree: SourceTree, what, problem: str) -> None:
    finding = tree.fact(Fact(what, ""))
    assert not finding.ok
    assert problem in str(finding.problem)


def test_a_folder_without_sglang_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompatibilityError, match="not a source folder of SGLang"):
        SourceTree(tmp_path)


@pytest.mark.parametrize(
    ("target", "module"),
    [
        ("sglang.srt.a.b.Class.method", "sglang.srt.a.b"),
        ("sglang.srt.a.b.Class", "sglang.srt.a.b"),
        ("sglang.srt.a.b.function", "sglang.srt.a.b"),
    ],
)
def test_a_hook_knows_the_module_of_its_target(target: str, module: str) -> None:
    hook = Hook(
        target=target,
        kind="AFTER",
        ours="hexgen_patches.x:y",
        parameters=(),
        needs=frozenset({Need.ALWAYS}),
        why="",
        remove_when="",
    )
    assert hook.module == module


def test_every_hook_says_why_and_when_it_can_go() -> None:
    for hook in HOOKS:
        assert hook.needs
        assert len(hook.why) > 10
        assert len(hook.remove_when) > 10
        assert hook.kind in {"BEFORE", "AFTER", "AROUND", "REPLACE"}
