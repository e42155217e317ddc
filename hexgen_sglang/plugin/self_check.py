"""Whether our hooks are really in place in this process.

SGLang only logs a hook whose target is gone, and ignores a hook on a target that was patched
before. So the launching process and each scheduler check for themselves, and refuse to serve.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hexgen_patches.declarations import Hook
from hexgen_patches.manifest import HOOKS
from hexgen_sglang.core.errors import CompatibilityError


@dataclass(frozen=True)
class HookStatus:
    """One hook: in place with the signature that we know, or what is wrong with it."""

    hook: Hook
    problem: str | None

    @property
    def ok(self) -> bool:
        return self.problem is None


def sglang_version() -> str:
    """Version of the installed SGLang.

    Raises:
        CompatibilityError: none is installed.
    """
    try:
        return importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError as error:
        raise CompatibilityError("SGLang is not installed in this Python environment") from error


def status_of(hook: Hook) -> HookStatus:
    """Look at the target as SGLang would call it now."""
    try:
        current = _raw_attribute(hook.target)
    except (ImportError, AttributeError) as error:
        return HookStatus(hook, f"missing: {error}")
    ours = pkgutil.resolve_name(hook.ours)
    original = _original(hook, current, ours)
    if original is None:
        return HookStatus(hook, "our hook is not applied to it")
    names = _parameter_names(original)
    if names[: len(hook.parameters)] != list(hook.parameters):
        known = ", ".join(hook.parameters)
        return HookStatus(hook, f"parameters ({', '.join(names)}), known ({known}, ...)")
    for name in hook.also_bound_in:
        if pkgutil.resolve_name(name) is not ours:
            return HookStatus(hook, f"{name} is not ours")
    return HookStatus(hook, None)


def require(hooks: Iterable[Hook]) -> None:
    """Do nothing if every hook is in place.

    Raises:
        CompatibilityError: names the targets that are not, and the SGLang version.
    """
    broken = [status for hook in hooks if not (status := status_of(hook)).ok]
    if broken:
        reasons = "; ".join(f"{status.hook.target}: {status.problem}" for status in broken)
        raise CompatibilityError(
            f"refusing to serve with SGLang {sglang_version()}: {reasons}. "
            "Supported: see `hexgen-sglang doctor`"
        )


def require_loaded_hooks() -> None:
    """`require` for the hooks that were registered in this process.

    Raises:
        CompatibilityError: as `require`.
    """
    require(hook for hook in HOOKS if is_registered(hook))


def is_registered(hook: Hook) -> bool:
    """Whether this process has handed the hook to SGLang; the target may still be missing."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    ours = pkgutil.resolve_name(hook.ours) if hook.target in HookRegistry._hooks else None
    registered = HookRegistry._hooks.get(hook.target, ())
    return ours is not None and any(present is ours for _, present, _ in registered)


def _raw_attribute(target: str) -> Any:
    """What `target` leads to; of a method its function, without class- or staticmethod."""
    owner_path, _, name = target.rpartition(".")
    owner = pkgutil.resolve_name(owner_path)
    if not isinstance(owner, type):
        return getattr(owner, name)
    found = inspect.getattr_static(owner, name)
    return found.__func__ if isinstance(found, classmethod | staticmethod) else found


def _original(hook: Hook, current: Any, ours: Any) -> Any | None:
    """SGLang's own object behind `current`, or None when ours is not in the way to it."""
    if hook.kind == "REPLACE" and isinstance(ours, type):
        return ours.__mro__[1] if current is ours else None
    is_ours = False
    while True:
        cells = getattr(current, "__closure__", None) or ()
        is_ours = is_ours or any(_content(cell) is ours for cell in cells)
        inner = getattr(current, "__wrapped__", None)
        if inner is None:
            return current if is_ours else None
        current = inner


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _parameter_names(function: Any) -> list[str]:
    if isinstance(function, type):
        function = function.__init__
    return list(inspect.signature(function, follow_wrapped=True).parameters)
