"""Runs one statement on an SQLite file; in the executor process.

Every request gets a fresh connection that can only read: the file is opened read-only, an
authorizer refuses all but queries of the user's own tables, and SQLite's own limits are low.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
import urllib.parse
from typing import Any

from hexgen_sglang.text2sql.executor import rows

_PROGRESS_STEP = 2_000
_ALLOWED_ACTIONS = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
_FORBIDDEN_FUNCTIONS = {
    "edit",
    "fts3_tokenizer",
    "load_extension",
    "randomblob",
    "readfile",
    "sqlite_log",
    "writefile",
    "zeroblob",
}
# Tables that come with SQLite and show more than the user's own tables do.
_FORBIDDEN_TABLES = {"dbstat", "bytecode", "tables_used", "sqlite_dbpage", "sqlite_stmt"}
_LIMIT_CODES = {sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_NOMEM}
_REFUSED_CODES = {sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Execute one statement; the answer's fields are those of `execution.Execution`."""
    started_s = time.monotonic()
    try:
        with contextlib.closing(connect(request)) as connection:
            found = _fetch(connection, request, started_s)
    except (sqlite3.Error, sqlite3.Warning) as error:
        found = _failure(error, request)
    except MemoryError:
        found = rows.answer("limit", "out of memory")
    return found | {"elapsed_s": time.monotonic() - started_s}


def connect(request: dict[str, Any]) -> sqlite3.Connection:
    """A connection that can only read the database's own tables."""
    path = urllib.parse.quote(request["location"])
    connection = sqlite3.connect(
        f"file:{path}?mode=ro", uri=True, isolation_level=None, cached_statements=0
    )
    for pragma in (
        "query_only=on",
        "trusted_schema=off",
        "temp_store=memory",
        "mmap_size=0",
        f"hard_heap_limit={int(request['memory_bytes'])}",
    ):
        connection.execute(f"PRAGMA {pragma}").close()
    for name, value in (
        ("LENGTH", request["max_value_bytes"]),
        ("EXPR_DEPTH", 100),
        ("COMPOUND_SELECT", 50),
        ("VDBE_OP", 200_000),
        ("FUNCTION_ARG", 64),
        ("ATTACHED", 0),
        ("LIKE_PATTERN_LENGTH", 200),
        ("VARIABLE_NUMBER", 0),
        ("TRIGGER_DEPTH", 1),
        ("WORKER_THREADS", 0),
    ):
        connection.setlimit(getattr(sqlite3, f"SQLITE_LIMIT_{name}"), value)
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    # Last, since from here on not even our own pragmas are allowed.
    connection.set_authorizer(_authorize)
    return connection


def _authorize(
    action: int, first: str | None, second: str | None, database: str | None, source: str | None
) -> int:
    if action not in _ALLOWED_ACTIONS:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_READ and _is_forbidden_table((first or "").lower()):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _is_forbidden_table(name: str) -> bool:
    return name in _FORBIDDEN_TABLES or name.startswith(("sqlite_", "pragma_"))


def _fetch(
    connection: sqlite3.Connection, request: dict[str, Any], started_s: float
) -> dict[str, Any]:
    until_s = started_s + request["time_s"]
    connection.set_progress_handler(lambda: time.monotonic() > until_s, _PROGRESS_STEP)
    cursor = connection.execute(request["sql"])
    return rows.collect([column[0] for column in cursor.description or ()], cursor, request)


def _failure(error: Exception, request: dict[str, Any]) -> dict[str, Any]:
    # Errors of the module itself carry no code.
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    if primary == sqlite3.SQLITE_INTERRUPT:
        return rows.out_of_time(request)
    if primary in _LIMIT_CODES:
        return rows.answer("limit", str(error))
    # A forbidden function comes as a plain error; "one statement at a time" as a warning.
    refused = primary in _REFUSED_CODES or isinstance(error, sqlite3.Warning)
    if refused or str(error).startswith("not authorized"):
        return rows.answer("refused", str(error))
    return rows.answer("error", str(error))
