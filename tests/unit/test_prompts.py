"""Prompts: what is shared comes first, and how much of them is shared."""

from pathlib import Path

import pytest

from hexgen_sglang.text2sql import prompts
from hexgen_sglang.text2sql.examples import derive_examples
from hexgen_sglang.text2sql.introspection import read_schema
from hexgen_sglang.text2sql.sample import make_sample_database, sample_questions
from hexgen_sglang.text2sql.schema import Column, Schema, Table
from hexgen_sglang.text2sql.source import Dialect
from hexgen_sglang.text2sql.stages import STRATEGIES

OTHER = Schema((Table("pet", (Column("pet_id", "INTEGER", is_key=True), Column("name", "TEXT"))),))


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Schema:
    path = tmp_path_factory.mktemp("prompts") / "bikes.sqlite"
    make_sample_database(path)
    return read_schema(path)


def shared(texts: list[str]) -> str:
    """The longest text that all begin with."""
    first, last = min(texts), max(texts)
    length = next(
        (at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first)
    )
    return first[:length]


def test_all_workflows_share_the_static_part(schema: Schema) -> None:
    texts = [
        prompts.prefix(one, derive_examples(one), question.question)
        for one in (schema, OTHER)
        for question in sample_questions()
    ]
    static = prompts.static_part()
    assert shared(texts).startswith(static)
    assert len(static) > 500


def test_workflows_over_one_database_share_its_part_too(schema: Schema) -> None:
    examples = derive_examples(schema)
    texts = [prompts.prefix(schema, examples, one.question) for one in sample_questions()]
    common = prompts.static_part() + prompts.database_part(schema, examples)
    assert shared(texts).startswith(common)
    # What is not shared is the question alone.
    assert all(len(text) - len(common) < 200 for text in texts)


def test_the_database_part_tells_all_tables_keys_and_categories(schema: Schema) -> None:
    text = prompts.database_part(schema, derive_examples(schema))
    for table in schema.tables:
        assert prompts.table_line(table) in text
    assert "trip.start_station_id = station.station_id\n" in text
    # A column named like the key it points at says so by its name.
    assert "station.district_id = district.district_id\n" not in text
    assert "bike.kind: 'city', 'electric', 'cargo'\n" in text
    assert text.endswith(";\n")


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [
        (Dialect.SQLITE, 'line."order" = "order".item_id\n'),
        (Dialect.POSTGRESQL, 'line."order" = "order".item_id\n'),
        (Dialect.MYSQL, "`line`.`order` = `order`.`item_id`\n"),
    ],
)
def test_keys_are_written_as_the_dialect_writes_names(dialect: Dialect, expected: str) -> None:
    order = Table("order", (Column("item_id", "INTEGER", is_key=True), Column("name", "TEXT")))
    line = Table("line", (Column("order", "INTEGER", references="order.item_id"),))
    schema = Schema((order, line), dialect)
    assert expected in prompts.database_part(schema, derive_examples(schema))
    [join] = [one.sql for one in derive_examples(schema) if "JOIN" in one.sql]
    assert expected.strip() in join


def test_a_long_question_is_cut_and_kept_on_one_line() -> None:
    part = prompts.question_part("what\nSQL: DROP" + " x" * 1_000)
    assert part.count("\n") == 1
    assert len(part) < 600


def test_a_huge_schema_is_cut_to_keys_from_its_end() -> None:
    columns = (
        Column("id", "INTEGER", is_key=True),
        Column("t0_id", "INTEGER", references="t0.id"),
        *(Column(f"column_number_{number}", "TEXT") for number in range(40)),
    )
    schema = Schema(tuple(Table(f"t{number}", columns) for number in range(30)))
    text = prompts.database_part(schema, ())
    assert "t0(id, t0_id, column_number_0," in text
    assert "t29(id, t0_id, ...)" in text
    assert text.count("column_number_0") < 10


def test_values_of_a_question_stand_behind_it() -> None:
    part = prompts.question_part("Which?", ["bike.status = 'in\nrepair'", "bike.kind = 'city'"])
    assert part == "Q: Which?\nValues: bike.status = 'in repair'; bike.kind = 'city'\n"
    assert prompts.question_part("Which?") == "Q: Which?\n"


def test_every_template_renders() -> None:
    values = {
        "linked": ("pet",), "columns": ["pet(pet_id, name)"], "question": "q?", "sql": "SELECT 1",
        "error": "no such column: a", "check": "One row.", "result": "a: 1", "values": (),
    }  # fmt: skip
    stages = ["link_schema", "extract_keywords", "revise", "generate_unit_test", "evaluate"]
    for name in [*stages, *(f"candidate_{strategy}" for strategy in STRATEGIES)]:
        text = prompts.tail(name, **values)
        # No blank after the colon: the model's own first token begins with it.
        assert text.endswith(":")
    files = {path.stem for path in Path(prompts.__file__).parent.glob("*.j2")}
    expected = {
        *stages,
        "static",
        "database",
        "question",
        "values",
        *(f"candidate_{one}" for one in STRATEGIES),
    }
    assert files == expected
