"""Hostile statements on real databases: none changes, shows or takes what it should not."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hexgen_sglang.text2sql.execution import SqlLimits, SqlOutcome
from hexgen_sglang.text2sql.sample.mariadb import find_mariadb
from hexgen_sglang.text2sql.sample.postgresql import find_postgresql
from hexgen_sglang.text2sql.sandbox import Sandbox
from hexgen_sglang.text2sql.source import Dialect

BENCH = Path(__file__).parents[2] / "launch" / "bench" / "sql_attacks.py"
DIALECTS = tuple(Dialect)
needs_postgresql = pytest.mark.skipif(
    find_postgresql() is None, reason="no PostgreSQL server here (Debian's package postgresql)"
)
needs_mariadb = pytest.mark.skipif(
    find_mariadb() is None, reason="no MariaDB server here (Debian's mariadb-server-core)"
)
MARKS = {Dialect.POSTGRESQL: needs_postgresql, Dialect.MYSQL: needs_mariadb}


def load_bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sql_attacks_bench", BENCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


bench = load_bench()
ATTACKS = [
    pytest.param(dialect, attack, id=f"{dialect}-{attack.name}", marks=MARKS.get(dialect, ()))
    for dialect in DIALECTS
    for attack in bench.attacks_on(dialect)
]


@pytest.fixture(scope="module")
def arenas() -> Iterator[dict[Dialect, Any]]:
    """The databases that were asked for so far; made when first needed."""
    from contextlib import ExitStack

    class Arenas(dict[Dialect, Any]):
        def __missing__(self, dialect: Dialect) -> Any:
            self[dialect] = stack.enter_context(bench.arena_for(dialect))
            return self[dialect]

    with ExitStack() as stack:
        yield Arenas()


def test_there_are_enough_attacks() -> None:
    for dialect in DIALECTS:
        names = [attack.name for attack in bench.attacks_on(dialect)]
        assert len(names) == len(set(names)) >= 60


@pytest.mark.parametrize(("dialect", "attack"), ATTACKS)
def test_an_attack_is_withstood(dialect: Dialect, attack: Any, arenas: dict[Dialect, Any]) -> None:
    verdict = arenas[dialect].attack(attack)
    assert verdict.faults == (), verdict.message
    if arenas[dialect].is_refused_by_text(attack):
        # No parser of ours reads SQL exactly as a database does, so that must hold alone too.
        past_text = arenas[dialect].attack_database(attack)
        assert past_text.faults == (), past_text.message


WORDS = (
    "SELECT FROM item WITH RECURSIVE UNION ALL DELETE INSERT INTO UPDATE SET DROP TABLE CREATE "
    "TEMP ATTACH COPY PRAGMA VALUES COMMIT BEGIN ; ( ) , * = -- /* */ ' \" $$ \\ \0 \u200b id "
    "name price 1 'x' loot AS WHERE ORDER BY LIMIT CASE NULL EXPLAIN RETURNING \n"
)


@pytest.mark.parametrize(
    "dialect",
    # Without MySQL, whose connections and restarts are the slowest.
    [pytest.param(one, marks=MARKS.get(one, ())) for one in DIALECTS if one is not Dialect.MYSQL],
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    words=st.lists(st.sampled_from(WORDS.split(" ")), max_size=12),
    opener=st.sampled_from(["", "SELECT 1 ", "WITH a AS "]),
)
def test_no_mixture_of_words_changes_anything(
    dialect: Dialect, words: list[str], opener: str, arenas: dict[Dialect, Any]
) -> None:
    attack = bench.Attack("mixture", opener + " ".join(words), None)
    assert arenas[dialect].attack(attack).faults == ()
    assert arenas[dialect].attack_database(attack).faults == ()


def test_the_judge_sees_a_change_and_a_secret(arenas: dict[Dialect, Any]) -> None:
    """So that a verdict without faults says something."""
    arena = arenas[Dialect.SQLITE]
    shown = arena.attack(bench.Attack("shown", f"SELECT '{bench.SECRET}'", False))
    assert shown.faults == ("showed a secret",)
    before = arena._look()
    left = arena.folder / "loot"
    left.touch()
    assert arena._faults(before, 0.0, "") == ["changed something"]
    left.unlink()


def test_duckdb_gives_typed_rows_within_limits(arenas: dict[Dialect, Any]) -> None:
    source = arenas[Dialect.DUCKDB].source
    with Sandbox(source, SqlLimits(max_rows=3)) as sandbox:
        execution = sandbox.run(
            "SELECT id, name, price, DATE '2024-05-01' AS day, id > 1 AS more, [1, 2] AS list, "
            "1.50::DECIMAL(5, 2) AS money, '\\x01'::BLOB AS blob FROM item ORDER BY id"
        )
        assert execution.rows[2] == (2, "item 2", 3.0, "2024-05-01", True, "[1, 2]", 1.5, "x'01'")
        assert (len(execution.rows), execution.truncated) == (3, True)
        wrong = sandbox.run("SELECT nmae FROM item")
        assert wrong.outcome is SqlOutcome.ERROR
        assert 'column "nmae" not found' in wrong.message
        assert sandbox.run("SELECT id FROM item WHERE id < 0").outcome is SqlOutcome.EMPTY


@needs_postgresql
def test_postgresql_gives_typed_rows_within_limits(arenas: dict[Dialect, Any]) -> None:
    source = arenas[Dialect.POSTGRESQL].source
    with Sandbox(source, SqlLimits(max_rows=100, time_s=5)) as sandbox:
        execution = sandbox.run(
            "SELECT id, name, price, DATE '2024-05-01' AS day, sum(id) OVER () AS total, "
            "'100%' AS percent FROM item ORDER BY id"
        )
        assert execution.rows[2] == (2, "item 2", 3.0, "2024-05-01", 19900, "100%")
        assert (len(execution.rows), execution.truncated) == (100, True)
        wrong = sandbox.run("SELECT nmae FROM item")
        assert (wrong.outcome, wrong.message) == (
            SqlOutcome.ERROR,
            'column "nmae" does not exist',
        )
        slow = sandbox.run("SELECT count(*) FROM generate_series(1, 1000000000000)")
        assert (slow.outcome, slow.message) == (SqlOutcome.LIMIT, "took longer than 5 s")


@needs_postgresql
def test_a_role_that_reaches_the_servers_files_is_refused(arenas: dict[Dialect, Any]) -> None:
    url = arenas[Dialect.POSTGRESQL].source.location
    with Sandbox(url.replace("postgresql+psycopg://reader:", "postgresql://librarian:")) as opened:
        execution = opened.run("SELECT 1")
    assert execution.outcome is SqlOutcome.REFUSED
    assert "has the rights of pg_read_server_files" in execution.message


@needs_postgresql
def test_a_server_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    with Sandbox(f"postgresql://reader:x@/items?host={tmp_path}") as sandbox:
        execution = sandbox.run("SELECT 1")
    assert execution.outcome is SqlOutcome.ERROR
    assert "No such file" in execution.message


@needs_mariadb
def test_mysql_gives_typed_rows_within_limits(arenas: dict[Dialect, Any]) -> None:
    source = arenas[Dialect.MYSQL].source
    with Sandbox(source, SqlLimits(max_rows=100, time_s=1)) as sandbox:
        execution = sandbox.run(
            "SELECT id, name, price, DATE '2024-05-01' AS day, SUM(id) OVER () AS total, "
            "'100%' AS percent, NULL AS none FROM item ORDER BY id"
        )
        assert execution.rows[2] == (2, "item 2", 3.0, "2024-05-01", 19900, "100%", None)
        assert (len(execution.rows), execution.truncated) == (100, True)
        wrong = sandbox.run("SELECT nmae FROM item")
        assert wrong.outcome is SqlOutcome.ERROR
        assert "Unknown column 'nmae'" in wrong.message
        slow = sandbox.run("SELECT COUNT(*) FROM item a, item b, item c, item d, item e, item f")
        assert (slow.outcome, slow.message) == (SqlOutcome.LIMIT, "took longer than 1 s")


@needs_mariadb
def test_a_mysql_user_that_reaches_the_servers_files_is_refused(
    arenas: dict[Dialect, Any],
) -> None:
    url = arenas[Dialect.MYSQL].source.location
    with Sandbox(url.replace("mysql+pymysql://reader:", "mysql://librarian:")) as opened:
        execution = opened.run("SELECT 1")
    assert execution.outcome is SqlOutcome.REFUSED
    assert "rights over the whole server" in execution.message
