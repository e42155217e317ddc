"""`hexgen-sglang eval` on real databases: gold, files, interruption, and the agent's own path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hexgen_sglang.cli.main import application
from hexgen_sglang.text2sql.evaluation import run
from hexgen_sglang.text2sql.evaluation.predictions import GoldPredictor
from hexgen_sglang.text2sql.evaluation.questions import EvalQuestion, read_questions
from hexgen_sglang.text2sql.sample import make_sample_database, sample_questions
from hexgen_sglang.text2sql.sandbox import Sandbox

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
CHINOOK = SHARED_DATA / "chinook"
DEFOG = SHARED_DATA / "defog"
needs_shared = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="../shared/data is not here")


@pytest.fixture(scope="module")
def bikes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eval") / "bikes.sqlite"
    make_sample_database(path)
    return path


def evaluated(folder: Path, *arguments: str) -> dict[str, Any]:
    report = folder / "report.json"
    done = CliRunner().invoke(application, ["eval", "--json", str(report), *arguments])
    assert done.exit_code == 0, done.output
    assert [path.name for path in folder.glob("*.progress.jsonl")] == []
    found: dict[str, Any] = json.loads(report.read_text())
    return found


@needs_shared
@pytest.mark.parametrize(
    ("questions", "db", "number"),
    [
        (CHINOOK / "questions_januarylabs.json", CHINOOK / "Chinook_Sqlite.sqlite", 78),
        (DEFOG / "questions_gen_sqlite.csv", DEFOG / "sqlite", 210),
    ],
    ids=["chinook", "defog"],
)
def test_gold_against_itself_is_right(
    questions: Path, db: Path, number: int, tmp_path: Path
) -> None:
    report = evaluated(
        tmp_path, "--questions", str(questions), "--db", str(db), "--predictions", "gold",
        "--html", str(tmp_path / "report.html"),
    )  # fmt: skip
    assert report["num_questions"] == number
    assert report["execution_accuracy"] == report["execution_accuracy_in_order"] == 1.0
    assert (report["valid_sql_frac"], report["gold_failed"]) == (1.0, 0)
    assert "<details>" in (tmp_path / "report.html").read_text()


@needs_shared
def test_every_gold_alternative_runs() -> None:
    asked = read_questions(DEFOG / "questions_gen_sqlite.csv")
    databases = run.databases_of(asked, str(DEFOG / "sqlite"))
    for name, source in databases.items():
        with Sandbox(source, run.LIMITS, num_processes=1) as sandbox:
            for question in (one for one in asked if one.db_id == name):
                for sql in question.gold_sqls:
                    assert sandbox.run(sql).ran, sql


def test_a_file_of_predictions_is_judged(bikes: Path, tmp_path: Path) -> None:
    sqls = {one.question_id: one.gold_sql for one in sample_questions()}
    sqls["bikes-01"] = "SELECT COUNT(*) FROM bike"  # runs, and is wrong
    sqls["bikes-02"] = "SELECT absent FROM bike"
    sqls["bikes-03"] = "DROP TABLE bike"
    del sqls["bikes-04"]
    predictions = tmp_path / "predictions.json"
    predictions.write_text(json.dumps(sqls))
    before = bikes.read_bytes()
    report = evaluated(tmp_path, "--db", str(bikes), "--predictions", str(predictions))
    assert bikes.read_bytes() == before
    assert report["num_questions"] == 24
    assert report["execution_accuracy"] == pytest.approx(20 / 24)
    assert report["valid_sql_frac"] == pytest.approx(21 / 24)
    outcomes = {one["question_id"]: one["outcome"] for one in report["results"]}
    wrong = [outcomes[f"bikes-0{number}"] for number in range(1, 5)]
    assert wrong == ["rows", "error", "refused", "no_sql"]
    assert set(report["by_difficulty"]) == {"easy", "medium", "hard"}


def test_an_interrupted_evaluation_goes_on(bikes: Path, tmp_path: Path) -> None:
    asked = [
        EvalQuestion(str(number), "", "?", "", (f"SELECT {number}",), "easy") for number in range(5)
    ]
    databases = run.databases_of(asked, str(bikes))
    identity = run.identity_of(asked, databases, GoldPredictor())
    made: list[str] = []

    class Interrupted(Exception):
        """As a person would."""

    def stop_after_two(result: Any) -> None:
        made.append(result.question_id)
        if len(made) == 2:
            raise Interrupted

    log = run.ResultLog(tmp_path / "log", identity)
    with pytest.raises(Interrupted):
        run.evaluate(asked, databases, GoldPredictor(), log, stop_after_two)
    log.close()
    again = run.ResultLog(tmp_path / "log", identity)
    made.clear()
    results = run.evaluate(
        asked, databases, GoldPredictor(), again, lambda one: made.append(one.question_id)
    )
    again.close()
    assert made == ["2", "3", "4"]
    assert [one.question_id for one in results] == ["0", "1", "2", "3", "4"]
    assert all(one.is_right for one in results)
    other = run.identity_of(asked[:4], databases, GoldPredictor())
    assert other != identity


def test_gold_that_cannot_be_run_is_counted(bikes: Path) -> None:
    question = EvalQuestion("0", "", "?", "", ("SELECT absent FROM bike",), "easy")
    with Sandbox(bikes) as sandbox:
        ((asked, prediction),) = GoldPredictor().predict(sandbox.source, [question])
        result = run.judge(asked, prediction, sandbox)
    assert (result.is_right, result.gold_error) == (False, "no such column: absent")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--predictions", "absent.json"], "absent.json"),
        (
            ["--predictions", "agent", "--url", "http://127.0.0.1:9"],
            "no OpenAI-compatible server answers",
        ),
        (["--questions", "absent.csv", "--predictions", "gold"], "absent.csv"),
        (["--db", "absent", "--predictions", "gold"], "absent"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    done = CliRunner().invoke(
        application, ["eval", "--json", str(tmp_path / "report.json"), *arguments]
    )
    assert done.exit_code != 0
    assert message in str(done.exception)
    assert list(tmp_path.iterdir()) == []
