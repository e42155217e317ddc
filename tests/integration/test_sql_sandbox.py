"""Model-written SQL in real sandbox processes on SQLite: what works, limits, and failures."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from hexgen_sglang.core.errors import ConfigError, WorkerUnavailableError
from hexgen_sglang.text2sql.execution import SqlLimits, SqlOutcome
from hexgen_sglang.text2sql.sample import (
    SampleQuestion,
    make_sample_database,
    sample_questions,
)
from hexgen_sglang.text2sql.sandbox import Sandbox


def make_database(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price REAL)")
        connection.executemany(
            "INSERT INTO item VALUES (?, ?, ?)",
            [(number, f"item {number}", number * 1.5) for number in range(200)],
        )
    return path


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_database(tmp_path_factory.mktemp("sandbox") / "items.sqlite")


@pytest.fixture(scope="module")
def sandbox(database: Path) -> Iterator[Sandbox]:
    with Sandbox(database, SqlLimits(time_s=0.3)) as opened:
        yield opened


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    path = tmp_path_factory.mktemp("samples") / "bikes.sqlite"
    make_sample_database(path)
    with Sandbox(path) as opened:
        yield opened


def test_a_query_gives_typed_rows(sandbox: Sandbox) -> None:
    execution = sandbox.run("SELECT id, name, price, NULL AS none FROM item WHERE id = 2;")
    assert execution.outcome is SqlOutcome.ROWS
    assert execution.columns == ("id", "name", "price", "none")
    assert execution.rows == ((2, "item 2", 3.0, None),)
    assert not execution.truncated


def test_usual_sql_works(sandbox: Sandbox) -> None:
    for sql in (
        "WITH a AS (SELECT * FROM item) SELECT count(*) FROM a",
        "SELECT count(*) FROM (SELECT 1 FROM item)",
        "SELECT upper(name) || printf('%05.2f', price) FROM item ORDER BY price DESC LIMIT 3",
        "SELECT sum(price) OVER (ORDER BY id) FROM item LIMIT 2",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 9) SELECT i FROM n",
        "SELECT a.id FROM item a JOIN item b ON a.id = b.id WHERE b.name LIKE '%7%'",
        "SELECT strftime('%Y', '2024-05-01')",
    ):
        assert sandbox.run(sql).outcome is SqlOutcome.ROWS, sql


def test_an_empty_result_is_not_an_error(sandbox: Sandbox) -> None:
    execution = sandbox.run("SELECT name FROM item WHERE id = -1")
    assert (execution.outcome, execution.columns) == (SqlOutcome.EMPTY, ("name",))


def test_the_databases_own_words_come_back(sandbox: Sandbox) -> None:
    execution = sandbox.run("SELECT nmae FROM item")
    assert (execution.outcome, execution.message) == (SqlOutcome.ERROR, "no such column: nmae")
    wrong = sandbox.run("SELECT name FROM WHERE id = 1")
    assert wrong.message == 'near "WHERE": syntax error'


def test_rows_and_bytes_are_cut_off(database: Path) -> None:
    with Sandbox(database, SqlLimits(max_rows=5)) as few:
        execution = few.run("SELECT id FROM item")
        assert (len(execution.rows), execution.truncated) == (5, True)
        assert not few.run("SELECT id FROM item LIMIT 5").truncated
    with Sandbox(database, SqlLimits(max_bytes=1_000)) as small:
        execution = small.run("SELECT printf('%.300c', 'x') FROM item")
        assert (len(execution.rows), execution.truncated) == (3, True)


def test_odd_values_survive(sandbox: Sandbox) -> None:
    execution = sandbox.run("SELECT x'00ff', 9e999, 'caf\u00e9 \U0001f6b2', CAST(x'ff' AS TEXT)")
    assert execution.rows == (("x'00ff'", float("inf"), "caf\u00e9 \U0001f6b2", "\ufffd"),)


def test_the_sandbox_goes_on_after_a_kill(sandbox: Sandbox) -> None:
    assert sandbox.run("SELECT printf('%.*c', 2000000000, 'x')").outcome is SqlOutcome.LIMIT
    assert sandbox.run("SELECT 1").rows == ((1,),)


def test_many_threads_share_it(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: sandbox.run(f"SELECT {number}").rows, range(64)))
    assert found == [((number,),) for number in range(64)]


def test_a_database_with_a_write_ahead_log_can_be_read(tmp_path: Path) -> None:
    path = make_database(tmp_path / "wal.sqlite")
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("PRAGMA journal_mode = wal").close()
        with writer:
            writer.execute("INSERT INTO item VALUES (1000, 'new', 1)")
        with Sandbox(path) as opened:
            assert opened.run("SELECT name FROM item WHERE id = 1000").rows == (("new",),)


def test_names_with_odd_characters_are_opened(tmp_path: Path) -> None:
    path = make_database(tmp_path / "what?mode=rw&x#%20.sqlite")
    with Sandbox(path) as opened:
        assert opened.run("SELECT count(*) FROM item").rows == ((200,),)


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.sqlite.*No such file"):
        Sandbox(tmp_path / "absent.sqlite")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ConfigError, match="not an SQLite database"):
        Sandbox(tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match="num_processes=0"):
        Sandbox(make_database(tmp_path / "a.sqlite"), num_processes=0)


def test_closing_ends_the_processes(database: Path) -> None:
    before = threading.active_count()
    opened = Sandbox(database)
    opened.run("SELECT 1")
    opened.close()
    opened.close()
    assert threading.active_count() == before
    with pytest.raises(WorkerUnavailableError, match="closed"):
        opened.run("SELECT 1")


@pytest.mark.parametrize("question", sample_questions(), ids=lambda one: one.question_id)
def test_the_sample_questions_gold_runs_here(question: SampleQuestion, samples: Sandbox) -> None:
    execution = samples.run(question.gold_sql)
    assert execution.outcome is SqlOutcome.ROWS, execution.message
