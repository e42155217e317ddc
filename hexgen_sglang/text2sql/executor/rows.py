"""What every engine's answer has in common: rows within limits, and cells that JSON knows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any


def answer(outcome: str, message: str = "") -> dict[str, Any]:
    """An answer without rows; its fields are those of `execution.Execution`."""
    return {
        "outcome": outcome,
        "columns": [],
        "rows": [],
        "truncated": False,
        "message": message,
    }


def out_of_time(request: dict[str, Any]) -> dict[str, Any]:
    """The answer for a statement that its time limit has ended."""
    return answer("limit", f"took longer than {request['time_s']:g} s")


def collect(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], request: dict[str, Any]
) -> dict[str, Any]:
    """The rows up to the request's limits; more of them are not read."""
    found: list[list[Any]] = []
    left_bytes = request["max_bytes"]
    truncated = False
    for row in rows:
        cells = [_cell(value) for value in row]
        left_bytes -= sum(len(cell) if isinstance(cell, str) else 8 for cell in cells)
        if len(found) == request["max_rows"] or left_bytes < 0:
            truncated = True
            break
        found.append(cells)
    return answer("rows" if found or truncated else "empty") | {
        "columns": [str(column) for column in columns],
        "rows": found,
        "truncated": truncated,
    }


def _cell(value: Any) -> Any:
    """Numbers and text as they are, blobs as `x'..'`, all else as text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return f"x'{bytes(value).hex()}'"
    if isinstance(value, Decimal):
        exact = value.is_finite() and value == value.to_integral_value() and abs(value) < 1 << 63
        return int(value) if exact else float(value)
    return str(value)
