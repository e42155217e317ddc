"""Runs one statement on a DuckDB file; in the executor process.

The file is opened read-only, without external access, and with its configuration locked. Those
leave temporary tables and the engine's own tables open; so DuckDB's own parser says what the
statement is and what it names, and all but queries of the user's tables is refused.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import duckdb

from hexgen_sglang.text2sql.executor import rows

_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
    "max_temp_directory_size": "0KB",
    "threads": "1",
}
_TABLE_FUNCTIONS = {"generate_series", "json_each", "json_tree", "range", "repeat", "unnest"}
_FORBIDDEN_FUNCTIONS = {"current_setting", "getenv", "getvariable", "nextval", "write_log"}
_SYSTEM_SCHEMAS = {"information_schema", "pg_catalog"}
_SYSTEM_CATALOGS = {"system", "temp"}
_SYSTEM_PREFIXES = ("duckdb_", "pg_", "pragma_", "sqlite_")
_REFUSED = (duckdb.PermissionException,)
_OUT_OF_SPACE = (duckdb.OutOfMemoryException, MemoryError)
_FETCHED_ROWS = 256


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Execute one statement; the answer's fields are those of `execution.Execution`."""
    started_s = time.monotonic()
    try:
        with contextlib.closing(connect(request)) as connection:
            found = _checked(connection, request, started_s)
    except duckdb.InterruptException:
        found = rows.out_of_time(request)
    except _OUT_OF_SPACE as error:
        found = rows.answer("limit", _first_line(error) or "out of memory")
    except _REFUSED as error:
        found = rows.answer("refused", _first_line(error))
    except duckdb.Error as error:
        found = rows.answer("error", _first_line(error))
    return found | {"elapsed_s": time.monotonic() - started_s}


def connect(request: dict[str, Any]) -> duckdb.DuckDBPyConnection:
    """A connection that can only read this file."""
    memory = f"{request['memory_bytes'] // 1_000_000}MB"
    connection = duckdb.connect(
        request["location"], read_only=True, config=_CONFIG | {"memory_limit": memory}
    )
    # Last, since from here on not even we can change a setting.
    connection.execute("SET lock_configuration = true")
    return connection


def _checked(
    connection: duckdb.DuckDBPyConnection, request: dict[str, Any], started_s: float
) -> dict[str, Any]:
    left_s = request["time_s"] - (time.monotonic() - started_s)
    timer = threading.Timer(max(0.0, left_s), connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        reason = _refusal(connection, request["sql"])
        if reason is not None:
            return rows.answer("refused", reason)
        connection.execute(request["sql"])
        columns = [column[0] for column in connection.description or ()]
        return rows.collect(columns, _rows(connection), request)
    finally:
        timer.cancel()


def _rows(connection: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    while part := connection.fetchmany(_FETCHED_ROWS):
        yield from part


def _refusal(connection: duckdb.DuckDBPyConnection, sql: str) -> str | None:
    """Why DuckDB's own parse of the text may not be executed; None when it may."""
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        return f"only one statement is allowed, not {len(statements)}"
    if statements[0].type is not duckdb.StatementType.SELECT:
        return f"only SELECT queries are allowed, not {statements[0].type.name}"
    row = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchone()
    tree = json.loads(row[0]) if row else {"error": True}
    if tree["error"]:
        return str(tree.get("error_message", "the statement cannot be checked"))
    return next((reason for node in _nodes(tree) if (reason := _refusal_of(node))), None)


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """All objects of a parse, without recursion: hostile input may nest deeply."""
    left = [tree]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            yield node
            left.extend(node.values())
        elif isinstance(node, list):
            left.extend(node)


def _refusal_of(node: dict[str, Any]) -> str | None:
    kind = node.get("type")
    if kind == "SHOW_REF":
        return "only SELECT queries are allowed, not SHOW or DESCRIBE"
    if kind == "BASE_TABLE":
        table = str(node.get("table_name", "")).lower()
        schema = str(node.get("schema_name", "")).lower()
        is_system = schema in _SYSTEM_SCHEMAS or table.startswith(_SYSTEM_PREFIXES)
        if is_system or str(node.get("catalog_name", "")).lower() in _SYSTEM_CATALOGS:
            return f"the system table {table} is not allowed"
    if kind == "TABLE_FUNCTION":
        name = str(node.get("function", {}).get("function_name", "")).lower()
        if name not in _TABLE_FUNCTIONS:
            return f"the table function {name} is not allowed"
    name = str(node.get("function_name", "")).lower()
    if name in _FORBIDDEN_FUNCTIONS or name.startswith(_SYSTEM_PREFIXES):
        return f"the function {name} is not allowed"
    return None


def _first_line(error: BaseException) -> str:
    """DuckDB's message without the picture of the statement below it."""
    return str(error).split("\n\nLINE ", maxsplit=1)[0].replace("\n", " ").strip()
