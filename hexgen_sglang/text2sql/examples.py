"""Questions with SQL made from a schema alone, to show a model how this database is asked.

Pure and deterministic. They stand in the prompt behind the schema, so all workflows over one
database share them. A small model copies names and joins from them; a large one is not hurt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from hexgen_sglang.text2sql import schema as schemas
from hexgen_sglang.text2sql.schema import Schema, Table


@dataclass(frozen=True, slots=True)
class Example:
    """A question in English, the tables it needs, and SQL that answers it."""

    question: str
    tables: tuple[str, ...]
    sql: str


def derive_examples(schema: Schema, most: int = 8) -> tuple[Example, ...]:
    """Up to `most` examples, spread over the tables and over kinds of questions.

    Each table in turn gives the kind that was shown least so far, until all are shown.
    """
    offers = [_offers(schema, table) for table in schema.tables]
    shown = dict.fromkeys(("join", "best", "category", "average", "count"), 0)
    found: list[Example] = []
    while len(found) < most and any(offers):
        for offer in offers:
            if offer:
                kind = min(offer, key=shown.__getitem__)
                shown[kind] += 1
                found.append(offer.pop(kind))
    return tuple(found[:most])


def _offers(schema: Schema, table: Table) -> dict[str, Example]:
    """All examples for one table, by kind of question."""
    quoted = partial(schemas.quoted, dialect=schema.dialect)
    name, one, many = quoted(table.name), singular(table.name), plural(table.name)
    found: dict[str, Example] = {}

    def offer(kind: str, question: str, sql: str, *others: str) -> None:
        found[kind] = Example(question, (table.name, *others), sql)

    keys = [(column, column.target) for column in table.columns if column.target is not None]
    key, (target_name, target_key) = keys[0] if keys else (None, ("", ""))
    target = schema.table(target_name)
    if key is not None and target is not None and target is not table:
        there = quoted(target.name)
        label = f"{there}.{quoted(target.label.name)}"
        offer(
            "join",
            f"How many {many} are there for each {singular(target.name)}?",
            f"SELECT {label}, COUNT(*) FROM {name} JOIN {there} "
            f"ON {name}.{quoted(key.name)} = {there}.{quoted(target_key)} GROUP BY {label}",
            target.name,
        )
    measures = [column for column in table.columns if column.is_measure]
    if measures:
        first, last = measures[0], measures[-1]
        offer(
            "best",
            f"Which {one} has the highest {words(first.name)}?",
            f"SELECT {quoted(table.label.name)} FROM {name} ORDER BY {quoted(first.name)} DESC "
            "LIMIT 1",
        )
        offer(
            "average",
            f"What is the average {words(last.name)} of the {many}?",
            f"SELECT AVG({quoted(last.name)}) FROM {name}",
        )
    for column in (one for one in table.columns if one.is_category):
        offer(
            "category",
            f"How many {many} have the {words(column.name)} {column.samples[0][1:-1]}?",
            f"SELECT COUNT(*) FROM {name} WHERE {quoted(column.name)} = {column.samples[0]}",
        )
        break
    offer("count", f"How many {many} are there?", f"SELECT COUNT(*) FROM {name}")
    return found


def words(name: str) -> str:
    """A column's or table's name as one would say it: `birth_year` -> "birth year"."""
    return " ".join(name.replace("_", " ").lower().split())


def singular(name: str) -> str:
    """A table's name for one of its rows; plural names lose their s."""
    said = words(name)
    return said[:-1] if said.endswith("s") and not said.endswith("ss") else said


def plural(name: str) -> str:
    """A table's name for many of its rows."""
    return singular(name) + "s"
