"""Runs one statement on a PostgreSQL server; in the executor process.

The statement is the query of a cursor in a read-only transaction that is always rolled back,
under a statement timeout, and only for a role that cannot reach the server's files.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import psycopg

from hexgen_sglang.text2sql.executor import rows

# Roles with which SQL reaches files or programs of the server, now or after SET ROLE.
DANGEROUS_ROLES = (
    "SELECT rolname FROM pg_catalog.pg_roles WHERE (rolsuper OR rolname IN "
    "('pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program')) "
    "AND pg_catalog.pg_has_role(current_user, oid, 'MEMBER') ORDER BY rolname"
)
_FETCHED_ROWS = 64
_TIMEOUT_STATE = "57014"
_REFUSED_STATES = {"25006", "42501", "0A000"}  # read-only, no privilege, not a query
_OUT_OF_SPACE_CLASSES = {"53", "54"}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Execute one statement; the answer's fields are those of `execution.Execution`."""
    started_s = time.monotonic()
    try:
        with contextlib.closing(connect(request["location"], request["time_s"])) as connection:
            found = _fetch(connection, request, started_s)
    except psycopg.Error as error:
        found = _failure(error, request)
    except MemoryError:
        found = rows.answer("limit", "out of memory")
    return found | {"elapsed_s": time.monotonic() - started_s}


def connect(location: str, time_s: float) -> psycopg.Connection[Any]:
    """A read-only connection whose statements end after `time_s` seconds."""
    milliseconds = max(1, int(time_s * 1000))
    settings = {
        "default_transaction_read_only": "on",
        "statement_timeout": milliseconds,
        "lock_timeout": milliseconds,
        "idle_in_transaction_session_timeout": milliseconds + 5_000,
        # Ends what runs for us when this process is killed.
        "client_connection_check_interval": 1_000,
    }
    connection = psycopg.connect(
        # SQLAlchemy's scheme names the driver, libpq's does not.
        location.replace("postgresql+psycopg://", "postgresql://", 1),
        options=" ".join(f"-c {name}={value}" for name, value in settings.items()),
        connect_timeout=max(2, int(time_s)),
    )
    connection.read_only = True
    return connection


def _fetch(
    connection: psycopg.Connection[Any], request: dict[str, Any], started_s: float
) -> dict[str, Any]:
    role = connection.execute(DANGEROUS_ROLES).fetchone()
    if role is not None:
        return rows.answer(
            "refused",
            f"the database's user has the rights of {role[0]}: give one that may only SELECT",
        )
    # DECLARE takes a query and nothing else, and the extended protocol a single statement.
    cursor = connection.cursor("statement")
    cursor.execute(request["sql"])
    columns = [column.name for column in cursor.description or ()]
    return rows.collect(columns, _rows(connection, cursor, request, started_s), request)


def _rows(
    connection: psycopg.Connection[Any], cursor: Any, request: dict[str, Any], started_s: float
) -> Iterator[tuple[Any, ...]]:
    """All rows; the timeout is set anew for each part, whatever the statement did to it."""
    while True:
        left_s = request["time_s"] - (time.monotonic() - started_s)
        if left_s <= 0:
            raise psycopg.errors.QueryCanceled
        connection.execute(f"SET LOCAL statement_timeout = {max(1, int(left_s * 1000))}")
        part = cursor.fetchmany(_FETCHED_ROWS)
        yield from part
        if len(part) < _FETCHED_ROWS:
            return


def _failure(error: psycopg.Error, request: dict[str, Any]) -> dict[str, Any]:
    state = error.sqlstate or ""
    message = error.diag.message_primary or str(error).strip().partition("\n")[0]
    if state == _TIMEOUT_STATE:
        return rows.out_of_time(request)
    if state[:2] in _OUT_OF_SPACE_CLASSES:
        return rows.answer("limit", message)
    if state in _REFUSED_STATES:
        return rows.answer("refused", message)
    return rows.answer("error", message or type(error).__name__)
