"""Import rules that import-linter cannot express; the others are in pyproject.toml."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "hexgen_sglang").rglob("*.py"))
OUTSIDE_PLUGIN = [p for p in FILES if "plugin" not in p.relative_to(ROOT).parts]


def imported(source: str) -> Iterator[str]:
    """Every module that the source imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def runtime_imports(source: str) -> list[str]:
    return [name for name in imported(source) if f"{name}.".startswith("sglang.srt.")]


@pytest.mark.parametrize(
    "source",
    [
        "import sglang.srt.server_args",
        "from sglang.srt import environ",
        "from sglang import srt",
        "def f():\n    from sglang.srt.managers.scheduler import Scheduler",
    ],
)
def test_the_rule_sees_every_form_of_import(source: str) -> None:
    assert runtime_imports(source)


def test_only_the_plugin_imports_the_runtime_of_sglang() -> None:
    assert len(OUTSIDE_PLUGIN) > 20
    found = {str(p.relative_to(ROOT)): runtime_imports(p.read_text()) for p in OUTSIDE_PLUGIN}
    assert {path: names for path, names in found.items() if names} == {}


def test_only_the_transport_imports_zmq() -> None:
    users = [
        str(p.relative_to(ROOT))
        for p in [*FILES, *sorted((ROOT / "patches").rglob("*.py"))]
        if any(f"{name}.".startswith("zmq.") for name in imported(p.read_text()))
    ]
    # One for our link, one for what SGLang itself publishes.
    assert users == [f"hexgen_sglang/transport/{name}.py" for name in ("kv_events", "zmq_link")]
