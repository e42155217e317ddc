"""Runs one statement on a MySQL or MariaDB server; in the executor process.

The statement runs in a read-only transaction with a limit on its time, for a user who has no
rights over the server's files; the connection takes one statement at a time and no local files.
"""

from __future__ import annotations

import math
import re
import time
import urllib.parse
from typing import Any

import pymysql
import pymysql.cursors

from hexgen_sglang.text2sql.executor import rows

_DANGEROUS_GRANT = re.compile(r"\b(FILE|SUPER|ALL PRIVILEGES)\b.* ON \*\.\*")
_TIMEOUT_CODES = {1317, 1969, 2013, 3024}
_REFUSED_CODES = {1044, 1045, 1142, 1143, 1227, 1290, 1370, 1792}
_OUT_OF_SPACE_CODES = {1037, 1038, 1041, 1114, 1153}
_READ_GRACE_S = 1.0


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Execute one statement; the answer's fields are those of `execution.Execution`."""
    started_s = time.monotonic()
    try:
        connection = connect(request["location"], request["time_s"])
        try:
            found = _fetch(connection, request)
        finally:
            if connection.open:
                connection.close()
    except pymysql.MySQLError as error:
        found = _failure(error, request)
    except MemoryError:
        found = rows.answer("limit", "out of memory")
    return found | {"elapsed_s": time.monotonic() - started_s}


def connect(location: str, time_s: float) -> Any:
    """A connection in a read-only transaction whose queries end after `time_s` seconds."""
    url = urllib.parse.urlsplit(location)
    connection: Any = pymysql.connect(
        host=url.hostname or "localhost",
        port=url.port or 3306,
        user=urllib.parse.unquote(url.username or ""),
        password=urllib.parse.unquote(url.password or ""),
        database=urllib.parse.unquote(url.path.strip("/")),
        unix_socket=dict(urllib.parse.parse_qsl(url.query)).get("unix_socket"),
        charset="utf8mb4",
        local_infile=False,
        connect_timeout=max(2, int(time_s)),
        read_timeout=math.ceil(time_s + _READ_GRACE_S),
    )
    is_mariadb = "mariadb" in connection.get_server_info().lower()
    limit = (
        f"max_statement_time = {time_s}"
        if is_mariadb
        else f"max_execution_time = {max(1, int(time_s * 1000))}"
    )
    with connection.cursor() as cursor:
        cursor.execute(f"SET SESSION {limit}")
        cursor.execute("SET SESSION TRANSACTION READ ONLY")
        cursor.execute("START TRANSACTION READ ONLY")
    return connection


def has_dangerous_grant(connection: Any) -> bool:
    """Whether the user's rights reach beyond tables."""
    with connection.cursor() as cursor:
        cursor.execute("SHOW GRANTS")
        grants = [str(row[0]) for row in cursor.fetchall()]
    return any(_DANGEROUS_GRANT.search(one) for one in grants)


def _fetch(connection: Any, request: dict[str, Any]) -> dict[str, Any]:
    if has_dangerous_grant(connection):
        return rows.answer(
            "refused",
            "the database's user has rights over the whole server: give one that may only SELECT",
        )
    cursor = connection.cursor(pymysql.cursors.SSCursor)
    cursor.execute(request["sql"])
    columns = [column[0] for column in cursor.description or ()]
    found = rows.collect(columns, cursor, request)
    # Before the cursor goes, which would read all rows that are left.
    connection.close()
    return found


def _failure(error: pymysql.MySQLError, request: dict[str, Any]) -> dict[str, Any]:
    code, message = (*error.args, "", "")[:2]
    if code in _TIMEOUT_CODES:
        return rows.out_of_time(request)
    outcome = "error"
    if code in _OUT_OF_SPACE_CODES:
        outcome = "limit"
    elif code in _REFUSED_CODES:
        outcome = "refused"
    return rows.answer(outcome, str(message) or type(error).__name__)
