"""The agent's prompts: templates as files beside this one, and what puts them together.

A prompt is four parts in this order: static (the same for all workflows), database (the same
for all workflows over one database), question (the same for all stages of a workflow), and a
stage's own tail. The order is what lets an engine reuse its prefix cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import jinja2

from hexgen_sglang.text2sql.examples import Example
from hexgen_sglang.text2sql.schema import Column, Schema, Table, quoted
from hexgen_sglang.text2sql.source import Dialect

MAX_QUESTION_CHARS = 500
# Longest schema part; beyond it tables are cut down to their keys, last ones first.
MAX_SCHEMA_CHARS = 6_000
_MAX_VALUE_LINES = 12
_MAX_VALUE_LINE_CHARS = 160
_MAX_COMMENT_LINES = 24
_MAX_COMMENT_CHARS = 80


def prefix(
    schema: Schema, examples: Sequence[Example], question: str, values: Sequence[str] = ()
) -> str:
    """What all stages of one workflow have in common."""
    shared = static_part(schema.dialect) + database_part(schema, examples)
    return shared + question_part(question, values)


@cache
def static_part(dialect: Dialect = Dialect.SQLITE) -> str:
    """What all workflows over databases of one dialect have in common."""
    return _render("static", dialect=dialect.label)


def database_part(schema: Schema, examples: Sequence[Example]) -> str:
    """What all workflows over one database have in common."""
    return _render(
        "database",
        tables=_within(schema, MAX_SCHEMA_CHARS),
        keys=[
            f"{path} = {quoted(table, schema.dialect)}.{quoted(key, schema.dialect)}"
            for path, column in _columns(schema)
            for table, key in ([column.target] if column.target else [])
            if key.lower() != column.name.lower()  # or the name says so
        ],
        comments=_comments(schema)[:_MAX_COMMENT_LINES],
        values=[
            f"{path}: {', '.join(column.samples)}"
            for path, column in _columns(schema)
            if column.is_category
        ][:_MAX_VALUE_LINES],
        examples=examples,
    )


def question_part(question: str, values: Sequence[str] = ()) -> str:
    """The question on one line, at most 500 characters of it, and values that it speaks of."""
    shown = [one_line(value, _MAX_VALUE_LINE_CHARS) for value in values]
    return _render("question", question=one_line(question, MAX_QUESTION_CHARS), values=shown)


def values_part(values: Sequence[str]) -> str:
    """More values that the question speaks of, behind what `question_part` says."""
    shown = [one_line(value, _MAX_VALUE_LINE_CHARS) for value in values]
    return _render("values", values=shown)


def tail(name: str, **values: Any) -> str:
    """The part of one stage's request, from its template.

    Raises:
        jinja2.UndefinedError: the template needs a value that is not given: a defect of ours.
    """
    return _render(name, **values)


def table_line(table: Table, dialect: Dialect = Dialect.SQLITE) -> str:
    """One table with its columns, as the schema part shows it."""
    columns = ", ".join(quoted(column.name, dialect) for column in table.columns)
    return f"{quoted(table.name, dialect)}({columns})"


def one_line(text: str, max_chars: int) -> str:
    """The text with all white space as single blanks, and not longer than that."""
    return " ".join(text.split())[:max_chars]


def _columns(schema: Schema) -> Iterator[tuple[str, Column]]:
    """Every column with its full name as SQL text."""
    for table in schema.tables:
        name = quoted(table.name, schema.dialect)
        for column in table.columns:
            yield f"{name}.{quoted(column.name, schema.dialect)}", column


def _comments(schema: Schema) -> list[str]:
    """What the makers say: of tables first, then of columns."""
    of_tables = [(quoted(one.name, schema.dialect), one.comment) for one in schema.tables]
    of_columns = [(path, column.comment) for path, column in _columns(schema)]
    return [
        f"-- {name}: {one_line(comment, _MAX_COMMENT_CHARS)}"
        for name, comment in [*of_tables, *of_columns]
        if comment
    ]


def _within(schema: Schema, max_chars: int) -> list[str]:
    dialect = schema.dialect
    lines = [table_line(table, dialect) for table in schema.tables]
    for position in reversed(range(len(lines))):
        if sum(map(len, lines)) <= max_chars:
            break
        table = schema.tables[position]
        keys = [quoted(one.name, dialect) for one in table.columns if one.is_key or one.references]
        lines[position] = f"{quoted(table.name, dialect)}({', '.join([*keys, '...'])})"
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
