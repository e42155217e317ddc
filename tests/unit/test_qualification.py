"""What is said about names that a schema does not have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexgen_sglang.text2sql.qualification import remarks
from hexgen_sglang.text2sql.schema import Column, Schema, Table
from hexgen_sglang.text2sql.source import Dialect


def table(name: str, *columns: str) -> Table:
    return Table(name, tuple(Column(one, "TEXT") for one in columns))


TABLES = (
    table("bike", "bike_id", "kind", "station_id", "price"),
    table("station", "station_id", "name", "docks"),
    table("district", "name", "Order Total"),
)
SCHEMA = Schema(TABLES)


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        # A column of another table, with and without the name of its own.
        ("SELECT docks FROM bike", ["docks is in station"]),
        ("SELECT b.name FROM bike b", ["name is in station, district"]),
        (
            "SELECT s.docks FROM bike AS s JOIN station AS b ON s.station_id = b.station_id",
            ["docks is in station"],
        ),
        # One that is nearly right, a table that is nearly right.
        ("SELECT COUNT(*) AS n FROM bike GROUP BY kinds ORDER BY n", ["there is kind"]),
        ("SELECT order_total FROM district", ["there is Order Total"]),
        ("SELECT name FROM stations", ["there is station"]),
        # Inside: a subquery, a CTE's body, an outer query's column.
        ("WITH a AS (SELECT docks FROM bike) SELECT docks FROM a", ["docks is in station"]),
        (
            "SELECT 1 FROM bike WHERE EXISTS (SELECT 1 FROM district WHERE docks > price)",
            ["docks is in station"],
        ),
        # Nothing is wrong, or nothing can be said.
        ("SELECT KIND FROM Bike", []),
        ("SELECT x FROM (SELECT kind AS x FROM bike) AS t WHERE x > 'a'", []),
        ("WITH a AS (SELECT kind FROM bike) SELECT a.kind FROM a", []),
        ("SELECT kind, price AS docks FROM bike ORDER BY docks", []),
        ("SELECT zzz FROM bike", []),
        ("SELECT ( FROM", []),
        ("", []),
        ("SELECT " + "(" * 3_000, []),
        ("SELECT docks FROM bike" + " " * 4_000, []),
    ],
)
def test_remarks_tell_where_a_name_is(sql: str, found: list[str]) -> None:
    assert remarks(sql, SCHEMA) == tuple(found)


@pytest.mark.parametrize("dialect", list(Dialect))
def test_each_dialect_is_read_as_it_is_written(dialect: Dialect) -> None:
    sql = {Dialect.MYSQL: "SELECT `docks` FROM `bike`"}.get(dialect, 'SELECT "docks" FROM "bike"')
    assert remarks(sql, Schema(TABLES, dialect)) == ("docks is in station",)


WORDS = [
    "SELECT",
    "FROM",
    "WHERE",
    "bike",
    "docks",
    "AS",
    "JOIN",
    "ON",
    "UNION",
    "WITH",
    *"s.(),=*",
    "'x'",
]


@given(st.lists(st.sampled_from(WORDS), max_size=14))
def test_no_text_is_an_error(words: list[str]) -> None:
    for one in remarks("SELECT " + " ".join(words), SCHEMA):
        assert " is in " in one or one.startswith("there is ")
