"""The text form of accelerator profiles: TOML in, TOML out.

Pure text; whoever has a file reads and writes it.
"""

from __future__ import annotations

import math
import tomllib
from typing import Any

import msgspec

from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.core.strict import convert


def profile_from_toml(text: str, where: str) -> AcceleratorProfile:
    """The profile that a TOML document states; `where` names it in errors.

    Raises:
        ConfigError: not TOML, an unknown or missing field, a number without source, or a
            value out of range; names the field, the value and the range.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: {error}") from error
    _refuse_not_finite(raw, where)
    return convert(raw, AcceleratorProfile, where)


def profile_to_toml(profile: AcceleratorProfile, comment: str = "") -> str:
    """The document that `profile_from_toml` reads back as an equal profile.

    `comment` may have several lines; it comes first. TOML allows no control characters in it.
    """
    raw: dict[str, Any] = msgspec.to_builtins(profile)
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    tables: list[str] = []
    for name, value in raw.items():
        if value is None:
            continue
        if isinstance(value, dict) and "source" not in value:
            tables += ["", f"[{name}]", *_rows(value)]
            tables += [line for row in value.get("checks", ()) for line in _check(name, row)]
        else:
            lines.append(f"{name} = {_literal(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def _rows(table: dict[str, Any]) -> list[str]:
    """`key = value` lines; None has no TOML form, and rows of checks come as tables."""
    return [
        f"{name} = {_literal(value)}"
        for name, value in table.items()
        if value is not None and name != "checks"
    ]


def _check(table: str, row: dict[str, Any]) -> list[str]:
    return ["", f"[[{table}.checks]]", *_rows(row)]


def _literal(value: Any) -> str:
    """A TOML literal; JSON's strings and numbers are TOML's too, but for the character DEL."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_literal(item)}" for name, item in value.items()) + " }"
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")


def _refuse_not_finite(raw: object, where: str, path: str = "") -> None:
    """TOML knows nan and inf, which no comparison with a range would catch reliably."""
    if isinstance(raw, dict):
        for name, value in raw.items():
            _refuse_not_finite(value, where, f"{path}.{name}" if path else name)
    elif isinstance(raw, list):
        for index, value in enumerate(raw):
            _refuse_not_finite(value, where, f"{path}[{index}]")
    elif isinstance(raw, float) and not math.isfinite(raw):
        raise ConfigError(f"{where}: {path}={raw}: must be a finite number")
