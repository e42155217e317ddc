"""Values of text columns, looked for in a table's first rows, so that reading stays quick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hexgen_sglang.text2sql.schema import Column, Table, quoted
from hexgen_sglang.text2sql.source import Dialect

_SAMPLED_ROWS = 1_000
_MAX_VALUE_CHARS = 24
_MAX_CATEGORIES = 8

Rows = Callable[[str], list[tuple[object, ...]]]


def sampled(rows: Rows, table: Table, dialect: Dialect, num_samples: int) -> tuple[Column, ...]:
    """The table's columns, those of text with their most frequent short values."""
    return tuple(
        _with_samples(rows, table.name, column, dialect, num_samples) if column.is_text else column
        for column in table.columns
    )


def _with_samples(
    rows: Rows, table: str, column: Column, dialect: Dialect, num_samples: int
) -> Column:
    # SQLite's columns hold anything, whatever they are declared to hold.
    is_text = "typeof(value) = 'text' AND " if dialect is Dialect.SQLITE else ""
    length = "char_length" if dialect is Dialect.MYSQL else "length"
    found = rows(
        f"SELECT value, count(*) FROM (SELECT {quoted(column.name, dialect)} AS value "
        f"FROM {quoted(table, dialect)} LIMIT {_SAMPLED_ROWS}) AS sampled "
        f"WHERE {is_text}{length}(value) BETWEEN 1 AND {_MAX_VALUE_CHARS} "
        "GROUP BY value ORDER BY count(*) DESC, value"
    )
    counts = [int(str(count)) for _, count in found]
    values = [" ".join(str(value).split()).replace("'", "''") for value, _ in found[:num_samples]]
    is_category = 1 < len(found) <= _MAX_CATEGORIES and sum(counts) >= 3 * len(found)
    return replace(column, samples=tuple(f"'{value}'" for value in values), is_category=is_category)
