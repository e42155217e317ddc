"""Finds out which format a trace is in and reads it.

`synthetic[:N[:seed]]` is made on the spot; anything else is a file. Parquet is told by its
first bytes, JSON by its first character, JSON lines by the fields of the first line, CSV by
its header.
"""

from __future__ import annotations

import json
from pathlib import Path

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.workload.formats import hexgen_flow, jsonl, table
from hexgen_sglang.workload.formats.problem import problem
from hexgen_sglang.workload.synthetic import SyntheticSettings, synthetic_trace
from hexgen_sglang.workload.trace import Trace

_SYNTHETIC = "synthetic"
_FORMATS = (
    "HexGen-Flow's JSON (a list of Text2SQLRequest lists), the authors' table "
    f"({', '.join(table.COLUMNS)}) as CSV, JSON lines or Parquet, our JSON lines "
    f'(first line {{"{jsonl.HEADER_FIELD}": 1}}), or synthetic[:N[:seed]]'
)


def load_trace(source: str | Path) -> Trace:
    """The trace called `source`: a file of any format above, or `synthetic[:N[:seed]]`.

    Raises:
        ConfigError: the file is missing or unreadable, no format fits, or its content is
            wrong; names file, line, field and value.
    """
    text = str(source)
    if text == _SYNTHETIC or text.startswith(_SYNTHETIC + ":"):
        return _make_synthetic(text)
    path = Path(source)
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start == b"PAR1":
            return table.read_parquet(text, path.stem)
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"trace {text}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"trace {text}: not UTF-8 text: {error.reason}") from error
    return _read_text(text, path.stem, content)


def _read_text(path: str, name: str, content: str) -> Trace:
    stripped = content.lstrip()
    if stripped.startswith("["):
        return hexgen_flow.read(path, name, content)
    if stripped.startswith("{"):
        first = stripped.splitlines()[0]
        try:
            row = json.loads(first)
        except json.JSONDecodeError as error:
            raise problem(path, 1, f"not valid JSON: {error.msg}; wanted {_FORMATS}") from error
        if table.COLUMNS[0] in row:
            return table.read_jsonl(path, name, content)
        if jsonl.HEADER_FIELD in row:
            return jsonl.read(path, name, content)
        raise problem(path, 1, f"fields {sorted(row)} fit no format; wanted {_FORMATS}")
    header = stripped.splitlines()[0] if stripped else ""
    if table.COLUMNS[0] in header.split(","):
        return table.read_csv(path, name, content)
    raise problem(path, 1, f"{header[:80]!r} fits no format; wanted {_FORMATS}")


def _make_synthetic(text: str) -> Trace:
    parts = text.split(":")[1:]
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f"trace {text!r}: must be synthetic[:N[:seed]] with whole numbers")
    numbers = [int(part) for part in parts]
    defaults = SyntheticSettings()
    return synthetic_trace(
        SyntheticSettings(
            num_workflows=numbers[0] if numbers else defaults.num_workflows,
            seed=numbers[1] if len(numbers) > 1 else defaults.seed,
        )
    )
