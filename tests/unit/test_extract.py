"""What is taken out of a model's text, and that no text is too odd for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexgen_sglang.text2sql.extract import checks_from, sql_from, tables_from, verdict_from
from hexgen_sglang.text2sql.schema import Column, Schema, Table

SCHEMA = Schema(
    (
        Table("Member", (Column("id", "INTEGER"),)),
        Table("trip", (Column("id", "INTEGER"),)),
        Table("order item", (Column("id", "INTEGER"),)),
    )
)


@pytest.mark.parametrize(
    ("text", "sql"),
    [
        ("SELECT 1", "SELECT 1"),
        (" select a\nfrom b ; and so on", "select a\nfrom b"),
        ("Sure! Here it is:\n```sql\nSELECT a FROM b;\n```\nEnjoy.", "SELECT a FROM b"),
        ("```\nSELECT a FROM b", "SELECT a FROM b"),
        ("The query is SELECT a FROM b;", "SELECT a FROM b"),
        ("WITH t AS (SELECT 1) SELECT * FROM t;", "WITH t AS (SELECT 1) SELECT * FROM t"),
        ("SELECT ';' FROM b; DROP TABLE b", "SELECT ';' FROM b"),
        ("SELECT 'it''s; ok' FROM b; x", "SELECT 'it''s; ok' FROM b"),
        ('SELECT "a;b" FROM c;', 'SELECT "a;b" FROM c'),
        ("SELECT a -- really; yes\nFROM b;", "SELECT a -- really; yes\nFROM b"),
        ("SELECT a /* ; */ FROM b; c", "SELECT a /* ; */ FROM b"),
        ("SELECT a FROM b\n\nThis lists a.", "SELECT a FROM b"),
        ("SELECT a FROM b\nQ: next", "SELECT a FROM b"),
        ("SELECT 'unterminated; FROM b", "SELECT 'unterminated; FROM b"),
    ],
)
def test_sql_is_found(text: str, sql: str) -> None:
    assert sql_from(text) == sql


@pytest.mark.parametrize(
    "text", ["", "I cannot answer.", "SELECT", "selection of names", "```\n```"]
)
def test_where_there_is_no_sql_there_is_none(text: str) -> None:
    assert sql_from(text) is None


@given(st.text(alphabet="SELECT with'\";-/*`[]\n#", max_size=60))
def test_any_text_can_be_read(text: str) -> None:
    found = sql_from(text)
    assert found is None or (found == found.strip() and found in text.replace("```", "```"))


def test_tables_are_spelled_as_the_schema_does() -> None:
    assert tables_from("member, TRIP, members, member", SCHEMA) == ("Member", "trip")
    assert tables_from("nothing known here", SCHEMA) == ()


def test_checks_lose_their_bullets_and_repetitions() -> None:
    text = "- One row.\n2) One row.\n\n* All names.\n3. All names.\n42\nA third."
    assert checks_from(text, 2) == ("One row.", "All names.")
    assert checks_from("", 3) == ()
    assert len(checks_from("x" * 1000, 1)[0]) == 120


@pytest.mark.parametrize(
    ("text", "verdict"),
    [(" Yes.", True), ("no, it", False), ("maybe yes", None), ("", None), ("42", None)],
)
def test_only_a_clear_word_is_a_verdict(text: str, verdict: bool | None) -> None:
    assert verdict_from(text) is verdict
