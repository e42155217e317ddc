"""What a database looks like: tables, columns, keys and a few of its values.

Read once for each database, in the agent's process, over a read-only connection. How it is
written into a prompt is the templates' business.
"""

from __future__ import annotations

import sqlite3
import urllib.parse
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.text2sql.sandbox import checked_database

# Values are looked for in the first rows only, so that reading a large database stays quick.
_SAMPLED_ROWS = 1_000
_MAX_VALUE_CHARS = 24
_MAX_CATEGORIES = 8
_NUMERIC = ("INT", "REAL", "NUM", "FLOA", "DOUB", "DEC")
_MAX_TABLES = 200
_MAX_COLUMNS = 2_000
_BUSY_TIMEOUT_S = 5.0
# Words that SQLite does not take as a bare name.
_RESERVED_TEXT = (
    "ADD ALL ALTER AND AS AUTOINCREMENT BETWEEN CASE CHECK COLLATE COMMIT CONSTRAINT CREATE "
    "DEFAULT DEFERRABLE DELETE DISTINCT DROP ELSE ESCAPE EXCEPT EXISTS FOREIGN FROM GROUP "
    "HAVING IF IN INDEX INSERT INTERSECT INTO IS ISNULL JOIN LIMIT NOT NOTHING NOTNULL NULL "
    "ON OR ORDER PRIMARY REFERENCES RETURNING SELECT SET TABLE THEN TO TRANSACTION UNION "
    "UNIQUE UPDATE USING VALUES WHEN WHERE "
)
_RESERVED = frozenset(_RESERVED_TEXT.split())


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        type: as declared, in upper case; "" when none is.
        is_key: part of the primary key.
        references: "table.column" of its foreign key, or None.
        samples: up to the wanted number of different values of a text column, as SQL text,
            the most frequent first.
        is_category: its values are few and repeat; then `samples` begins with the usual ones.
    """

    name: str
    type: str
    is_key: bool = False
    references: str | None = None
    samples: tuple[str, ...] = ()
    is_category: bool = False

    @property
    def is_text(self) -> bool:
        """Whether it is declared to hold text, or nothing at all."""
        return not self.type or any(word in self.type for word in ("CHAR", "TEXT", "CLOB"))

    @property
    def is_measure(self) -> bool:
        """Whether it holds numbers that can be averaged: no key, and of a numeric type."""
        numeric = any(word in self.type for word in _NUMERIC)
        return numeric and not self.is_key and self.references is None


@dataclass(frozen=True, slots=True)
class Table:
    """One table or view, with its columns in order."""

    name: str
    columns: tuple[Column, ...]

    @property
    def label(self) -> Column:
        """The column that names a row to people: `name` or the like, else text, else the first."""
        texts = [column for column in self.columns if column.is_text and not column.is_key]
        named = [one for one in texts if one.name.lower().endswith(("name", "title"))]
        return [*named, *texts, *self.columns][0]


@dataclass(frozen=True, slots=True)
class Schema:
    """A database's tables, in the order in which they were made."""

    tables: tuple[Table, ...]

    def table(self, name: str) -> Table | None:
        """The table of that name, compared without case; None when there is none."""
        return next((one for one in self.tables if one.name.lower() == name.lower()), None)


def read_schema(database: Path, num_samples: int = 3) -> Schema:
    """The schema of an SQLite file.

    Args:
        database: its path.
        num_samples: example values for each text column, 0 to 20.

    Raises:
        ConfigError: not an SQLite file, damaged, without tables, or with too many.
    """
    if not 0 <= num_samples <= 20:
        raise ConfigError(f"num_samples={num_samples}: must be 0 to 20")
    path = checked_database(database)
    uri = f"file:{urllib.parse.quote(str(path))}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S)) as connection:
            connection.text_factory = lambda data: data.decode("utf-8", "replace")
            tables = tuple(
                _read_table(connection, name, num_samples) for name in _table_names(connection)
            )
    except sqlite3.Error as error:
        raise ConfigError(f"db={str(database)!r}: {error}") from error
    num_columns = sum(len(table.columns) for table in tables)
    if not tables or len(tables) > _MAX_TABLES or num_columns > _MAX_COLUMNS:
        raise ConfigError(
            f"db={str(database)!r}: has {len(tables)} tables and {num_columns} columns; allowed: "
            f"1 to {_MAX_TABLES} tables and at most {_MAX_COLUMNS} columns"
        )
    return Schema(tables)


def _table_names(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute(
        "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') "
        "AND name NOT LIKE 'sqlite~_%' ESCAPE '~' ORDER BY rowid"
    )
    return [name for (name,) in rows]


def _read_table(connection: sqlite3.Connection, table: str, num_samples: int) -> Table:
    references = _references(connection, table)
    columns = []
    for name, declared, key in connection.execute(
        "SELECT name, type, pk FROM pragma_table_info(?)", (table,)
    ).fetchall():
        column = Column(name, declared.upper(), bool(key), references.get(name.lower()))
        if column.is_text and num_samples:
            samples, is_category = _samples(connection, table, name, num_samples)
            column = replace(column, samples=samples, is_category=is_category)
        columns.append(column)
    return Table(table, tuple(columns))


def _references(connection: sqlite3.Connection, table: str) -> dict[str, str]:
    """Column -> "table.column"; a key that names no column points at the other's own key."""
    found = {}
    for target, source, column in connection.execute(
        'SELECT "table", "from", "to" FROM pragma_foreign_key_list(?)', (table,)
    ).fetchall():
        found[source.lower()] = f"{target}.{column or _key_of(connection, target)}"
    return found


def _key_of(connection: sqlite3.Connection, table: str) -> str:
    row = connection.execute(
        "SELECT name FROM pragma_table_info(?) WHERE pk = 1", (table,)
    ).fetchone()
    return str(row[0]) if row else "rowid"


def _samples(
    connection: sqlite3.Connection, table: str, column: str, num_samples: int
) -> tuple[tuple[str, ...], bool]:
    """The most frequent short values of the first rows, and whether they are categories."""
    rows = connection.execute(
        f"SELECT value, count(*) FROM (SELECT {quoted(column)} AS value FROM {quoted(table)} "
        "LIMIT ?) WHERE typeof(value) = 'text' AND length(value) BETWEEN 1 AND ? "
        "GROUP BY value ORDER BY count(*) DESC, value",
        (_SAMPLED_ROWS, _MAX_VALUE_CHARS),
    ).fetchall()
    num_rows = sum(count for _, count in rows)
    values = [" ".join(str(value).split()).replace("'", "''") for value, _ in rows[:num_samples]]
    is_category = 1 < len(rows) <= _MAX_CATEGORIES and num_rows >= 3 * len(rows)
    return tuple(f"'{value}'" for value in values), is_category


def quoted(name: str) -> str:
    """The name as SQL text, in double quotes where it needs them."""
    if name.isascii() and name.isidentifier() and name.upper() not in _RESERVED:
        return name
    return '"' + name.replace('"', '""') + '"'
