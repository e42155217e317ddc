"""The sample questions with gold SQL, for tests, the demo and evaluation."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

Difficulty = Literal["easy", "medium", "hard"]


class SampleQuestion(Struct, frozen=True, forbid_unknown_fields=True):
    """One question over the sample database.

    Attributes:
        question_id: short and unique.
        difficulty: "easy" one table, "medium" a join or grouping, "hard" more than that.
        question: in English.
        gold_sql: a query whose rows answer it.
    """

    question_id: Annotated[str, Meta(min_length=1, max_length=32)]
    difficulty: Difficulty
    question: Annotated[str, Meta(min_length=1, max_length=500)]
    gold_sql: Annotated[str, Meta(min_length=1, max_length=2_000)]


@cache
def sample_questions() -> tuple[SampleQuestion, ...]:
    """All 24, easy ones first."""
    text = files(__package__).joinpath("questions.json").read_bytes()
    return msgspec.json.decode(text, type=tuple[SampleQuestion, ...])
