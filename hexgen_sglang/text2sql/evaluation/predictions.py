"""Where predicted SQL comes from: gold itself, a file, or the agent.

A `Predictor` gives predictions as they are made, in any order, each with what it cost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.text2sql.evaluation.questions import EvalQuestion, field_of, read_records
from hexgen_sglang.text2sql.source import Source

_ID = ("question_id", "id")
_SQL = ("predicted_sql", "sql", "SQL", "query")
# BIRD's prediction files put the database's name behind the SQL, after this.
_BIRD_MARK = "\t----- bird -----\t"


@dataclass(frozen=True, slots=True)
class Prediction:
    """One predicted query.

    Attributes:
        sql: None: there is none.
        message: why there is none, or what else went wrong; "" for nothing.
        elapsed_s: seconds that it took to make; None where that is not known. The other costs
            are 0 then.
    """

    sql: str | None
    message: str = ""
    elapsed_s: float | None = None
    num_rounds: int = 0
    num_requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    met_deadline: bool | None = None


Predicted = tuple[EvalQuestion, Prediction]


class Predictor(Protocol):
    """Writes SQL for questions.

    Attributes:
        name: for the report.
        settings: all that its predictions depend on; an interrupted evaluation goes on only
            with the same.
    """

    name: str
    settings: Mapping[str, object]

    def predict(self, source: Source, questions: Sequence[EvalQuestion]) -> Iterator[Predicted]:
        """A prediction for each of these questions over one database, in any order."""


class GoldPredictor:
    """Predicts each question's first gold query: whatever is not right is the set's or ours."""

    name = "gold"

    def __init__(self) -> None:
        self.settings: Mapping[str, object] = {}

    def predict(self, source: Source, questions: Sequence[EvalQuestion]) -> Iterator[Predicted]:
        for question in questions:
            yield question, Prediction(question.gold_sqls[0])


class FilePredictor:
    """Predictions that stand in a file.

    Args:
        path: JSON as BIRD's (`{"0": "SQL<TAB>----- bird -----<TAB>db"}`) or a list of objects,
            JSONL, CSV (`question_id`, `sql`), or any other ending: a query a line in the
            order of the questions, with whatever follows a tab left out, as Spider's.
        questions: all that are evaluated.

    Raises:
        ConfigError: it cannot be read, or names a question that does not exist.
    """

    def __init__(self, path: Path, questions: Sequence[EvalQuestion]) -> None:
        self.name = path.name
        ids = [question.question_id for question in questions]
        self._sqls = _sqls_by_id(path, ids)
        unknown = sorted(self._sqls.keys() - set(ids))
        if unknown:
            raise ConfigError(f"predictions={str(path)!r}: no such question: {unknown[0]!r}")
        self.settings: Mapping[str, object] = {"sqls": self._sqls}

    def predict(self, source: Source, questions: Sequence[EvalQuestion]) -> Iterator[Predicted]:
        for question in questions:
            sql = self._sqls.get(question.question_id, "").strip()
            yield question, Prediction(sql or None, "" if sql else "the file has none")


def _sqls_by_id(path: Path, ids: Sequence[str]) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"predictions={str(path)!r}: {error}") from error
    if path.suffix not in {".json", ".jsonl", ".csv"}:
        lines = text.splitlines()
        if len(lines) != len(ids):
            raise ConfigError(
                f"predictions={str(path)!r}: has {len(lines)} lines for {len(ids)} questions"
            )
        return {key: line.partition("\t")[0] for key, line in zip(ids, lines, strict=True)}
    if path.suffix == ".json":
        try:
            found = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"predictions={str(path)!r}: {error}") from error
        if isinstance(found, dict):
            return {str(key): str(sql).split(_BIRD_MARK)[0] for key, sql in found.items()}
    sqls: dict[str, str] = {}
    for position, record in enumerate(read_records(path)):
        key = field_of(record, _ID)
        if not key or key in sqls:
            raise ConfigError(
                f"predictions={str(path)!r}: record {position}: question_id {key!r}: must be "
                "there, and once"
            )
        sqls[key] = field_of(record, _SQL)
    return sqls
