"""Reading a database's schema, and the examples made from it."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.text2sql.examples import derive_examples, plural, singular, words
from hexgen_sglang.text2sql.introspection import read_schema
from hexgen_sglang.text2sql.sample import make_sample_database
from hexgen_sglang.text2sql.schema import Schema, quoted
from hexgen_sglang.text2sql.source import Dialect

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


def database(folder: Path, script: str) -> Path:
    path = folder / "some.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    return path


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schema") / "bikes.sqlite"
    make_sample_database(path)
    return path


@pytest.fixture(scope="module")
def schema(sample: Path) -> Schema:
    return read_schema(sample)


def test_tables_columns_and_keys(schema: Schema) -> None:
    assert [table.name for table in schema.tables] == [
        "district", "station", "bike", "plan", "member", "trip", "mechanic", "repair",
    ]  # fmt: skip
    station = schema.table("STATION")
    assert station is not None
    assert [column.name for column in station.columns] == [
        "station_id", "name", "district_id", "docks", "opened_on",
    ]  # fmt: skip
    assert station.columns[0].is_key
    assert station.columns[2].references == "district.district_id"
    assert station.columns[3].is_measure
    assert not station.columns[0].is_measure
    assert station.label.name == "name"


def test_values_of_text_columns(schema: Schema) -> None:
    bike = schema.table("bike")
    assert bike is not None
    kind, status = bike.columns[1], bike.columns[4]
    assert (kind.samples, kind.is_category) == (("'city'", "'electric'", "'cargo'"), True)
    assert status.is_category
    station = schema.table("station")
    assert station is not None
    assert not station.columns[1].is_category
    assert bike.columns[3].samples == ()


def test_odd_names_values_and_types(tmp_path: Path) -> None:
    path = database(
        tmp_path,
        '''
        CREATE TABLE "order" ("unit price" REAL, "say ""hi""" TEXT, plain);
        INSERT INTO "order" VALUES (1, 'it''s
        two lines', x'ff'), (2, NULL, 3);
        CREATE TABLE child (parent_id REFERENCES parent, kind VARCHAR(9));
        CREATE TABLE parent (id INTEGER PRIMARY KEY);
        CREATE VIEW seen AS SELECT "unit price" AS price FROM "order";
        ''',
    )
    schema = read_schema(path)
    assert [table.name for table in schema.tables] == ["order", "child", "parent", "seen"]
    odd = schema.tables[0].columns
    assert [column.name for column in odd] == ["unit price", 'say "hi"', "plain"]
    assert odd[1].samples == ("'it''s two lines'",)
    assert schema.tables[1].columns[0].references == "parent.id"


def test_comments_in_the_text_of_a_table_are_its_columns(tmp_path: Path) -> None:
    path = database(
        tmp_path,
        """
        CREATE TABLE trip /* one ride */ (
            id INTEGER PRIMARY KEY,
            km REAL, /* as the crow
            flies */
            "fare paid" REAL DEFAULT 1 -- in euro
        );
        CREATE TABLE plain (note TEXT DEFAULT '-- no comment');
        """,
    )
    trip, plain = read_schema(path).tables
    assert [column.comment for column in trip.columns] == ["", "as the crow flies", "in euro"]
    assert trip.comment == "one ride"
    assert (plain.comment, plain.columns[0].comment) == ("", "")


def test_names_are_quoted_as_their_dialect_wants() -> None:
    assert [quoted("user", one) for one in Dialect] == ["user", '"user"', '"user"', "`user`"]
    assert [quoted("Mixed", one) for one in Dialect] == ["Mixed", "Mixed", '"Mixed"', "`Mixed`"]
    assert quoted("a`b", Dialect.MYSQL) == "`a``b`"


def test_no_samples_when_none_are_wanted(sample: Path) -> None:
    columns = [one for table in read_schema(sample, 0).tables for one in table.columns]
    assert all(column.samples == () for column in columns)
    with pytest.raises(ConfigError, match="num_samples=21"):
        read_schema(sample, 21)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_schema(tmp_path / "absent.sqlite")
    with pytest.raises(ConfigError, match="0 tables"):
        read_schema(database(tmp_path, "CREATE TABLE a (b); DROP TABLE a;"))
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_bytes(b"SQLite format 3\0" + b"\xff" * 4096)
    with pytest.raises(ConfigError, match="damaged"):
        read_schema(damaged)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a_1", "a_1"), ("order", '"order"'), ("two words", '"two words"'), ('q"q', '"q""q"'),
     ("1st", '"1st"'), ("größe", '"größe"')],
)  # fmt: skip
def test_names_are_quoted_where_needed(name: str, text: str) -> None:
    assert quoted(name) == text


def test_examples_show_every_kind_and_many_tables(schema: Schema) -> None:
    examples = derive_examples(schema)
    assert len(examples) == 8
    assert examples == derive_examples(schema)
    text = " ".join(example.sql for example in examples)
    for part in ("JOIN", "ORDER BY", "WHERE", "AVG(", "GROUP BY"):
        assert part in text
    assert {table for example in examples for table in example.tables} == {
        table.name for table in schema.tables
    }
    assert len({example.question for example in examples}) == 8


def test_every_example_runs(sample: Path, schema: Schema) -> None:
    examples = derive_examples(schema, most=1_000)
    assert len(examples) > 20
    with closing(sqlite3.connect(sample)) as connection:
        for example in examples:
            assert connection.execute(example.sql).fetchall(), example


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="../shared/data is not here")
def test_every_example_runs_on_other_databases() -> None:
    paths = [
        SHARED_DATA / "chinook" / "Chinook_Sqlite.sqlite",
        *(SHARED_DATA / "defog" / "sqlite").glob("*.sqlite"),
    ]
    assert len(paths) == 12
    for path in paths:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            for example in derive_examples(read_schema(path), most=1_000):
                connection.execute(example.sql).fetchall()


def test_names_are_said_in_english() -> None:
    assert words("Birth_Year") == "birth year"
    assert (singular("stations"), plural("stations"), plural("station")) == (
        "station", "stations", "stations",
    )  # fmt: skip
    assert singular("address") == "address"
