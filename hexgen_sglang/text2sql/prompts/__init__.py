"""The agent's prompts: templates as files beside this one, and what puts them together.

A prompt is four parts in this order: static (the same for all workflows), database (the same
for all workflows over one database), question (the same for all stages of a workflow), and a
stage's own tail. The order is what lets an engine reuse its prefix cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2

from hexgen_sglang.text2sql.examples import Example
from hexgen_sglang.text2sql.schema import Column, Schema, Table, quoted

MAX_QUESTION_CHARS = 500
# Longest schema part; beyond it tables are cut down to their keys, last ones first.
MAX_SCHEMA_CHARS = 6_000
_MAX_VALUE_LINES = 12


def prefix(schema: Schema, examples: Sequence[Example], question: str) -> str:
    """What all stages of one workflow have in common."""
    return static_part() + database_part(schema, examples) + question_part(question)


@cache
def static_part() -> str:
    """What all workflows have in common."""
    return files(__package__).joinpath("static.txt").read_text(encoding="utf-8")


def database_part(schema: Schema, examples: Sequence[Example]) -> str:
    """What all workflows over one database have in common."""
    tables = _within(schema.tables, MAX_SCHEMA_CHARS)
    keys = [
        f"{quoted(table.name)}.{quoted(column.name)} = {column.references}"
        for table in schema.tables
        for column in table.columns
        if column.references is not None and not _is_obvious(column)
    ]
    values = [
        f"{quoted(table.name)}.{quoted(column.name)}: {', '.join(column.samples)}"
        for table in schema.tables
        for column in table.columns
        if column.is_category
    ]
    return _render(
        "database", tables=tables, keys=keys, values=values[:_MAX_VALUE_LINES], examples=examples
    )


def question_part(question: str) -> str:
    """The question on one line, at most 500 characters of it."""
    return _render("question", question=one_line(question, MAX_QUESTION_CHARS))


def tail(name: str, **values: Any) -> str:
    """The part of one stage's request, from its template.

    Raises:
        jinja2.UndefinedError: the template needs a value that is not given: a defect of ours.
    """
    return _render(name, **values)


def table_line(table: Table) -> str:
    """One table with its columns, as the schema part shows it."""
    return f"{quoted(table.name)}({', '.join(quoted(column.name) for column in table.columns)})"


def one_line(text: str, max_chars: int) -> str:
    """The text with all white space as single blanks, and not longer than that."""
    return " ".join(text.split())[:max_chars]


def _is_obvious(column: Column) -> bool:
    """Whether the column is named like the key it points at, so that nobody has to be told."""
    return (column.references or "").rpartition(".")[2].lower() == column.name.lower()


def _within(tables: Sequence[Table], max_chars: int) -> list[str]:
    lines = [table_line(table) for table in tables]
    for position in reversed(range(len(lines))):
        if sum(map(len, lines)) <= max_chars:
            break
        table = tables[position]
        keys = [quoted(one.name) for one in table.columns if one.is_key or one.references]
        lines[position] = f"{quoted(table.name)}({', '.join([*keys, '...'])})"
    return lines


def _render(name: str, **values: Any) -> str:
    return _environment().get_template(f"{name}.j2").render(**values)


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("hexgen_sglang.text2sql", "prompts"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # the output is a prompt, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
