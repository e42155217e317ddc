"""What a model wrote, made usable: SQL, table names, checks, yes or no.

Pure text work. Small models repeat themselves, add comments or stop midway; what cannot be
used gives None or nothing, never an error.
"""

from __future__ import annotations

import re

from hexgen_sglang.text2sql.schema import Schema

_FENCE = re.compile(r"```(?:sql|sqlite)?\s*\n?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_START = re.compile(r"\b(?:SELECT|WITH)\b", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CHECK_START = re.compile(r"^\s*(?:[-*]|\d+[.)])?\s*")
MAX_CHECK_CHARS = 120
MAX_KEYWORD_CHARS = 60


def sql_from(text: str) -> str | None:
    """The first query in a model's text, without what stands around it; None: there is none.

    Ends at the first semicolon outside quotes and comments, or at an empty line.
    """
    fenced = _FENCE.search(text)
    body = fenced.group(1) if fenced else text
    start = _START.search(body)
    if start is None:
        return None
    query = body[start.start() :]
    query = query[: _end_of_statement(query)]
    query = re.split(r"\n\s*\n|\n\s*(?:Q:|###)", query, maxsplit=1)[0].strip()
    return query if len(query.split()) > 1 else None


def _end_of_statement(query: str) -> int:
    """Index of the first semicolon that ends the statement, or the text's length."""
    position = 0
    while position < len(query):
        char = query[position]
        if char == ";":
            return position
        closer = {"'": "'", '"': '"', "`": "`", "[": "]"}.get(char)
        if query.startswith("--", position):
            closer, position = "\n", position + 1
        elif query.startswith("/*", position):
            closer, position = "*/", position + 1
        if closer is not None:
            found = query.find(closer, position + 1)
            if found < 0:
                return len(query)
            position = found + len(closer) - 1
        position += 1
    return len(query)


def tables_from(text: str, schema: Schema) -> tuple[str, ...]:
    """The schema's tables that a model's text names, as the schema spells them, once each."""
    found: dict[str, None] = {}
    for word in _WORD.findall(text):
        table = schema.table(word)
        if table is not None:
            found.setdefault(table.name)
    return tuple(found)


def keywords_from(text: str, most: int) -> tuple[str, ...]:
    """Up to `most` different keywords of the first line, which commas or semicolons part."""
    line = next((one for one in text.splitlines() if one.strip()), "")
    found = (one.strip(" \t'\".-*")[:MAX_KEYWORD_CHARS] for one in re.split(r"[,;]", line))
    return tuple(dict.fromkeys(one for one in found if any(char.isalpha() for char in one)))[:most]


def checks_from(text: str, most: int) -> tuple[str, ...]:
    """Up to `most` different one-line checks; bullets and numbers are taken off."""
    found: dict[str, None] = {}
    for line in text.splitlines():
        check = _CHECK_START.sub("", line, count=1).strip()[:MAX_CHECK_CHARS]
        if any(char.isalpha() for char in check):
            found.setdefault(check)
    return tuple(found)[:most]


def verdict_from(text: str) -> bool | None:
    """True for yes, False for no, None when the model's first word is neither."""
    words = _WORD.findall(text.lower())
    return {"yes": True, "no": False}.get(words[0]) if words else None
