"""Runs an evaluation: predictions made, run and compared, and kept as they come.

Every result goes to a log beside the report at once, so that an interrupted evaluation goes on
where it stopped. The log is removed when the report is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import msgspec

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.text2sql.evaluation.matching import Match, match
from hexgen_sglang.text2sql.evaluation.predictions import Prediction, Predictor
from hexgen_sglang.text2sql.evaluation.questions import EvalQuestion
from hexgen_sglang.text2sql.evaluation.report import QuestionResult
from hexgen_sglang.text2sql.execution import Execution, SqlLimits
from hexgen_sglang.text2sql.sandbox import Sandbox
from hexgen_sglang.text2sql.source import Source, source_of

# Results are compared whole, so these are far above an interactive answer's.
LIMITS = SqlLimits(
    time_s=30.0,
    max_rows=100_000,
    max_bytes=50_000_000,
    memory_bytes=1_000_000_000,
    max_sql_chars=100_000,
)
_ENDINGS = ("sqlite", "duckdb", "db")

OnResult = Callable[[QuestionResult], None]


def databases_of(questions: Sequence[EvalQuestion], place: str) -> dict[str, Source]:
    """The database of each `db_id`, in order of first use.

    Args:
        questions: whose databases are wanted.
        place: a file or a server's URL, which is every question's then; or a folder with
            `DB_ID/DB_ID.sqlite` or `DB_ID.sqlite` (also `.duckdb`, `.db`).

    Raises:
        ConfigError: a database is not there, or is none.
    """
    names = dict.fromkeys(question.db_id for question in questions)
    if "://" in place or not Path(place).is_dir():
        source = source_of(place)
        return dict.fromkeys(names, source)
    return {name: source_of(_in_folder(Path(place), name)) for name in names}


def _in_folder(folder: Path, name: str) -> Path:
    if not name or Path(name).name != name:
        raise ConfigError(f"db={str(folder)!r}: a question's db_id is {name!r}, no name of a file")
    tried = [
        place
        for ending in _ENDINGS
        for place in (folder / name / f"{name}.{ending}", folder / f"{name}.{ending}")
    ]
    for place in tried:
        if place.is_file():
            return place
    raise ConfigError(f"db={str(folder)!r}: has no {tried[0].relative_to(folder)} or the like")


class ResultLog:
    """The results so far, in a file of JSON lines behind a line that says what they are of.

    Args:
        path: of the file; gone on with when it is there.
        identity: equal for evaluations whose results belong together.

    Raises:
        ConfigError: the file belongs to another evaluation, is damaged, or cannot be written.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self.results: list[QuestionResult] = []
        head = json.dumps({"evaluation": identity})
        try:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        except FileNotFoundError:
            lines = []
        except OSError as error:
            raise ConfigError(f"{path}: {error}") from error
        # A line without its end was being written when we were stopped.
        whole = [line for line in lines if line.endswith("\n")]
        if whole and whole[0].strip() != head:
            raise ConfigError(
                f"{path}: holds results of another evaluation; remove it to start anew"
            )
        try:
            self.results = [msgspec.json.decode(one, type=QuestionResult) for one in whole[1:]]
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{path}: {error}; remove it to start anew") from error
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(whole) or head + "\n", encoding="utf-8")
            self._file: TextIO = path.open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: {error}") from error

    def add(self, result: QuestionResult) -> None:
        """Keep one more; on the disk when this returns."""
        self.results.append(result)
        self._file.write(msgspec.json.encode(result).decode() + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file, which stays."""
        self._file.close()

    def remove(self) -> None:
        """Close the file and remove it."""
        self.close()
        self.path.unlink(missing_ok=True)


def identity_of(
    questions: Sequence[EvalQuestion],
    databases: Mapping[str, Source],
    predictor: Predictor,
) -> str:
    """Equal for evaluations of the same questions, databases and predictor settings."""
    parts = [
        msgspec.json.encode(questions),
        json.dumps({key: source.name for key, source in databases.items()}).encode(),
        json.dumps([predictor.name, dict(predictor.settings)], sort_keys=True).encode(),
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def evaluate(
    questions: Sequence[EvalQuestion],
    databases: Mapping[str, Source],
    predictor: Predictor,
    log: ResultLog,
    on_result: OnResult,
) -> list[QuestionResult]:
    """The results of all questions, in their order; those in the log are not made again.

    Args:
        questions: all of them.
        databases: by `db_id`.
        predictor: writes the SQL of those that are left.
        log: takes every result as it comes.
        on_result: called after each new result.

    Raises:
        ConfigError: a database cannot be used.
    """
    done = {result.question_id for result in log.results}
    for name, source in databases.items():
        left = [one for one in questions if one.db_id == name and one.question_id not in done]
        if not left:
            continue
        with Sandbox(source, LIMITS, num_processes=1) as sandbox:
            for question, prediction in predictor.predict(source, left):
                result = judge(question, prediction, sandbox)
                log.add(result)
                on_result(result)
    by_id = {result.question_id: result for result in log.results}
    return [by_id[question.question_id] for question in questions]


def judge(question: EvalQuestion, prediction: Prediction, sandbox: Sandbox) -> QuestionResult:
    """Run what was predicted and compare it with every gold alternative, until one equals it."""
    predicted = None if prediction.sql is None else sandbox.run(prediction.sql)
    found, gold_errors = _compared(question, predicted, sandbox)
    usable = len(gold_errors) < len(question.gold_sqls)
    return QuestionResult(
        question_id=question.question_id,
        db_id=question.db_id,
        difficulty=question.difficulty,
        question=question.question,
        gold_sql=";\n".join(question.gold_sqls),
        predicted_sql=prediction.sql,
        outcome="no_sql" if predicted is None else predicted.outcome.value,
        message=prediction.message if predicted is None else _why(predicted),
        gold_error="" if usable else gold_errors[0],
        is_right=found.is_right,
        in_order=found.in_order,
        as_set=found.as_set,
        num_rounds=prediction.num_rounds,
        num_requests=prediction.num_requests,
        prompt_tokens=prediction.prompt_tokens,
        cached_tokens=prediction.cached_tokens,
        output_tokens=prediction.output_tokens,
        elapsed_s=prediction.elapsed_s,
        sql_s=0.0 if predicted is None else predicted.elapsed_s,
        met_deadline=prediction.met_deadline,
    )


def _compared(
    question: EvalQuestion, predicted: Execution | None, sandbox: Sandbox
) -> tuple[Match, list[str]]:
    """How the rows agree, and why gold queries could not be compared with."""
    found = Match()
    errors: list[str] = []
    for sql in question.gold_sqls:
        gold = sandbox.run(sql)
        if not gold.ran or gold.truncated:
            errors.append(_why(gold))
            continue
        if predicted is None:
            break
        found |= match(predicted, gold, sandbox.source.dialect)
        if found.in_order:
            break
    return found, errors


def _why(execution: Execution) -> str:
    """What kept an execution from whole rows; "" for nothing."""
    return "its rows were cut off at the limits" if execution.truncated else execution.message
