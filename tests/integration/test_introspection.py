"""What each kind of database says of itself, through one interface, read from real databases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import duckdb
import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.text2sql import prompts
from hexgen_sglang.text2sql.database import Database
from hexgen_sglang.text2sql.examples import derive_examples
from hexgen_sglang.text2sql.execution import SqlLimits
from hexgen_sglang.text2sql.introspection import read_schema
from hexgen_sglang.text2sql.sample.mariadb import ThrowawayMariadb, find_mariadb
from hexgen_sglang.text2sql.sample.postgresql import ThrowawayPostgresql, find_postgresql
from hexgen_sglang.text2sql.source import Dialect, Source, source_of

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
# Each takes this; the odd names need quotes in each dialect.
TABLES = """
CREATE TABLE author (id INTEGER PRIMARY KEY, "Full Name" VARCHAR(40) NOT NULL);
CREATE TABLE book (
    id INTEGER PRIMARY KEY,
    author_id INTEGER REFERENCES author (id),
    genre VARCHAR(20),
    "order" INTEGER,
    price DECIMAL(8, 2)
);
INSERT INTO author VALUES (1, 'Ada Abel'), (2, 'Bo O''Neil');
INSERT INTO book VALUES (1, 1, 'crime', 1, 9.5), (2, 1, 'crime', 2, 8), (3, 2, 'crime', 3, 7.25),
    (4, 2, 'poems', 4, 5), (5, 2, 'poems', 5, 5), (6, 1, 'poems', 6, 4);
CREATE VIEW cheap AS SELECT id, price FROM book WHERE price < 6;
"""
COMMENTS = """
COMMENT ON TABLE book IS 'what we sell';
COMMENT ON COLUMN book.genre IS 'as on the
shelf';
"""
TABLE_NAMES = ["author", "book", "cheap"]
needs_postgresql = pytest.mark.skipif(
    find_postgresql() is None, reason="no PostgreSQL server here (Debian's package postgresql)"
)
needs_mariadb = pytest.mark.skipif(
    find_mariadb() is None, reason="no MariaDB server here (Debian's mariadb-server-core)"
)


@pytest.fixture(scope="module")
def duckdb_source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = tmp_path_factory.mktemp("duckdb") / "books.duckdb"
    with closing(duckdb.connect(str(path))) as connection:
        connection.execute(TABLES + COMMENTS)
    return source_of(path)


@pytest.fixture(scope="module")
def postgresql_source() -> Iterator[Source]:
    with ThrowawayPostgresql() as server, server.connect() as admin:
        admin.execute(TABLES + COMMENTS)
        admin.execute("CREATE TABLE hidden (word TEXT)")
        admin.execute("CREATE ROLE reader LOGIN PASSWORD 'reads'")
        admin.execute("GRANT SELECT ON author, book, cheap TO reader")
        with pytest.raises(ConfigError, match="may only SELECT"):
            read_schema(server.url("postgres"))
        yield source_of(server.url("postgres", "reader", "reads"))


@pytest.fixture(scope="module")
def mysql_source() -> Iterator[Source]:
    with ThrowawayMariadb() as server, closing(server.connect()) as admin:
        cursor = admin.cursor()
        cursor.execute("CREATE DATABASE books")
        cursor.execute("USE books")
        cursor.execute("SET sql_mode = 'ANSI_QUOTES'")
        for statement in (
            *TABLES.strip().rstrip(";").split(";\n"),
            "ALTER TABLE book COMMENT 'what we sell'",
            "ALTER TABLE book MODIFY genre VARCHAR(20) COMMENT 'as on the\nshelf'",
            "CREATE TABLE hidden (word TEXT)",
            "CREATE USER reader@localhost IDENTIFIED BY 'reads'",
            *(f"GRANT SELECT ON {name} TO reader@localhost" for name in TABLE_NAMES),
        ):
            cursor.execute(statement)
        with pytest.raises(ConfigError, match="may only SELECT"):
            read_schema(server.url("books"))
        yield source_of(server.url("books", "reader", "reads"))


@pytest.fixture(
    params=[
        Dialect.DUCKDB,
        pytest.param(Dialect.POSTGRESQL, marks=needs_postgresql),
        pytest.param(Dialect.MYSQL, marks=needs_mariadb),
    ]
)
def source(request: pytest.FixtureRequest) -> Source:
    found: Source = request.getfixturevalue(f"{request.param}_source")
    return found


def test_tables_keys_comments_and_values(source: Source) -> None:
    schema = read_schema(source)
    assert schema.dialect is source.dialect
    assert [table.name for table in schema.tables] == TABLE_NAMES
    author, book, cheap = schema.tables
    assert [column.name for column in author.columns] == ["id", "Full Name"]
    assert author.columns[1].samples == ("'Ada Abel'", "'Bo O''Neil'")
    assert (book.comment, cheap.comment) == ("what we sell", "")
    key, reference, genre, order, price = book.columns
    assert (key.is_key, key.references) == (True, None)
    assert (reference.is_key, reference.references) == (False, "author.id")
    assert (genre.samples, genre.is_category) == (("'crime'", "'poems'"), True)
    assert genre.comment == "as on the shelf"
    assert order.is_measure
    assert price.is_measure
    assert not genre.is_measure


def test_every_example_runs_in_the_sandbox(source: Source) -> None:
    with Database(source, SqlLimits(time_s=10)) as database:
        examples = derive_examples(database.schema, most=1_000)
        assert len(examples) > 5
        for example in examples:
            assert database.sandbox.run(example.sql).rows, example
        quoted = "`order`" if source.dialect is Dialect.MYSQL else '"order"'
        assert any(quoted in example.sql for example in examples)


def test_the_prompt_says_the_dialect_and_the_comments(source: Source) -> None:
    schema = read_schema(source)
    prefix = prompts.prefix(schema, (), "Which books are cheap?")
    assert f"one {source.dialect.label} query" in prefix
    if source.dialect is Dialect.MYSQL:  # quotes every name
        assert "-- `book`: what we sell\n-- `book`.`genre`: as on the shelf\n" in prefix
        assert "`author`(`id`, `Full Name`)" in prefix
    else:
        assert "-- book: what we sell\n-- book.genre: as on the shelf\n" in prefix
        assert 'author(id, "Full Name")' in prefix


def test_what_cannot_be_reached_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as caught:
        read_schema(f"postgresql://reader:hunter2@/books?host={tmp_path}")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="scheme must be one of"):
        read_schema("oracle://reader:hunter2@host/books")
    with pytest.raises(ConfigError, match="names no database"):
        read_schema("mysql://reader:hunter2@host")
    damaged = tmp_path / "damaged.duckdb"
    damaged.write_bytes(bytes(8) + b"DUCK" + b"\xff" * 5_000)
    with pytest.raises(ConfigError, match=r"damaged\.duckdb"):
        read_schema(damaged)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="../shared/data is not here")
def test_all_twelve_shared_databases_are_read() -> None:
    paths = [
        SHARED_DATA / "chinook" / "Chinook_Sqlite.sqlite",
        *(SHARED_DATA / "defog" / "sqlite").glob("*.sqlite"),
    ]
    assert len(paths) == 12
    schemas = {path.stem: read_schema(path) for path in paths}
    assert len(schemas["Chinook_Sqlite"].tables) == 11
    for name, schema in schemas.items():
        assert all(table.columns for table in schema.tables), name
        assert any(column.samples for table in schema.tables for column in table.columns), name
