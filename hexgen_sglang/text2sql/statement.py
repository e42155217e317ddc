"""Is this one read-only query? Decided from the text alone, before a database sees it.

A first fence with clear words. It refuses only what it is sure of; what it cannot parse goes
on to the database, whose own guards decide and whose error says what is wrong.
"""

from __future__ import annotations

import sqlglot
from sqlglot import exp
from sqlglot.errors import ParseError, TokenError
from sqlglot.tokens import TokenType

_OPENERS = {"SELECT", "WITH"}


def refusal(sql: str, max_chars: int) -> str | None:
    """Why this text may not be executed, or None when the database may look at it."""
    if not sql.strip():
        return "the statement is empty"
    if len(sql) > max_chars:
        return f"the statement has {len(sql)} characters; at most {max_chars} are allowed"
    if "\0" in sql or not _is_unicode(sql):
        return "the statement holds characters that are no text"
    try:
        return _refusal_of_tokens(sql)
    except TokenError:
        return None
    except RecursionError:
        return "the statement is nested too deeply"


def _refusal_of_tokens(sql: str) -> str | None:
    tokens = sqlglot.tokenize(sql, read="sqlite")
    if not tokens:
        return "the statement is only a comment"
    opener = tokens[0].text.upper()
    if opener not in _OPENERS:
        return f"only SELECT queries are allowed, not {opener[:20]}"
    kinds = [token.token_type for token in tokens]
    body = kinds[: kinds.index(TokenType.SEMICOLON)] if TokenType.SEMICOLON in kinds else kinds
    if any(kind is not TokenType.SEMICOLON for kind in kinds[len(body) :]):
        return "only one statement is allowed"
    try:
        parsed = sqlglot.parse(sql, read="sqlite")[0]
    except ParseError:
        return None
    if parsed is not None and not isinstance(parsed, exp.Query):
        return f"only SELECT queries are allowed, not {parsed.key.upper()}"
    return None


def _is_unicode(sql: str) -> bool:
    try:
        sql.encode()
    except UnicodeEncodeError:
        return False
    return True
