"""A database that questions are asked about: its schema, its examples and its sandbox together.

Lives in the agent's process; shared by all questions over the database.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from hexgen_sglang.text2sql.examples import derive_examples
from hexgen_sglang.text2sql.execution import SqlLimits
from hexgen_sglang.text2sql.sandbox import Sandbox
from hexgen_sglang.text2sql.schema import read_schema


class Database:
    """An SQLite file, read once and ready to be asked; close it, or use `with`.

    Args:
        path: the file.
        limits: of each execution.

    Raises:
        ConfigError: no such file, not SQLite, or without tables.
    """

    def __init__(self, path: Path, limits: SqlLimits | None = None) -> None:
        self.path = path
        self.schema = read_schema(path)
        self.examples = derive_examples(self.schema)
        self.sandbox = Sandbox(path, limits)

    def close(self) -> None:
        """End the sandbox's processes."""
        self.sandbox.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
