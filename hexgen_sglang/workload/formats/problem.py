"""How a reader says what is wrong with a trace file."""

from __future__ import annotations

from hexgen_sglang.core.errors import ConfigError


def problem(path: str, line: int | None, message: str) -> ConfigError:
    """An error that names file, line (when known), and in `message` field and value."""
    where = path if line is None else f"{path}:{line}"
    return ConfigError(f"{where}: {message}")


def whole_number(path: str, line: int | None, field: str, value: object) -> int:
    """`value` as a token count, accepting only a whole number of at least 1.

    Text is read as a decimal number, since a CSV file has nothing else.

    Raises:
        ConfigError: names file, line, field and value.
    """
    number = value
    if isinstance(value, str):
        text = value.strip()
        number = int(text) if text.isascii() and text.isdigit() else None
    elif isinstance(value, float) and value.is_integer():
        number = int(value)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise problem(path, line, f"{field}={value!r}: must be a whole number >= 1")
    return number


def text(path: str, line: int | None, field: str, value: object) -> str:
    """`value` as a non-empty text.

    Raises:
        ConfigError: names file, line, field and value.
    """
    if not isinstance(value, str) or not value.strip():
        raise problem(path, line, f"{field}={value!r}: must be a non-empty text")
    return value
