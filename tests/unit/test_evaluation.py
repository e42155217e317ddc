"""Reading questions and predictions, comparing rows, and figures: without any process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.text2sql.evaluation.matching import match
from hexgen_sglang.text2sql.evaluation.page import page_of
from hexgen_sglang.text2sql.evaluation.predictions import FilePredictor, Prediction
from hexgen_sglang.text2sql.evaluation.questions import (
    difficulty_of,
    read_questions,
    statements_in,
)
from hexgen_sglang.text2sql.evaluation.report import QuestionResult, figures_of, report_of
from hexgen_sglang.text2sql.evaluation.run import ResultLog
from hexgen_sglang.text2sql.execution import Execution, SqlOutcome
from hexgen_sglang.text2sql.source import Dialect, Source

# No deadlines: the machine may be busy with other things.
few = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SOURCE = Source(Dialect.SQLITE, "/x.sqlite", "/x.sqlite")


def written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_bird(tmp_path: Path) -> None:
    record = {
        "question_id": 7, "db_id": "school", "question": "How many?", "evidence": "all of them",
        "SQL": "SELECT 1", "difficulty": "challenging",
    }  # fmt: skip
    (question,) = read_questions(written(tmp_path / "dev.json", [record]))
    assert (question.question_id, question.db_id, question.difficulty) == (
        "7", "school", "challenging",
    )  # fmt: skip
    assert question.text == "How many? all of them"
    assert question.gold_sqls == ("SELECT 1",)


def test_spider_whose_sql_field_is_a_parse(tmp_path: Path) -> None:
    record = {
        "db_id": "concert", "question": "How many?", "query": "SELECT count(*) FROM singer",
        "sql": {"select": [False, []]}, "query_toks": ["SELECT"],
    }  # fmt: skip
    questions = read_questions(written(tmp_path / "dev.json", [record, record]))
    assert [one.question_id for one in questions] == ["0", "1"]
    assert (questions[0].gold_sqls, questions[0].difficulty) == ((record["query"],), "easy")


def test_csv_with_several_gold_queries(tmp_path: Path) -> None:
    text = (
        "db_name,query_category,query,question,instructions\n"
        'yelp,ratio,"SELECT \';\' AS a;\nSELECT 2; ","How\nmany?",\n'
    )
    (question,) = read_questions(written(tmp_path / "gen.csv", text))
    assert question.gold_sqls == ("SELECT ';' AS a", "SELECT 2")
    assert (question.db_id, question.difficulty, question.text) == ("yelp", "ratio", "How\nmany?")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", [], "has 0 records"),
        ("a.json", {"question": "x"}, "must be a list of objects"),
        ("a.json", "[", "Expecting value"),
        ("a.json", [{"question": "x"}], "record 0: has no gold SQL"),
        ("a.json", [{"SQL": "SELECT 1"}], "record 0: has no question"),
        ("a.jsonl", '{"id": 1, "input": "x", "expected": "SELECT 1"}\n' * 2, "'1' is there twice"),
        ("a.txt", "x", r"must end in \.json"),
    ],
)
def test_what_is_no_set_of_questions_says_why(
    tmp_path: Path, name: str, content: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_questions(written(tmp_path / name, content))


def test_difficulties() -> None:
    assert difficulty_of("SELECT a FROM t WHERE b = 1 ORDER BY a") == "easy"
    assert difficulty_of("SELECT a, count(*) FROM t GROUP BY a") == "medium"
    assert difficulty_of("SELECT t.a FROM t JOIN u ON t.a = u.a") == "medium"
    assert difficulty_of("SELECT a FROM t WHERE a > (SELECT avg(a) FROM t)") == "hard"
    assert difficulty_of("SELECT FROM WHERE") == "unknown"


@few
@given(st.lists(st.sampled_from(["SELECT 1", "SELECT ';'", "SELECT 2 -- ;\n", ""]), max_size=6))
def test_statements_are_the_parts_between_semicolons(parts: list[str]) -> None:
    wanted = dict.fromkeys(part.strip() for part in parts if part)
    assert statements_in(";".join(parts)) == tuple(wanted)


def make_question_file(folder: Path) -> Path:
    records = [{"question": f"q{number}", "query": "SELECT 1"} for number in range(3)]
    return written(folder / "questions.json", records)


def predicted(path: Path, folder: Path) -> list[Prediction]:
    questions = read_questions(make_question_file(folder))
    pairs = FilePredictor(path, questions).predict(SOURCE, questions)
    return [prediction for _, prediction in pairs]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.json", {"0": "SELECT 5\t----- bird -----\tschool", "2": "SELECT 6"}),
        ("p.json", [{"question_id": 2, "sql": "SELECT 6"}, {"id": 0, "sql": "SELECT 5"}]),
        ("p.csv", "question_id,sql\n0,SELECT 5\n2,SELECT 6\n"),
        ("p.txt", "SELECT 5\tschool\n\nSELECT 6\n"),
    ],
)
def test_predictions_from_files(tmp_path: Path, name: str, content: object) -> None:
    found = predicted(written(tmp_path / name, content), tmp_path)
    assert [one.sql for one in found] == ["SELECT 5", None, "SELECT 6"]
    assert found[1].message == "the file has none"


def test_predictions_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such question: '9'"):
        predicted(written(tmp_path / "p.json", {"9": "SELECT 1"}), tmp_path)
    with pytest.raises(ConfigError, match="has 2 lines for 3 questions"):
        predicted(written(tmp_path / "p.txt", "SELECT 1\nSELECT 2\n"), tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        predicted(tmp_path / "absent.json", tmp_path)


def ran(sql: str, *rows: tuple[str | int | float | None, ...], cut: bool = False) -> Execution:
    outcome = SqlOutcome.ROWS if rows else SqlOutcome.EMPTY
    return Execution(sql=sql, outcome=outcome, rows=rows, truncated=cut)


def judged(predicted: Execution, gold: Execution) -> tuple[bool, bool, bool]:
    found = match(predicted, gold, Dialect.SQLITE)
    return found.is_right, found.in_order, found.as_set


def test_rows_are_compared_under_three_rules() -> None:
    gold = ran("SELECT a FROM t ORDER BY a", (1,), (2,))
    assert judged(ran("", (1.0,), (2,)), gold) == (True, True, True)
    assert judged(ran("", (2,), (1,)), gold) == (True, False, True)
    assert judged(ran("", (2,), (1,)), ran("SELECT a FROM t", (1,), (2,))) == (True, True, True)
    assert judged(ran("", (1,), (2,), (2,)), gold) == (False, False, True)
    assert judged(ran("", (1, 2)), ran("", (2, 1))) == (False, False, False)
    assert judged(ran(""), ran("")) == (True, True, True)


def test_what_did_not_run_or_was_cut_off_matches_nothing() -> None:
    failed = Execution(sql="", outcome=SqlOutcome.ERROR, message="no")
    assert judged(failed, ran("")) == (False, False, False)
    assert judged(failed, failed) == (False, False, False)
    assert judged(ran("", (1,), cut=True), ran("", (1,))) == (False, False, False)


ROWS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([None, "a", 1.5])), max_size=5)


@few
@given(ROWS, ROWS)
def test_laws_of_matching(ours: list[tuple[int, object]], theirs: list[tuple[int, object]]) -> None:
    left, right = ran("", *ours), ran("", *theirs)  # type: ignore[arg-type]
    found = match(left, right, Dialect.SQLITE)
    assert found == match(right, left, Dialect.SQLITE)
    assert match(left, left, Dialect.SQLITE).in_order
    assert found.as_set or not found.is_right
    assert found.is_right or not found.in_order


def result(number: int, **fields: object) -> QuestionResult:
    usual: dict[str, object] = {
        "question_id": str(number), "db_id": "", "difficulty": "easy", "question": "<q>",
        "gold_sql": "SELECT 1", "predicted_sql": "SELECT '<b>'", "outcome": "rows",
        "message": "", "gold_error": "", "is_right": True, "in_order": True, "as_set": True,
        "num_rounds": 0, "num_requests": 4, "prompt_tokens": 100, "cached_tokens": 50,
        "output_tokens": 10, "elapsed_s": 1.0, "sql_s": 0.1, "met_deadline": True,
    }  # fmt: skip
    return QuestionResult(**(usual | fields))  # type: ignore[arg-type]


def test_figures() -> None:
    results = [
        result(0),
        result(1, difficulty="hard", outcome="error", is_right=False, num_rounds=2, elapsed_s=3.0),
        result(2, difficulty="hard", outcome="no_sql", is_right=False, met_deadline=False),
        result(3, outcome="empty"),
    ]
    figures = figures_of(results)
    assert (figures.num_questions, figures.execution_accuracy) == (4, 0.5)
    assert figures.valid_sql_frac == 0.5
    assert figures.rounds == {"0": 3, "2": 1}
    assert (figures.latency_mean_s, figures.latency_p50_s, figures.latency_p90_s) == (1.5, 1, 3)
    assert figures.deadline_met_frac == 0.75
    report = report_of(results, "set", "agent", {}, {})
    assert report.by_difficulty["hard"].execution_accuracy == 0
    assert sum(one.num_questions for one in report.by_difficulty.values()) == 4
    assert figures_of([result(0, elapsed_s=None, met_deadline=None)]).latency_p50_s is None


def test_the_page_escapes_what_others_wrote() -> None:
    page = page_of(report_of([result(0)], "<set>", "agent", {}, {"Python": "3"}))
    assert "&lt;q&gt;" in page
    assert "<b>'" not in page
    assert "&lt;set&gt;" in page


def test_an_interrupted_log_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "log" / "a.jsonl"
    log = ResultLog(path, "one")
    log.add(result(0))
    log.add(result(1))
    log.close()
    with path.open("a") as file:
        file.write('{"question_id": "2", "db')
    again = ResultLog(path, "one")
    assert again.results == [result(0), result(1)]
    again.add(result(2))
    again.close()
    last = ResultLog(path, "one")
    assert [one.question_id for one in last.results] == ["0", "1", "2"]
    last.close()
    with pytest.raises(ConfigError, match="another evaluation"):
        ResultLog(path, "other")
    last.remove()
    assert not path.exists()
