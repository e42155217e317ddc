"""Reads the catalogue of a PostgreSQL or MySQL server's database, through SQLAlchemy.

Of PostgreSQL the schema that comes first on the user's search path, and of it what the user may
read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.text2sql.schema import Column, Table
from hexgen_sglang.text2sql.source import Dialect, Source

_READ_S = 30.0
_READABLE = (
    "SELECT relname FROM pg_catalog.pg_class WHERE relnamespace = current_schema()::regnamespace "
    "AND pg_catalog.has_table_privilege(oid, 'SELECT')"
)
_VIEW_COLUMNS = sqlalchemy.text(
    "SELECT column_name, column_type, column_comment FROM information_schema.columns "
    "WHERE table_schema = DATABASE() AND table_name = :view ORDER BY ordinal_position"
)


@contextmanager
def open_reader(source: Source) -> Iterator[ServerReader]:
    """A reader of the database, over one read-only connection.

    Raises:
        ConfigError: the server cannot be reached or refuses us, or its user has rights that
            reach beyond tables.
    """
    scheme = source.location.partition("://")[0]
    engine = sqlalchemy.create_engine(
        f"{scheme}://", creator=lambda: _connect(source), poolclass=NullPool
    )
    try:
        with engine.connect() as connection:
            yield ServerReader(connection, source.dialect)
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise ConfigError(f"db={source.name!r}: {str(cause).strip()}") from error
    finally:
        engine.dispose()


def _connect(source: Source) -> Any:
    """A connection of the driver's, as the executor makes it.

    Raises:
        ConfigError: the user has too many rights.
    """
    if source.dialect is Dialect.POSTGRESQL:
        from hexgen_sglang.text2sql.executor import postgresql

        opened = postgresql.connect(source.location, _READ_S)
        role = opened.execute(postgresql.DANGEROUS_ROLES).fetchone()
        right = None if role is None else f"the rights of {role[0]}"
    else:
        from hexgen_sglang.text2sql.executor import mysql

        opened = mysql.connect(source.location, _READ_S)
        right = "rights over the server" if mysql.has_dangerous_grant(opened) else None
    if right is not None:
        opened.close()
        raise ConfigError(
            f"db={source.name!r}: its user has {right}: give one that may only SELECT"
        )
    return opened


class ServerReader:
    """A `Reader` over an open connection."""

    def __init__(self, connection: sqlalchemy.Connection, dialect: Dialect) -> None:
        self._connection = connection
        self._dialect = dialect
        self._inspector = sqlalchemy.inspect(connection)

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        found = self._connection.execution_options(no_parameters=True).exec_driver_sql(sql)
        return [tuple(row) for row in found]

    def tables(self) -> list[Table]:
        tables = self._inspector.get_table_names()
        names = [*sorted(tables), *sorted(self._inspector.get_view_names())]
        if self._dialect is Dialect.POSTGRESQL:
            names += sorted(self._inspector.get_materialized_view_names())
            readable = {name for (name,) in self.rows(_READABLE)}
            names = [name for name in names if name in readable]
        return [self._table(name, name in tables) for name in names]

    def _table(self, name: str, is_table: bool) -> Table:
        inspector = self._inspector
        keys = set(inspector.get_pk_constraint(name)["constrained_columns"]) if is_table else set()
        references = {
            column: f"{key['referred_table']}.{other}"
            for key in (inspector.get_foreign_keys(name) if is_table else ())
            for column, other in zip(
                key["constrained_columns"], key["referred_columns"], strict=True
            )
        }
        columns = [
            Column(column, kind, column in keys, references.get(column), comment=_one_line(comment))
            for column, kind, comment in self._columns(name, is_table)
        ]
        comment = inspector.get_table_comment(name)["text"] if is_table else None
        return Table(name, tuple(columns), _one_line(comment))

    def _columns(self, name: str, is_table: bool) -> list[tuple[str, str, str | None]]:
        """Name, type and comment of each column."""
        if self._dialect is Dialect.MYSQL and not is_table:
            # SQLAlchemy reads a view's definition, which a user who may only SELECT must not.
            found = self._connection.execute(_VIEW_COLUMNS, {"view": name})
            return [(column, kind.upper(), comment) for column, kind, comment in found]
        return [
            (column["name"], str(column["type"]).upper(), column.get("comment"))
            for column in self._inspector.get_columns(name)
        ]


def _one_line(comment: str | None) -> str:
    return " ".join((comment or "").split())
