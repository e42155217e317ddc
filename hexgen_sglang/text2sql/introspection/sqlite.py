"""Reads an SQLite file's catalogue.

SQLite keeps no comments, but it keeps the text of CREATE TABLE: comments in it, behind the
columns or before them, are taken for theirs.
"""

from __future__ import annotations

import sqlite3
import urllib.parse
from collections.abc import Iterator
from contextlib import closing, contextmanager

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.text2sql.schema import Column, Table
from hexgen_sglang.text2sql.source import Source

_BUSY_TIMEOUT_S = 5.0


@contextmanager
def open_reader(source: Source) -> Iterator[SqliteReader]:
    """A reader of the file.

    Raises:
        ConfigError: it is damaged.
    """
    uri = f"file:{urllib.parse.quote(source.location)}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S)) as connection:
            connection.text_factory = lambda data: data.decode("utf-8", "replace")
            yield SqliteReader(connection)
    except sqlite3.Error as error:
        raise ConfigError(f"db={source.name!r}: {error}") from error


class SqliteReader:
    """A `Reader` over an open connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        return self._connection.execute(sql).fetchall()

    def tables(self) -> list[Table]:
        rows = self._connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'view') "
            "AND name NOT LIKE 'sqlite~_%' ESCAPE '~' ORDER BY rowid"
        ).fetchall()
        return [self._table(name, sql or "") for name, sql in rows]

    def _table(self, name: str, sql: str) -> Table:
        references = self._references(name)
        comment, comments = comments_in(sql)
        rows = self._connection.execute(
            "SELECT name, type, pk FROM pragma_table_info(?)", (name,)
        ).fetchall()
        columns = [
            Column(
                column,
                declared.upper(),
                bool(key),
                references.get(column.lower()),
                comment=comments.get(column.lower(), ""),
            )
            for column, declared, key in rows
        ]
        return Table(name, tuple(columns), comment)

    def _references(self, table: str) -> dict[str, str]:
        """Column -> "table.column"; a key that names no column points at the other's own key."""
        found = {}
        for target, source, column in self._connection.execute(
            'SELECT "table", "from", "to" FROM pragma_foreign_key_list(?)', (table,)
        ).fetchall():
            found[source.lower()] = f"{target}.{column or self._key_of(target)}"
        return found

    def _key_of(self, table: str) -> str:
        row = self._connection.execute(
            "SELECT name FROM pragma_table_info(?) WHERE pk = 1", (table,)
        ).fetchone()
        return str(row[0]) if row else "rowid"


def comments_in(sql: str) -> tuple[str, dict[str, str]]:
    """A CREATE TABLE statement's comment on the table, and on each column in lower case."""
    if "--" not in sql and "/*" not in sql:
        return "", {}
    try:
        parsed = sqlglot.parse_one(sql, read="sqlite")
    except (SqlglotError, RecursionError):
        return "", {}
    columns = {
        column.name.lower(): _one_line(_comments_of(column))
        for column in parsed.find_all(exp.ColumnDef)
    }
    inside = {id(node) for column in parsed.find_all(exp.ColumnDef) for node in column.walk()}
    of_table = [
        comment
        for node in parsed.walk()
        if id(node) not in inside
        for comment in node.comments or ()
    ]
    return _one_line(of_table), {name: comment for name, comment in columns.items() if comment}


def _comments_of(column: exp.ColumnDef) -> list[str]:
    return [comment for node in column.walk() for comment in node.comments or ()]


def _one_line(comments: list[str]) -> str:
    return " ".join(" ".join(dict.fromkeys(comments)).split())
