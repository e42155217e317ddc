"""Is this one read-only query? Decided from the text alone, before a database sees it.

A first fence with clear words. It refuses only what it is sure of; what it cannot parse goes
on to the database, whose own guards decide and whose error says what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import ParseError, TokenError
from sqlglot.tokens import TokenType

from hexgen_sglang.text2sql.source import Dialect

_OPENERS = {"SELECT", "WITH"}
_CHANGES = (exp.DML, exp.DDL, exp.Command, exp.Into, exp.Lock)
# Functions that reach beyond the tables, or run SQL that stands in a string.
_FUNCTIONS = {
    Dialect.SQLITE: re.compile(r"load_extension|readfile|writefile|edit|fts3_tokenizer"),
    Dialect.DUCKDB: re.compile(
        r"(read|scan|sniff|parquet|duckdb|pragma|sqlite|postgres|mysql|iceberg|delta)_\w+"
        r"|glob|query|query_table|getenv|getvariable|current_setting|\w+_scan|\w+_serialized_sql"
    ),
    Dialect.POSTGRESQL: re.compile(
        r"pg_(?!typeof$)\w+|lo_\w+|dblink\w*|set_config|current_setting|setval|nextval"
        r"|(query|cursor|table|schema|database)_to_xml\w*|ts_stat|ts_rewrite|txid_\w+"
        r"|inet_(client|server)_\w+|has_\w+_privilege|xpath_table|crosstab\w*"
    ),
    Dialect.MYSQL: re.compile(
        r"load_file|sleep|benchmark|(get|release|is_free|is_used)_(all_)?lock\w*"
        r"|master_pos_wait|source_pos_wait|wait_for_executed_gtid_set"
    ),
}
# Tables that tell of the server or the engine, not of the user's data.
_SYSTEM_NAMES = {
    Dialect.SQLITE: re.compile(r"sqlite_\w+|pragma_\w+|dbstat"),
    Dialect.DUCKDB: re.compile(r"information_schema|pg_catalog|(duckdb|sqlite|pragma)_\w+"),
    Dialect.POSTGRESQL: re.compile(r"information_schema|pg_(?!typeof$)\w+"),
    Dialect.MYSQL: re.compile(r"information_schema|performance_schema|mysql|sys"),
}
_NAMES = {TokenType.VAR, TokenType.IDENTIFIER}
# Text that a database reads in another way than our tokenizer (names written with escapes,
# comments that MySQL executes), and what tells of the server.
_TRICKS = {
    Dialect.POSTGRESQL: (re.compile(r"u&[\"']", re.IGNORECASE), "names with unicode escapes"),
    Dialect.MYSQL: (re.compile(r"/\*M?!|@@"), "comments that are executed and server variables"),
}


def refusal(sql: str, max_chars: int, dialect: Dialect = Dialect.SQLITE) -> str | None:
    """Why this text may not be executed, or None when the database may look at it."""
    if not sql.strip():
        return "the statement is empty"
    if len(sql) > max_chars:
        return f"the statement has {len(sql)} characters; at most {max_chars} are allowed"
    if "\0" in sql or not _is_unicode(sql):
        return "the statement holds characters that are no text"
    trick, what = _TRICKS.get(dialect, (None, ""))
    if trick is not None and trick.search(sql):
        return f"{what} are not allowed"
    try:
        return _refusal_of_tokens(sql, dialect)
    except TokenError:
        return None
    except RecursionError:
        return "the statement is nested too deeply"


def _refusal_of_tokens(sql: str, dialect: Dialect) -> str | None:
    tokens = sqlglot.tokenize(sql, read=dialect.parser)
    if not tokens:
        return "the statement is only a comment"
    opener = next((one.text.upper() for one in tokens if one.text != "("), "(")
    if opener not in _OPENERS:
        return f"only SELECT queries are allowed, not {opener[:20]}"
    kinds = [token.token_type for token in tokens]
    body = kinds[: kinds.index(TokenType.SEMICOLON)] if TokenType.SEMICOLON in kinds else kinds
    if any(kind is not TokenType.SEMICOLON for kind in kinds[len(body) :]):
        return "only one statement is allowed"
    return _refusal_of_names(tokens, dialect) or _refusal_of_tree(sql, dialect)


def _refusal_of_names(tokens: Sequence[Any], dialect: Dialect) -> str | None:
    """Looks at words that are followed by a bracket, and at names of tables."""
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        word = token.text.lower()
        is_call = following is not None and following.token_type is TokenType.L_PAREN
        is_string = token.token_type is TokenType.STRING
        if is_call and not is_string and _FUNCTIONS[dialect].fullmatch(word):
            return f"the function {word[:40]} is not allowed"
        is_schema = following is not None and following.token_type is TokenType.DOT
        # `sys` and `mysql` are fine as names of columns.
        is_name = token.token_type in _NAMES and (is_schema or dialect is not Dialect.MYSQL)
        if is_name and _SYSTEM_NAMES[dialect].fullmatch(word):
            return f"the system table or schema {word[:40]} is not allowed"
    return None


def _refusal_of_tree(sql: str, dialect: Dialect) -> str | None:
    try:
        parsed = sqlglot.parse(sql, read=dialect.parser)[0]
    except ParseError:
        return None
    if parsed is None:
        return None
    if not isinstance(parsed, exp.Query):
        return f"only SELECT queries are allowed, not {parsed.key.upper()}"
    change = next(_changes(parsed), None)
    return None if change is None else f"{change.key.upper()} is not allowed inside a query"


def _changes(parsed: Any) -> Iterator[Any]:
    """The parts of a query that write, lock or run something."""
    for node in parsed.walk():
        if isinstance(node, _CHANGES):
            yield node


def _is_unicode(sql: str) -> bool:
    try:
        sql.encode()
    except UnicodeEncodeError:
        return False
    return True
