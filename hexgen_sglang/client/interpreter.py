"""What SGLang's frontend interpreter knows and does not tell its backend, told.

Lives in the caller's process. `BaseBackend` declares `fork_program`, yet no supported
interpreter calls it, and `generate`/`select` are not told which variable they fill. Three
thin wrappers around `StreamExecutor` mend that; other backends see no difference.
"""

from __future__ import annotations

import functools
import inspect
import threading
from typing import Any

from hexgen_sglang.core.errors import CompatibilityError

# Method -> names of the parameters that the wrappers rely on. A contract test checks them in
# the sources of every supported version.
RELIED_ON = {
    "fork": ("self", "size", "position_ids_offset"),
    "_execute_gen": ("self", "expr"),
    "_execute_select": ("self", "expr"),
}
_lock = threading.Lock()


def install() -> None:
    """Wrap `StreamExecutor`, once for a process; later calls do nothing.

    Raises:
        CompatibilityError: the installed SGLang's interpreter lacks a method or parameter.
    """
    from sglang.lang.interpreter import StreamExecutor

    with _lock:
        if getattr(StreamExecutor, "hexgen_installed", False):
            return
        for method, parameters in RELIED_ON.items():
            found = _parameters(getattr(StreamExecutor, method, None))
            if found[: len(parameters)] != parameters:
                raise CompatibilityError(
                    f"sglang.lang.interpreter.StreamExecutor.{method}: expected parameters "
                    f"{parameters}, found {found}"
                )
        StreamExecutor.fork = _telling_fork(StreamExecutor.fork)
        for method in ("_execute_gen", "_execute_select"):
            setattr(StreamExecutor, method, _telling_name(getattr(StreamExecutor, method)))
        StreamExecutor.hexgen_installed = True


def variable_name(executor: Any) -> str | None:
    """The variable that the running `gen` or `select` of this executor fills; None: unnamed."""
    name: str | None = getattr(executor, "hexgen_variable", None)
    return name


def _telling_fork(original: Any) -> Any:
    @functools.wraps(original)
    def fork(self: Any, size: int = 1, position_ids_offset: Any = None) -> Any:
        children = original(self, size, position_ids_offset)
        self.backend.fork_program(self, children, position_ids_offset)
        return children

    return fork


def _telling_name(original: Any) -> Any:
    @functools.wraps(original)
    def execute(self: Any, expr: Any) -> Any:
        self.hexgen_variable = expr.name
        return original(self, expr)

    return execute


def _parameters(function: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters) if callable(function) else ()
