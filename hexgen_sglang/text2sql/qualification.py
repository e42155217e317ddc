"""Which names of a query the schema does not have, and what was probably meant. Pure.

A database's error names one thing that it did not find. This says beside it where such a column
is, for the next round of correction. What cannot be parsed or resolved gives nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import traverse_scope

from hexgen_sglang.text2sql.schema import Schema, Table

_MAX_TABLES = 3
_MIN_LIKENESS = 0.6
_MAX_SQL_CHARS = 4_000


def remarks(sql: str, schema: Schema) -> tuple[str, ...]:
    """A remark on each unknown name, the first ones first: `name is in station, district`."""
    try:
        found = [] if len(sql) > _MAX_SQL_CHARS else list(_remarks(sql, schema))
    except (SqlglotError, RecursionError):
        return ()
    return tuple(dict.fromkeys(found))


def _remarks(sql: str, schema: Schema) -> Iterator[str]:
    parsed = sqlglot.parse_one(sql, read=schema.dialect.parser)
    scopes = traverse_scope(parsed)
    tables = [
        source.name
        for scope in scopes
        for source in scope.sources.values()
        if isinstance(source, exp.Table)
    ]
    unknown = [name for name in tables if schema.table(name) is None]
    if unknown:
        names = [table.name for table in schema.tables]
        yield from (f"there is {one}" for name in unknown for one in _like(name, names))
        return
    missing = [
        column
        for scope in scopes
        for column in scope.columns
        if isinstance(source := scope.sources.get(column.table), exp.Table)
        and not _has(schema.table(source.name), column.name)
    ]
    used = [table for name in tables if (table := schema.table(name)) is not None]
    for column in missing or _unresolved(parsed, schema):
        yield from _remark(column.name, used, schema)


def _unresolved(parsed: Any, schema: Schema) -> list[Any]:
    """Columns without a table that no table in reach has."""
    qualified = qualify(
        parsed,
        dialect=schema.dialect.parser,
        schema={
            table.name: {column.name: column.type or "TEXT" for column in table.columns}
            for table in schema.tables
        },
        validate_qualify_columns=False,
        quote_identifiers=False,
        identify=False,
        expand_stars=False,
    )
    return [column for scope in traverse_scope(qualified) for column in scope.unqualified_columns]


def _remark(name: str, used: list[Table], schema: Schema) -> Iterator[str]:
    holders = [table.name for table in schema.tables if _has(table, name)]
    if holders:
        yield f"{name} is in {', '.join(holders[:_MAX_TABLES])}"
        return
    names = list(dict.fromkeys(column.name for table in used for column in table.columns))
    yield from (f"there is {one}" for one in _like(name, names))


def _like(name: str, names: list[str]) -> list[str]:
    """The one that the name is most like, if it is."""
    by_lower = {one.lower(): one for one in names}
    close = difflib.get_close_matches(name.lower(), list(by_lower), 1, _MIN_LIKENESS)
    return [by_lower[one] for one in close]


def _has(table: Table | None, name: str) -> bool:
    return table is not None and any(one.name.lower() == name.lower() for one in table.columns)
