"""The process that runs model-written SQL on SQLite: hostile input, so it may be killed.

Started by `sandbox.py` as a script in isolated mode, hence only the standard library. One
JSON object a line comes in on stdin, one goes out on stdout. Every request gets a fresh
read-only connection; what it may do is decided here, how long it may take also outside.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sqlite3
import sys
import time
import urllib.parse
from typing import Any

# Beyond the statement's own limit: the alarm ends the process even inside one long opcode.
_ALARM_GRACE_S = 0.5
_PROGRESS_STEP = 2_000
_MAX_FILE_BYTES = 1 << 20
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


def main() -> None:
    """Say that the process is up, then serve requests until stdin ends."""
    _reply({})
    for line in sys.stdin:
        request = json.loads(line)
        _confine(request["memory_bytes"])
        signal.setitimer(signal.ITIMER_REAL, request["time_s"] + _ALARM_GRACE_S)
        answer = run(request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _reply(answer)


def _reply(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Execute one statement; the answer's fields are those of `execution.Execution`."""
    started_s = time.monotonic()
    answer: dict[str, Any] = {"columns": [], "rows": [], "truncated": False, "message": ""}
    try:
        with contextlib.closing(connect(request)) as connection:
            answer |= _fetch(connection, request, started_s)
    except (sqlite3.Error, sqlite3.Warning) as error:
        answer |= _failure(error, request)
    except MemoryError:
        answer |= {"outcome": "limit", "message": "out of memory"}
    answer["elapsed_s"] = time.monotonic() - started_s
    return answer


def connect(request: dict[str, Any]) -> sqlite3.Connection:
    """A connection that can only read the database's own tables."""
    path = urllib.parse.quote(request["database"])
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
    columns = [str(column[0]) for column in cursor.description or ()]
    rows: list[list[Any]] = []
    left_bytes = request["max_bytes"]
    truncated = False
    for row in cursor:
        cells = [_cell(value) for value in row]
        left_bytes -= sum(len(cell) if isinstance(cell, str) else 8 for cell in cells)
        if len(rows) == request["max_rows"] or left_bytes < 0:
            truncated = True
            break
        rows.append(cells)
    outcome = "rows" if rows or truncated else "empty"
    return {"outcome": outcome, "columns": columns, "rows": rows, "truncated": truncated}


def _cell(value: Any) -> Any:
    return f"x'{value.hex()}'" if isinstance(value, bytes) else value


def _failure(error: Exception, request: dict[str, Any]) -> dict[str, Any]:
    # Errors of the module itself carry no code.
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    if primary == sqlite3.SQLITE_INTERRUPT:
        return {"outcome": "limit", "message": f"took longer than {request['time_s']:g} s"}
    if primary in _LIMIT_CODES:
        return {"outcome": "limit", "message": str(error)}
    # A forbidden function comes as a plain error; "one statement at a time" as a warning.
    refused = primary in _REFUSED_CODES or isinstance(error, sqlite3.Warning)
    if refused or str(error).startswith("not authorized"):
        return {"outcome": "refused", "message": str(error)}
    return {"outcome": "error", "message": str(error)}


def _confine(memory_bytes: int) -> None:
    """Bound what this process may allocate and write, whatever SQLite does."""
    for kind, value in (
        (resource.RLIMIT_AS, max(1 << 29, 4 * memory_bytes)),
        (resource.RLIMIT_FSIZE, _MAX_FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, most = resource.getrlimit(kind)
        resource.setrlimit(
            kind, (value if most == resource.RLIM_INFINITY else min(value, most), most)
        )


if __name__ == "__main__":
    main()
