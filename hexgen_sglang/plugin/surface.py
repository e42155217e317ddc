"""Whether a tree of SGLang sources has what the manifest says. Reads files, imports nothing.

Used by `doctor` on the installed SGLang, and by the contract tests on each supported version.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hexgen_patches.declarations import AnyOf, Fact, Hook, Names, Signature, Text
from hexgen_sglang.core.errors import CompatibilityError

_Scope = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Finding:
    """What was looked for, and what is wrong with it; None: nothing."""

    subject: str
    problem: str | None

    @property
    def ok(self) -> bool:
        return self.problem is None


class SourceTree:
    """The sources of one SGLang, by dotted name.

    Args:
        root: the package folder `sglang` itself.

    Raises:
        CompatibilityError: `root` is no such folder.
    """

    def __init__(self, root: Path) -> None:
        if not (root / "srt").is_dir():
            raise CompatibilityError(f"{root}: not a source folder of SGLang (srt/ is missing)")
        self.root = root
        self._parsed = cache(lambda path: ast.parse(path.read_text(encoding="utf-8")))

    def hook(self, hook: Hook) -> Finding:
        """Whether the target of a hook is there with the parameters that we know."""
        problem = self._signature(hook.target, hook.parameters)
        return Finding(hook.target, problem)

    def fact(self, fact: Fact) -> Finding:
        """Whether a fact holds."""
        options = fact.what.options if isinstance(fact.what, AnyOf) else (fact.what,)
        problems = [self._problem(option) for option in options]
        subject = " or ".join(_subject(option) for option in options)
        failed = None if None in problems else "; ".join(str(problem) for problem in problems)
        return Finding(subject, failed)

    def _problem(self, what: Signature | Names | Text) -> str | None:
        if isinstance(what, Signature):
            return self._signature(what.target, what.parameters)
        owner = what.owner if isinstance(what, Names) else what.inside
        scope = self._find(owner)
        if scope is None:
            return f"{owner} is missing"
        if isinstance(what, Names):
            missing = sorted(set(what.names) - set(_names_in(scope)))
            return f"{owner} has no {', '.join(missing)}" if missing else None
        present = what.text in ast.unparse(scope).replace("\n", " ")
        return None if present else f"{owner} does not contain `{what.text}`"

    def _signature(self, target: str, parameters: tuple[str, ...]) -> str | None:
        scope = self._find(target)
        if isinstance(scope, ast.ClassDef):
            scope = _child(scope, "__init__")
        if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
            return f"{target} is missing"
        names = [argument.arg for argument in (*scope.args.posonlyargs, *scope.args.args)]
        if tuple(names[: len(parameters)]) == parameters:
            return None
        return f"parameters ({', '.join(names)}), known ({', '.join(parameters)}, ...)"

    def _find(self, dotted: str) -> _Scope | None:
        parts = dotted.split(".")[1:]
        folder = self.root
        while parts and (folder / parts[0]).is_dir():
            folder /= parts.pop(0)
        path = folder / f"{parts.pop(0)}.py" if parts else folder / "__init__.py"
        if not path.is_file():
            return None
        scope: _Scope | None = self._parsed(path)
        for name in parts:
            scope = _child(scope, name) if scope is not None else None
        return scope


def installed_tree() -> SourceTree:
    """The sources of the installed SGLang, without importing it.

    Raises:
        CompatibilityError: none is installed.
    """
    spec = importlib.util.find_spec("sglang")
    if spec is None or spec.origin is None:
        raise CompatibilityError("SGLang is not installed in this Python environment")
    return SourceTree(Path(spec.origin).parent)


def _subject(what: Signature | Names | Text) -> str:
    if isinstance(what, Signature):
        return f"{what.target}({', '.join(what.parameters)}, ...)"
    if isinstance(what, Names):
        return f"{what.owner}: {', '.join(what.names)}"
    return f"{what.inside}: {what.text}"


def _statements(scope: ast.AST) -> Iterator[ast.stmt]:
    """The statements of a scope, those under if, try and with included."""
    for field in ("body", "orelse", "finalbody", "handlers"):
        for statement in getattr(scope, field, ()):
            if isinstance(statement, ast.stmt):
                yield statement
            if isinstance(statement, ast.If | ast.Try | ast.With | ast.ExceptHandler):
                yield from _statements(statement)


def _child(scope: _Scope, name: str) -> _Scope | None:
    for statement in _statements(scope):
        kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(statement, kinds) and statement.name == name:
            return statement
    return None


def _names_in(scope: _Scope) -> Iterator[str]:
    """Names that a class or module defines: fields, methods, variables, attributes of `self`."""
    for statement in _statements(scope):
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield statement.name
        if isinstance(scope, ast.ClassDef) and isinstance(statement, ast.FunctionDef):
            yield from _set_on_self(statement)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for target in targets:
                for node in ast.walk(target):
                    if isinstance(node, ast.Name):
                        yield node.id


def _set_on_self(method: ast.FunctionDef) -> Iterator[str]:
    for node in ast.walk(method):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        ):
            yield node.attr
