"""Reads what a database looks like, for all kinds of databases through one interface.

Runs in the agent's process, once for each database, over a connection that can only read, with
queries of our own. A `Reader` for each kind knows its catalogue; the sampling of values is the
same for all.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.text2sql.introspection.samples import sampled
from hexgen_sglang.text2sql.schema import Schema, Table
from hexgen_sglang.text2sql.source import Dialect, Source, source_of

_READERS = {
    Dialect.SQLITE: "hexgen_sglang.text2sql.introspection.sqlite",
    Dialect.DUCKDB: "hexgen_sglang.text2sql.introspection.duckdb",
    Dialect.POSTGRESQL: "hexgen_sglang.text2sql.introspection.server",
    Dialect.MYSQL: "hexgen_sglang.text2sql.introspection.server",
}
_MAX_TABLES = 200
_MAX_COLUMNS = 2_000


class Reader(Protocol):
    """An open database, for our own queries."""

    def tables(self) -> list[Table]:
        """Tables and views that may be read, with keys and comments, without samples."""

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        """All rows of a query of ours."""


def open_reader(source: Source) -> AbstractContextManager[Reader]:
    """The reader for a source; its errors come out of it as ConfigError."""
    opened: AbstractContextManager[Reader] = importlib.import_module(
        _READERS[source.dialect]
    ).open_reader(source)
    return opened


def read_schema(db: str | Path | Source, num_samples: int = 3) -> Schema:
    """The schema of a database.

    Args:
        db: a file, or a server's URL.
        num_samples: example values for each text column, 0 to 20.

    Raises:
        ConfigError: no such database, damaged, without tables, with too many, or a user whose
            rights reach beyond its tables.
    """
    if not 0 <= num_samples <= 20:
        raise ConfigError(f"num_samples={num_samples}: must be 0 to 20")
    source = source_of(db)
    with open_reader(source) as reader:
        tables = reader.tables()
        num_columns = sum(len(table.columns) for table in tables)
        if not tables or len(tables) > _MAX_TABLES or num_columns > _MAX_COLUMNS:
            raise ConfigError(
                f"db={source.name!r}: has {len(tables)} tables and {num_columns} columns; "
                f"allowed: 1 to {_MAX_TABLES} tables and at most {_MAX_COLUMNS} columns"
            )
        if num_samples:
            tables = [
                replace(table, columns=sampled(reader.rows, table, source.dialect, num_samples))
                for table in tables
            ]
    return Schema(tuple(tables), source.dialect)
