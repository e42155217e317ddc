"""A database that questions are asked about: schema, examples, values and sandbox together.

Lives in the agent's process; shared by all questions over the database.
"""

from __future__ import annotations

from pathlib import Path

from hexgen_sglang.text2sql.closing import Closing
from hexgen_sglang.text2sql.examples import derive_examples
from hexgen_sglang.text2sql.execution import SqlLimits
from hexgen_sglang.text2sql.introspection import read_schema
from hexgen_sglang.text2sql.sandbox import Sandbox
from hexgen_sglang.text2sql.source import Source, source_of
from hexgen_sglang.text2sql.values import read_values


class Database(Closing):
    """A database, read once and ready to be asked; close it, or use `with`.

    Args:
        db: an SQLite or DuckDB file, or the URL of a PostgreSQL or MySQL server's database.
        limits: of each execution.

    Raises:
        ConfigError: no such database, without tables, or a user with too many rights.
    """

    def __init__(self, db: str | Path | Source, limits: SqlLimits | None = None) -> None:
        self.source = source_of(db)
        self.schema = read_schema(self.source)
        self.examples = derive_examples(self.schema)
        self._values = read_values(self.source, self.schema)
        self.sandbox = Sandbox(self.source, limits)

    def values_in(self, question: str) -> list[str]:
        """The database's own values that a question speaks of, as SQL text, the likeliest first."""
        return [value.line(self.source.dialect) for value in self._values.find(question)]

    def close(self) -> None:
        """End the sandbox's processes."""
        self.sandbox.close()
