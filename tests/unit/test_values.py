"""The index of a database's own values: what a question speaks of is found, without a model."""

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hexgen_sglang.text2sql.introspection import read_schema
from hexgen_sglang.text2sql.sample import make_sample_database
from hexgen_sglang.text2sql.source import Dialect, source_of
from hexgen_sglang.text2sql.values import Value, ValueIndex, read_values

INDEX = ValueIndex(
    [
        Value("track", "genre", "Rock"),
        Value("track", "genre", "Rock And Roll"),
        Value("customer", "state", "CA"),
        Value("customer", "city", "São Paulo"),
        Value("customer", "name", "O'Neil"),
        Value("invoice", "code", "1234"),
    ]
)


def found(question: str) -> list[str]:
    return [value.text for value in INDEX.find(question)]


def test_case_plurals_and_slips_do_not_hide_a_value() -> None:
    assert found("How many ROCK tracks are there?") == ["Rock"]
    assert found("Who lives in Sao Paulo?") == ["São Paulo"]
    assert found("Which albums are rock and rol?") == ["Rock And Roll"]
    assert found("How many rocky mountains?") == []


def test_the_longer_value_hides_the_one_within_it() -> None:
    assert found("all rock and roll tracks") == ["Rock And Roll"]


def test_codes_count_letter_by_letter() -> None:
    assert found("customers in CA") == ["CA"]
    assert found("what a customer can do, ca. 1234 times") == []


def test_nothing_is_found_in_nothing() -> None:
    assert found("") == []
    assert found("???") == []
    assert ValueIndex([]).find("rock") == ()


def test_a_value_is_written_as_sql() -> None:
    line = Value("order", "Full Name", "O'Neil").line(Dialect.POSTGRESQL)
    assert line == "\"order\".\"Full Name\" = 'O''Neil'"


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text(alphabet="abcdefgh ", min_size=4, max_size=20), max_size=8), st.data())
def test_a_value_that_stands_in_the_question_is_found(
    texts: list[str], data: st.DataObject
) -> None:
    words = [" ".join(text.split()) for text in texts if len("".join(text.split())) >= 4]
    words = [one for one in words if one.count(" ") < 6]
    index = ValueIndex(Value("t", "c", one) for one in words)
    if words:
        wanted = data.draw(st.sampled_from(words))
        hits = [value.text for value in index.find(f"is it {wanted}?", most=20)]
        assert any(wanted in hit for hit in hits)


def test_the_sample_database_is_indexed(tmp_path: Path) -> None:
    path = tmp_path / "bikes.sqlite"
    make_sample_database(path)
    source = source_of(path)
    index = read_values(source, read_schema(source))
    assert len(index) > 100
    lines = [value.line(Dialect.SQLITE) for value in index.find("How many bikes are in repair?")]
    assert lines == ["bike.status = 'in repair'"]
    assert [value.text for value in index.find("Trips from Old Harbour Bridge")] == [
        "Old Harbour Bridge"
    ]
