"""A database of ours to try things on: a bicycle rental, with 24 questions and gold SQL."""

from hexgen_sglang.text2sql.sample.database import ensure_sample_database, make_sample_database
from hexgen_sglang.text2sql.sample.questions import SampleQuestion, sample_questions

__all__ = [
    "SampleQuestion",
    "ensure_sample_database",
    "make_sample_database",
    "sample_questions",
]
