"""Which of the database's own values a question speaks of: an index of them, and no model.

Read once for each database, in the agent's process. Text is compared by its trigrams of
characters, so that case, accents, plurals and slips of the pen hide no value.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hexgen_sglang.text2sql.introspection import open_reader
from hexgen_sglang.text2sql.schema import Schema, quoted
from hexgen_sglang.text2sql.source import Dialect, Source

_READ_ROWS = 100_000
_VALUES_OF_COLUMN = 2_000
_MAX_VALUE_CHARS = 60
_MAX_VALUE_WORDS = 6
# Shorter ones (codes such as CA) count only when the question has them letter by letter.
_FUZZY_CHARS = 4
_MIN_SCORE = 0.75
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Value:
    """One value of a text column, as the database has it."""

    table: str
    column: str
    text: str

    def line(self, dialect: Dialect) -> str:
        """The value as SQL text: `bike.status = 'in repair'`."""
        text = self.text.replace("'", "''")
        return f"{quoted(self.table, dialect)}.{quoted(self.column, dialect)} = '{text}'"


class ValueIndex:
    """Finds values in questions; built once, then only read, from any thread."""

    def __init__(self, values: Iterable[Value]) -> None:
        self._values: list[Value] = []
        self._words: list[str] = []
        self._trigrams: list[frozenset[str]] = []
        self._holders: defaultdict[str, list[int]] = defaultdict(list)
        for value in dict.fromkeys(values):
            words = " ".join(_words(value.text))
            if len(words) < 2 or words.isdigit():
                continue
            trigrams = _trigrams(words)
            for trigram in trigrams:
                self._holders[trigram].append(len(self._values))
            self._values.append(value)
            self._words.append(words)
            self._trigrams.append(trigrams)

    def __len__(self) -> int:
        return len(self._values)

    def find(self, question: str, most: int = 5) -> tuple[Value, ...]:
        """Up to `most` values that the question speaks of, the likeliest first.

        A value that is part of a longer one that was found is left out.
        """
        asked = _words(question)
        if not asked:
            return ()
        spans = list(_spans(asked))
        exact = set(_WORD.findall(question))
        asked_trigrams = _trigrams(" ".join(asked))
        shared = Counter(
            number for trigram in asked_trigrams for number in self._holders.get(trigram, ())
        )
        found: list[tuple[float, int, int]] = []
        for number, count in shared.items():
            # A score of 0.75 needs at least 0.6 of the value's own trigrams.
            if count < 0.6 * len(self._trigrams[number]):
                continue
            score = self._score(number, spans, exact)
            if score >= _MIN_SCORE:
                found.append((-score, -len(self._words[number]), number))
        numbers = [number for _, _, number in sorted(found)]
        all_words = [self._words[number] for number in numbers]
        whole = [
            number
            for number, words in zip(numbers, all_words, strict=True)
            if not any(words != other and words in other for other in all_words)
        ]
        return tuple(self._values[number] for number in whole[:most])

    def _score(self, number: int, spans: list[str], exact: set[str]) -> float:
        """How like the most similar part of the question is: 0 to 1."""
        words = self._words[number]
        if len(words) < _FUZZY_CHARS:
            return float(self._values[number].text in exact)
        wanted = self._trigrams[number]
        length = words.count(" ") + 1
        return max(
            (_dice(wanted, _trigrams(one)) for one in spans if one.count(" ") + 1 == length),
            default=0.0,
        )


def read_values(source: Source, schema: Schema) -> ValueIndex:
    """An index of the short values of all text columns, as far as a bounded look shows them.

    Raises:
        ConfigError: the database cannot be read.
    """
    with open_reader(source) as reader:
        return ValueIndex(
            Value(table.name, column.name, str(text))
            for table in schema.tables
            for column in table.columns
            if column.is_text
            for (text,) in reader.rows(_query(table.name, column.name, source.dialect))
        )


def _query(table: str, column: str, dialect: Dialect) -> str:
    is_text = "typeof(value) = 'text' AND " if dialect is Dialect.SQLITE else ""
    length = "char_length" if dialect is Dialect.MYSQL else "length"
    return (
        f"SELECT DISTINCT value FROM (SELECT {quoted(column, dialect)} AS value "
        f"FROM {quoted(table, dialect)} LIMIT {_READ_ROWS}) AS first_rows "
        f"WHERE {is_text}{length}(value) BETWEEN 2 AND {_MAX_VALUE_CHARS} "
        f"LIMIT {_VALUES_OF_COLUMN}"
    )


def _words(text: str) -> list[str]:
    """The words, without case and accents."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return _WORD.findall("".join(char for char in plain if not unicodedata.combining(char)))


def _spans(words: list[str]) -> Iterator[str]:
    """All runs of up to six words."""
    for start in range(len(words)):
        for end in range(start + 1, min(start + _MAX_VALUE_WORDS, len(words)) + 1):
            yield " ".join(words[start:end])


def _trigrams(text: str) -> frozenset[str]:
    padded = f" {text} "
    return frozenset(padded[start : start + 3] for start in range(len(padded) - 2))


def _dice(left: frozenset[str], right: frozenset[str]) -> float:
    """Twice what is common, over what there is."""
    return 2 * len(left & right) / (len(left) + len(right))
