"""Plain data into checked structs: what a file or a message says, or an error that helps.

Used wherever settings are read. Files are opened elsewhere.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from hexgen_sglang.core.errors import ConfigError

_T = TypeVar("_T")


def convert(raw: object, kind: type[_T], where: str) -> _T:
    """Validate plain data as `kind`, strictly.

    Raises:
        ConfigError: names `where`, the field, its value and the allowed range.
    """
    try:
        return msgspec.convert(raw, kind, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}{_offender(raw, str(error))}") from error


def _offender(raw: Any, message: str) -> str:
    """`; value 70000` for a message that ends in "at `$.port`": msgspec leaves the value out."""
    _, marker, path = message.rpartition("`$.")
    if not marker:
        return ""
    for step in path.rstrip("`").replace("[", ".").replace("]", "").split("."):
        try:
            raw = raw[int(step)] if isinstance(raw, list | tuple) else raw[step]
        except (KeyError, IndexError, TypeError, ValueError):
            return ""
    return f"; value {repr(raw)[:80]}"
