"""The reference agent: questions in English, answered by SQL that is run on a database.

`Agent` answers them through any OpenAI-compatible server, without SGLang and torch. `program.py`
needs SGLang's frontend and is imported on its own. Importing this package loads nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hexgen_sglang.text2sql.agent import Agent
    from hexgen_sglang.text2sql.answer import Answer, AnswerOutcome, Question
    from hexgen_sglang.text2sql.database import Database
    from hexgen_sglang.text2sql.events import AgentEvent, EventKind
    from hexgen_sglang.text2sql.settings import AgentSettings

__all__ = [
    "Agent",
    "AgentEvent",
    "AgentSettings",
    "Answer",
    "AnswerOutcome",
    "Database",
    "EventKind",
    "Question",
]

_MODULES = {
    "Agent": "agent",
    "AgentEvent": "events",
    "AgentSettings": "settings",
    "Answer": "answer",
    "AnswerOutcome": "answer",
    "Database": "database",
    "EventKind": "events",
    "Question": "answer",
}


def __getattr__(name: str) -> Any:
    """Load what is touched, when it is touched."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
