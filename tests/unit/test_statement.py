"""The first fence: what the text of a statement says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.text2sql.execution import Execution, SqlLimits, SqlOutcome
from hexgen_sglang.text2sql.source import Dialect
from hexgen_sglang.text2sql.statement import refusal


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "select name from item;",
        "SELECT 1;;  ; -- done",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "SELECT 1 UNION SELECT 2 ORDER BY 1",
        "/* why */ SELECT 1 -- because; of this",
        "SELECT 'a; DELETE FROM item'",
        'SELECT "odd; name" FROM item',
        # Not understood by our parser, valid for SQLite: the database decides.
        "SELECT 1 LIMIT 2 - (SELECT count(*) FROM item)",
        "SELECT FROM WHERE",
        "SELECT 'unterminated",
    ],
)
def test_one_query_may_go_on(sql: str) -> None:
    assert refusal(sql, 10_000) is None


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("", "empty"),
        ("-- nothing", "only a comment"),
        ("DELETE FROM item", "not DELETE"),
        ("WITH a AS (SELECT 1) DELETE FROM item", "not DELETE"),
        ("SELECT 1; SELECT 2", "only one statement"),
        ("; SELECT 1", "only SELECT"),
        ("SELECT 1\0", "no text"),
        ("SELECT '\ud800'", "no text"),
        ("SELECT " + "(" * 3000 + "1" + ")" * 3000, "nested too deeply"),
        ("SELECT " + "1," * 6000 + "1", "12008 characters; at most 10000"),
    ],
)
def test_what_is_surely_wrong_is_refused_with_a_reason(sql: str, reason: str) -> None:
    assert reason in (refusal(sql, 10_000) or "")


@pytest.mark.parametrize(
    ("dialect", "sql", "reason"),
    [
        (Dialect.MYSQL, "SELECT 1 /*! INTO OUTFILE '/tmp/x' */", "comments that are executed"),
        (Dialect.MYSQL, "SELECT 1 /*M!100101 INTO OUTFILE '/x' */", "comments that are executed"),
        (Dialect.MYSQL, "SELECT @@datadir", "server variables"),
        (Dialect.MYSQL, "SELECT load_file('/etc/passwd')", "function load_file"),
        (Dialect.MYSQL, "SELECT `sleep` (9)", "function sleep"),
        (Dialect.MYSQL, "SELECT user FROM mysql.user", "schema mysql"),
        (Dialect.MYSQL, "SELECT * FROM information_schema.tables", "schema information_schema"),
        (Dialect.MYSQL, "SELECT * FROM item LOCK IN SHARE MODE", "LOCK"),
        (Dialect.POSTGRESQL, 'SELECT U&"\\0070g_sleep"(9)', "unicode escapes"),
        (Dialect.POSTGRESQL, 'SELECT "pg_sleep" (9)', "function pg_sleep"),
        (Dialect.POSTGRESQL, "SELECT * INTO loot FROM item", "INTO"),
        (Dialect.DUCKDB, "SELECT * FROM read_text('/etc/passwd')", "function read_text"),
        (Dialect.DUCKDB, "FROM item", "not FROM"),
    ],
)
def test_each_dialect_has_words_of_its_own(dialect: Dialect, sql: str, reason: str) -> None:
    assert reason in (refusal(sql, 10_000, dialect) or "")


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT mysql, sys, query FROM item WHERE name = 'pg_sleep('",
        "(SELECT 1) UNION ALL (SELECT 2)",
        "SELECT replace(name, 'a', 'b'), count(*) FROM item GROUP BY 1",
        "WITH best AS (SELECT max(price) AS p FROM item) SELECT * FROM best",
    ],
)
def test_usual_queries_go_on_in_every_dialect(dialect: Dialect, sql: str) -> None:
    assert refusal(sql, 10_000, dialect) is None


@given(st.text(max_size=200))
def test_any_text_gets_an_answer(text: str) -> None:
    reason = refusal(text, 10_000)
    assert reason is None or reason


@given(st.sampled_from(["DELETE FROM t", "DROP TABLE t", "PRAGMA x"]), st.text(max_size=40))
def test_a_write_is_never_let_through_behind_a_comment(write: str, comment: str) -> None:
    inside = comment.replace("*/", "").replace("\0", "")
    assert refusal(f"/*{inside}*/ {write}", 10_000) is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [("time_s", 0), ("max_rows", 0), ("max_bytes", 10), ("memory_bytes", 5), ("max_sql_chars", 0)],
)
def test_limits_are_bounded(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"SqlLimits\.{field}={value}: must be"):
        SqlLimits(**{field: value})  # type: ignore[arg-type]


def executed(*rows: tuple[str | int | float | None, ...]) -> Execution:
    return Execution(sql="SELECT", outcome=SqlOutcome.ROWS, rows=rows)


def test_results_agree_by_content() -> None:
    assert executed((1, "a"), (2, "b")).fingerprint() == executed((2, "b"), (1, "a")).fingerprint()
    assert executed((3,)).fingerprint() == executed((3.0000001,)).fingerprint()
    assert executed((1,)).fingerprint() != executed(("1",)).fingerprint()
    assert executed((None,)).fingerprint() != executed(("null",)).fingerprint()
    assert executed((1,), (1,)).fingerprint() != executed((1,)).fingerprint()
