"""How a hook, and a fact about SGLang that we rely on, are written down.

Plain data without imports of SGLang: the plugin registers from it, the self-check and `doctor`
verify it on the installed SGLang, the contract tests on the sources of every supported one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

SUPPORTED = ("0.5.17", "0.5.20", "0.5.23")  # read by the contract tests; what lies between holds


class Need(StrEnum):
    """What a server must have been asked for to need a hook."""

    ALWAYS = "always"
    ORDERING = "ordering"
    LINK = "link"
    EMULATE = "emulate"
    PREFIX_GROUPS = "prefix_groups"  # found in the scheduler's records, for attention on GPUs


@dataclass(frozen=True, kw_only=True)
class Hook:
    """One hook into SGLang.

    Attributes:
        target: dotted path of the hooked function or class.
        kind: BEFORE, AFTER, AROUND or REPLACE, as in SGLang's HookRegistry.
        ours: `module:name` of our function or class.
        parameters: how the target's parameters begin; of a class, those of its __init__.
        needs: the hook is applied when any of these was asked for.
        versions: SGLang versions in which this was read and tried.
        why: what it is for.
        remove_when: what SGLang would have to offer instead.
        also_bound_in: other dotted names that must lead to the replaced class.
    """

    target: str
    kind: str
    ours: str
    parameters: tuple[str, ...]
    needs: frozenset[Need]
    why: str
    remove_when: str
    versions: str = "0.5.17 to 0.5.23"
    also_bound_in: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The module of the target; class names begin with a capital letter."""
        parts = self.target.split(".")
        names = [part for part in parts if not part[0].isupper()]
        return ".".join(names[:-1] if len(names) == len(parts) else parts[: _first_class(parts)])


def _first_class(parts: list[str]) -> int:
    return next(index for index, part in enumerate(parts) if part[0].isupper())


@dataclass(frozen=True)
class Signature:
    """A function of SGLang that we call, or that calls us: its parameters begin so."""

    target: str
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Names:
    """A class or module has these fields, methods, attributes of `self` or variables."""

    owner: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Text:
    """A call site: the code inside `inside`, in `ast.unparse` form, contains `text`."""

    inside: str
    text: str


@dataclass(frozen=True)
class AnyOf:
    """One of these holds; SGLang moved the code between the supported versions."""

    options: tuple[Signature | Names | Text, ...]


@dataclass(frozen=True)
class Fact:
    """Something that holds in every supported SGLang, and what breaks without it."""

    what: Signature | Names | Text | AnyOf
    why: str
