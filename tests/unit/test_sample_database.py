"""The sample database: always the same, sound, and answered by its gold SQL."""

import hashlib
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.text2sql.sample import (
    ensure_sample_database,
    make_sample_database,
    sample_questions,
)

# Of every table's rows in order. It changes only together with CONTENT_VERSION.
CONTENT_SHA256 = "a25cefb178852da8ff1be421a212162b0660e867117a4218685090c57fb9885a"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "bikes.sqlite"
    make_sample_database(path)
    return path


@pytest.fixture
def connection(database: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(database)) as opened:
        yield opened


def tables(connection: sqlite3.Connection) -> list[str]:
    found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    return [name for (name,) in found]


def test_the_content_is_always_the_same(connection: sqlite3.Connection) -> None:
    digest = hashlib.sha256()
    for table in tables(connection):
        for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1"):
            digest.update(repr((table, row)).encode())
    assert digest.hexdigest() == CONTENT_SHA256


def test_two_files_are_equal_byte_by_byte(database: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.sqlite"
    make_sample_database(again)
    assert again.read_bytes() == database.read_bytes()


def test_it_is_large_enough_and_related(connection: sqlite3.Connection) -> None:
    names = tables(connection)
    counts = {
        name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names
    }
    assert len(names) == 8
    assert sum(counts.values()) > 1_500
    assert all(counts.values())
    keys = [connection.execute(f"PRAGMA foreign_key_list({name})").fetchall() for name in names]
    assert sum(map(len, keys)) == 9


def test_its_keys_hold(connection: sqlite3.Connection) -> None:
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_its_facts_make_sense(connection: sqlite3.Connection) -> None:
    def one(sql: str) -> object:
        return connection.execute(sql).fetchone()[0]

    assert one("SELECT count(*) - count(DISTINCT name) FROM member") == 0
    assert one("SELECT min(minutes) FROM trip") == 4
    assert one("SELECT count(*) FROM repair WHERE closed_on < opened_on") == 0
    assert one("SELECT count(*) FROM repair WHERE (closed_on IS NULL) <> (cost IS NULL)") == 0
    assert one("SELECT min(started_at) FROM trip") >= "2023-01-01"  # type: ignore[operator]
    assert one("SELECT max(started_at) FROM trip") < "2025-01-01"  # type: ignore[operator]


def test_there_are_24_different_questions_of_three_difficulties() -> None:
    questions = sample_questions()
    assert len(questions) == 24
    assert len({question.question_id for question in questions}) == 24
    assert len({re.sub(r"\W+", " ", question.question.lower()) for question in questions}) == 24
    assert len({question.gold_sql for question in questions}) == 24
    assert {question.difficulty for question in questions} == {"easy", "medium", "hard"}


@pytest.mark.parametrize("question", sample_questions(), ids=lambda one: one.question_id)
def test_the_gold_answer_is_not_trivial(question: object, connection: sqlite3.Connection) -> None:
    rows = connection.execute(question.gold_sql).fetchall()  # type: ignore[attr-defined]
    assert rows
    assert any(cell is not None for row in rows for cell in row)


def test_it_is_made_once_and_only_where_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = ensure_sample_database()
    stamp = made.stat().st_mtime_ns
    assert made.is_relative_to(tmp_path / "cache")
    assert ensure_sample_database().stat().st_mtime_ns == stamp
    assert [path.name for path in made.parent.iterdir()] == [made.name]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        ensure_sample_database(tmp_path / "file" / "bikes.sqlite")
