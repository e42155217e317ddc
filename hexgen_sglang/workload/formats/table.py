"""The authors' table: one row a request, `Text2SQLRequest_id, step_name, input_length,
output_length`, as CSV, JSON lines or Parquet; rows of one id belong to one workflow, in order.

Parquet needs pyarrow, which comes with SGLang and is not a requirement of ours.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.workload.formats.problem import problem, text, whole_number
from hexgen_sglang.workload.formats.published import PublishedRequest, to_workflow
from hexgen_sglang.workload.trace import Trace

FORMAT = "table"
COLUMNS = ("Text2SQLRequest_id", "step_name", "input_length", "output_length")

_Row = tuple[int | None, dict[str, Any]]


def read_csv(path: str, name: str, content: str) -> Trace:
    """The trace in the text of a CSV file with a header line.

    Raises:
        ConfigError: names file, line, field and value.
    """
    reader = csv.DictReader(io.StringIO(content))
    _check_columns(path, list(reader.fieldnames or []))
    return _to_trace(path, name, ((reader.line_num, row) for row in reader))


def read_jsonl(path: str, name: str, content: str) -> Trace:
    """The trace in the text of a JSON-lines file, one row a line.

    Raises:
        ConfigError: names file, line, field and value.
    """
    return _to_trace(path, name, _json_rows(path, content))


def read_parquet(path: str, name: str) -> Trace:
    """The trace in a Parquet file; rows are numbered from 1 in messages.

    Raises:
        ConfigError: pyarrow is missing, or names file, row, field and value.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(
            f"{path}: reading Parquet needs pyarrow, which is not installed "
            "(it comes with SGLang); a CSV or JSON-lines export of the table is read without it"
        ) from error
    table = parquet.read_table(path)
    _check_columns(path, list(table.column_names))
    rows = table.select(list(COLUMNS)).to_pylist()
    return _to_trace(path, name, enumerate(rows, start=1))


def _check_columns(path: str, columns: list[str]) -> None:
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise problem(
            path, 1, f"columns {missing} are missing; found {columns}, wanted {list(COLUMNS)}"
        )


def _json_rows(path: str, content: str) -> Iterator[_Row]:
    for line, raw in enumerate(content.splitlines(), start=1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw)
        except json.JSONDecodeError as error:
            raise problem(path, line, f"not valid JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise problem(path, line, f"{raw[:80]!r}: must be an object")
        yield line, row


def _to_trace(path: str, name: str, rows: Iterator[_Row] | Any) -> Trace:
    """Group the rows by workflow id, keeping the order of first appearance."""
    grouped: dict[str, list[PublishedRequest]] = {}
    lines: dict[str, int | None] = {}
    for line, row in rows:
        for column in COLUMNS:
            if row.get(column) is None:
                raise problem(path, line, f"{column}: missing")
        key = str(row["Text2SQLRequest_id"])
        lines.setdefault(key, line)
        grouped.setdefault(key, []).append(
            PublishedRequest(
                step=text(path, line, "step_name", row["step_name"]),
                num_input_tokens=whole_number(path, line, "input_length", row["input_length"]),
                num_output_tokens=whole_number(path, line, "output_length", row["output_length"]),
            )
        )
    if not grouped:
        raise problem(path, None, "no rows; must have at least one")
    workflows = []
    for key, published in grouped.items():
        try:
            workflows.append(to_workflow(key, published))
        except ConfigError as error:
            raise problem(path, lines[key], str(error)) from error
    return Trace(name=name, origin=path, format=FORMAT, workflows=tuple(workflows))
