"""What the coordinator refuses although JSON Schema has no words for it: such cases are not sent.

Loaded by schemathesis, named in `schemathesis.toml`.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import schemathesis

BLOCK_CHARS, BLOCK_TOKENS = 256, 64
LONGEST_WORKFLOW_ID = 128 - len("acme/")  # it is entered behind the tenant's name


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    return all(map(is_sayable, parts(case.body)))


def parts(value: Any) -> list[Any]:
    """A body and everything in it."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value, *(one for row in inside for one in parts(row))]


def is_sayable(value: Any) -> bool:
    """Whether what is wrong with it, if anything is, stands in the document."""
    if isinstance(value, float):
        return not value.is_integer()  # 1.0 is an integer to JSON Schema
    return not isinstance(value, dict) or (
        len(str(value.get("workflow_id", ""))) <= LONGEST_WORKFLOW_ID
        and not is_above(value.get("sibling_index", 0), value.get("siblings", 1), least=0)
        and not has_too_many_blocks(value)
        and not has_impossible_port(value.get("url"))
    )


def has_too_many_blocks(row: dict[str, Any]) -> bool:
    tokens, chars = row.get("num_prompt_tokens", 0), row.get("num_prompt_chars", 0)
    blocks = row.get("prompt_blocks", [])
    if not (is_int(tokens) and is_int(chars) and isinstance(blocks, list)):
        return False
    return is_above(len(blocks), tokens // BLOCK_TOKENS if tokens else chars // BLOCK_CHARS)


def has_impossible_port(url: Any) -> bool:
    try:
        return isinstance(url, str) and urlsplit(url).port == -1
    except ValueError:
        return True


def is_above(value: Any, most: Any, least: int = 1) -> bool:
    return is_int(value) and is_int(most) and value >= most + least


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
