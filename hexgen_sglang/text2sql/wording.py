"""Results and questions in the words that prompts show or that tables are looked up by. Pure."""

from __future__ import annotations

from hexgen_sglang.text2sql import prompts
from hexgen_sglang.text2sql.execution import Execution

EMPTY_RESULT = "the result is empty"
_MAX_ERROR_CHARS = 160
_MAX_PREVIEW_CHARS = 160
_MAX_PREVIEW_ROWS = 3


def error_line(execution: Execution, remarks: str = "") -> str:
    """The database's own words and remarks on them, or that there were no rows."""
    words = prompts.one_line(execution.message, _MAX_ERROR_CHARS) or EMPTY_RESULT
    return f"{words} ({prompts.one_line(remarks, _MAX_ERROR_CHARS)})" if remarks else words


def failure_line(execution: Execution) -> str:
    """What did not run, and why."""
    sql = prompts.one_line(execution.sql, _MAX_PREVIEW_CHARS)
    return f"{execution.outcome}: {execution.message}: {sql}"


def preview(execution: Execution) -> dict[str, str]:
    """SQL and the beginning of its result, for the evaluation prompt."""
    shown = [
        ", ".join("NULL" if cell is None else str(cell) for cell in row)
        for row in execution.rows[:_MAX_PREVIEW_ROWS]
    ]
    dots = [f"... ({len(execution.rows)} rows)"] if len(execution.rows) > len(shown) else []
    result = f"{', '.join(execution.columns)} = {'; '.join([*shown, *dots])}"
    return {"sql": execution.sql, "result": prompts.one_line(result, _MAX_PREVIEW_CHARS)}


def singulars(text: str) -> str:
    """The text with each word once as it is and once without a plural s."""
    words = "".join(char if char.isalnum() or char == "_" else " " for char in text).split()
    return " ".join(f"{word} {word[:-1]}" if word.endswith("s") else word for word in words)
