"""Reads a DuckDB file's catalogue, which has comments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import duckdb

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.text2sql.schema import Column, Table
from hexgen_sglang.text2sql.source import Source

_TABLES = (
    "SELECT table_name, comment, table_oid FROM duckdb_tables() WHERE NOT internal "
    "AND database_name = current_database() AND schema_name = 'main' "
    "UNION ALL SELECT view_name, comment, view_oid FROM duckdb_views() WHERE NOT internal "
    "AND database_name = current_database() AND schema_name = 'main' ORDER BY 3"
)
_COLUMNS = (
    "SELECT column_name, data_type, comment FROM duckdb_columns() "
    "WHERE database_name = current_database() AND schema_name = 'main' AND table_name = ? "
    "ORDER BY column_index"
)
_KEYS = (
    "SELECT constraint_type, constraint_column_names, referenced_table, referenced_column_names "
    "FROM duckdb_constraints() WHERE database_name = current_database() "
    "AND schema_name = 'main' AND table_name = ?"
)


@contextmanager
def open_reader(source: Source) -> Iterator[DuckdbReader]:
    """A reader of the file.

    Raises:
        ConfigError: it is damaged, of another version, or open for writing elsewhere.
    """
    try:
        config: dict[str, str | bool | int | float | list[str]] = {
            "enable_external_access": "false",
            "threads": "1",
        }
        with closing(duckdb.connect(source.location, read_only=True, config=config)) as connection:
            yield DuckdbReader(connection)
    except duckdb.Error as error:
        raise ConfigError(f"db={source.name!r}: {error}") from error


class DuckdbReader:
    """A `Reader` over an open connection; the schema `main` only."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        return self._connection.execute(sql).fetchall()

    def tables(self) -> list[Table]:
        return [
            Table(name, self._columns(name), " ".join((comment or "").split()))
            for name, comment, _ in self._connection.execute(_TABLES).fetchall()
        ]

    def _columns(self, table: str) -> tuple[Column, ...]:
        keys: set[str] = set()
        references: dict[str, str] = {}
        for kind, columns, target, targets in self._connection.execute(_KEYS, [table]).fetchall():
            if kind == "PRIMARY KEY":
                keys.update(columns)
            elif kind == "FOREIGN KEY":
                pairs = zip(columns, targets, strict=True)
                references |= {column: f"{target}.{other}" for column, other in pairs}
        return tuple(
            Column(
                name,
                kind.upper(),
                name in keys,
                references.get(name),
                comment=" ".join((comment or "").split()),
            )
            for name, kind, comment in self._connection.execute(_COLUMNS, [table]).fetchall()
        )
