"""Questions with gold SQL, read from the files of the usual test sets.

One table of field names serves them all: BIRD (`SQL`, `evidence`, `difficulty`), Spider
(`query`), sql-eval (`query_category`, `instructions`), pairs of `input` and `expected`, our own
sample, and any CSV, JSON or JSONL file that uses these names.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlglot
from msgspec import Struct
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.tokens import TokenType

from hexgen_sglang.core.errors import ConfigError

MAX_QUESTIONS = 100_000
_QUESTION = ("question", "input")
_GOLD = ("gold_sql", "SQL", "query", "expected", "sql")
_DATABASE = ("db_id", "db_name", "database")
_ID = ("question_id", "id")
_DIFFICULTY = ("difficulty", "hardness", "query_category")
_HINT = ("evidence", "instructions")


class EvalQuestion(Struct, frozen=True):
    """One question with what answers it.

    Attributes:
        question_id: unique in its set; the position from 0 where the file has none.
        db_id: the database's name; "" where the set is about one database.
        question: as asked, without the hint.
        hint: what the set tells beside the question; "" for nothing.
        gold_sqls: alternatives, at least one; rows that equal those of any are right.
        difficulty: as the set says; where it does not: "easy" one table, "medium" a join or
            grouping, "hard" more than that.
    """

    question_id: str
    db_id: str
    question: str
    hint: str
    gold_sqls: tuple[str, ...]
    difficulty: str

    @property
    def text(self) -> str:
        """Question and hint, as a model is asked."""
        return f"{self.question} {self.hint}".strip()


def read_questions(path: Path) -> list[EvalQuestion]:
    """The questions of a file, in its order.

    Args:
        path: `.json` (a list of objects), `.jsonl` (an object a line) or `.csv` (with header).

    Raises:
        ConfigError: it cannot be read, or a record lacks its question or its gold SQL, or two
            have the same id.
    """
    records = read_records(path)
    if not 1 <= len(records) <= MAX_QUESTIONS:
        raise ConfigError(
            f"questions={str(path)!r}: has {len(records)} records; must be 1 to {MAX_QUESTIONS}"
        )
    where = f"questions={str(path)!r}"
    questions = [
        _question(record, position, f"{where}: record {position}")
        for position, record in enumerate(records)
    ]
    seen: set[str] = set()
    for question in questions:
        if question.question_id in seen:
            raise ConfigError(f"{where}: question_id {question.question_id!r} is there twice")
        seen.add(question.question_id)
    return questions


def read_records(path: Path) -> list[Mapping[str, Any]]:
    """The objects of a JSON, JSONL or CSV file.

    Raises:
        ConfigError: it cannot be read, or is none of these.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r}: {error}") from error
    try:
        if path.suffix == ".csv":
            return list(csv.DictReader(text.splitlines(keepends=True)))
        if path.suffix == ".jsonl":
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
        elif path.suffix == ".json":
            found = json.loads(text)
        else:
            raise ConfigError(f"{str(path)!r}: must end in .json, .jsonl or .csv")
    except (ValueError, csv.Error) as error:
        raise ConfigError(f"{str(path)!r}: {error}") from error
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ConfigError(f"{str(path)!r}: must be a list of objects")
    return found


def field_of(record: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first of these fields that holds text or a number; "" when none does."""
    for name in names:
        value = record.get(name)
        if isinstance(value, str | int) and str(value).strip():
            return str(value).strip()
    return ""


def statements_in(text: str) -> tuple[str, ...]:
    """The statements of a text, which semicolons separate; those in strings do not."""
    try:
        tokens = sqlglot.tokenize(text, read="sqlite")
    except SqlglotError:
        return (text.strip().rstrip(";"),)
    ends = [one.start for one in tokens if one.token_type is TokenType.SEMICOLON]
    starts = [0, *(end + 1 for end in ends)]
    parts = [text[start:end] for start, end in zip(starts, [*ends, len(text)], strict=True)]
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def difficulty_of(sql: str) -> str:
    """What a query is made of: "easy", "medium" or "hard"; "unknown" when it is not parsed."""
    try:
        parsed = sqlglot.parse_one(sql, read="sqlite")
    except (SqlglotError, RecursionError):
        return "unknown"
    num_selects = len(list(parsed.find_all(exp.Select)))
    num_joins = len(list(parsed.find_all(exp.Join)))
    if num_selects > 1 or num_joins > 2 or parsed.find(exp.Window):
        return "hard"
    return "medium" if num_joins or parsed.find(exp.Group) else "easy"


def _question(record: Mapping[str, Any], position: int, where: str) -> EvalQuestion:
    question, gold = field_of(record, _QUESTION), field_of(record, _GOLD)
    if not question:
        raise ConfigError(f"{where}: has no question; looked for {', '.join(_QUESTION)}")
    gold_sqls = statements_in(gold)
    if not gold_sqls:
        raise ConfigError(f"{where}: has no gold SQL; looked for {', '.join(_GOLD)}")
    return EvalQuestion(
        question_id=field_of(record, _ID) or str(position),
        db_id=field_of(record, _DATABASE),
        question=question,
        hint=field_of(record, _HINT),
        gold_sqls=gold_sqls,
        difficulty=field_of(record, _DIFFICULTY) or difficulty_of(gold_sqls[0]),
    )
