"""The agent as an SGLang frontend program, and many questions at once.

Importing this loads SGLang's frontend (hence torch). One run of the program is one workflow;
each stage is a fork of the common prefix, so its requests are siblings that share it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import sglang as sgl

from hexgen_sglang.client import HexgenEndpoint, workflow_of
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.text2sql.agent import Agent, AgentSettings, Ask, Reply
from hexgen_sglang.text2sql.answer import Answer, Question, StageCost
from hexgen_sglang.text2sql.database import Database
from hexgen_sglang.text2sql.events import AgentEvent, EventKind, OnEvent

WORKFLOW_TYPE = "text2sql"
# A failed request ends its executor's thread a moment after it woke us.
_THREAD_END_S = 10.0


@sgl.function  # type: ignore[untyped-decorator]
def text_to_sql(
    s: Any, question: Question, database: Database, settings: AgentSettings, on_event: OnEvent
) -> Answer:
    """One question: the program's return value is its `Answer`."""
    return _Run(s, question, database, settings, on_event).answer()


def ask_many(
    questions: Sequence[Question],
    db: Path | Database,
    backend: Any,
    max_parallel: int = 12,
    on_event: OnEvent | None = None,
    settings: AgentSettings | None = None,
) -> list[Answer]:
    """Answer questions over one database, several at a time.

    Whatever becomes of a question is in its answer; nothing is raised for it.

    Args:
        questions: a question's `deadline_s` overrides the backend's.
        db: an SQLite file, or one that is open already.
        backend: `HexgenEndpoint`, or any SGLang frontend backend (without workflows then).
        max_parallel: questions at a time, 1 to 256.
        on_event: called from the questions' threads as they go on; must be quick.
        settings: how much to do for each.

    Returns:
        Answers in the order of the questions.

    Raises:
        ConfigError: the database or a setting is wrong.
    """
    if not 1 <= max_parallel <= 256:
        raise ConfigError(f"max_parallel={max_parallel}: must be 1 to 256")
    if not questions:
        return []
    if not isinstance(db, Database):
        with Database(db) as opened:
            return ask_many(questions, opened, backend, max_parallel, on_event, settings)
    arguments = (db, settings or AgentSettings(), on_event or _ignore)
    pool = ThreadPoolExecutor(min(max_parallel, len(questions)), "text2sql")
    try:
        with warnings.catch_warnings():
            # The interpreter warns with a traceback of what the answer reports anyway.
            warnings.filterwarnings("ignore", "Error in stream_executor")
            futures = [pool.submit(_ask, one, backend, *arguments) for one in questions]
            return [future.result() for future in futures]
    finally:
        # After Ctrl-C: what has not begun never will.
        pool.shutdown(wait=False, cancel_futures=True)


def _ask(
    question: Question, backend: Any, db: Database, settings: AgentSettings, on_event: OnEvent
) -> Answer:
    if question.deadline_s is not None and isinstance(backend, HexgenEndpoint):
        backend = backend.with_deadline(question.deadline_s)
    state = text_to_sql.run(
        question=question, database=db, settings=settings, on_event=on_event, backend=backend
    )
    answer: Answer = state.ret_value
    return answer


def _ignore(event: AgentEvent) -> None:
    """Where no progress is wanted."""


class _Run:
    """Drives one question's agent with one program's state."""

    def __init__(
        self,
        state: Any,
        question: Question,
        database: Database,
        settings: AgentSettings,
        on_event: OnEvent,
    ) -> None:
        self._state = state
        self._database = database
        self._question = question
        self._on_event = on_event
        self._started_s = time.monotonic()
        self._workflow = workflow_of(state)
        self._costs: list[StageCost] = []
        self._agent = Agent(
            question, database.schema, database.examples, settings, self._remaining_s
        )

    def answer(self) -> Answer:
        """All stages, one after the other."""
        self._tell(EventKind.STARTED)
        self._state += self._agent.prefix
        steps = self._agent.run()
        result: Any = None
        while True:
            try:
                step = steps.send(result)
            except StopIteration as end:
                return self._finished(end.value)
            if isinstance(step, Ask):
                result = self._ask(step)
            else:
                result = [self._database.sandbox.run(sql) for sql in step.sqls]

    def _ask(self, ask: Ask) -> list[Reply]:
        """One stage's requests, as a fork of the prefix."""
        self._tell(EventKind.STAGE_STARTED, stage=ask.stage, num_requests=len(ask.tails))
        started_s = time.monotonic()
        forks = self._state.fork(len(ask.tails))
        for child, tail, temperature in zip(forks.states, ask.tails, ask.temperatures, strict=True):
            child += tail + sgl.gen(
                ask.stage,
                max_tokens=ask.max_new_tokens,
                stop=list(ask.stop),
                temperature=temperature,
            )
        outcomes = [_outcome(child, ask.stage) for child in forks.states]
        for child in forks.states:
            child.stream_executor.end()
        cost = _cost(ask.stage, time.monotonic() - started_s, outcomes)
        self._costs.append(cost)
        self._tell(
            EventKind.STAGE_FINISHED, stage=ask.stage, num_requests=len(ask.tails), cost=cost
        )
        return [reply for reply, _ in outcomes]

    def _finished(self, answer: Answer) -> Answer:
        elapsed_s = time.monotonic() - self._started_s
        deadline_s = self._workflow.deadline_s if self._workflow else None
        answer = replace(
            answer,
            workflow_id=self._workflow.workflow_id if self._workflow else None,
            deadline_s=deadline_s,
            elapsed_s=elapsed_s,
            met_deadline=None if deadline_s is None else elapsed_s <= deadline_s,
            stages=tuple(self._costs),
        )
        self._tell(EventKind.FINISHED, answer=answer)
        return answer

    def _remaining_s(self) -> float | None:
        return self._workflow.remaining_s() if self._workflow else None

    def _tell(self, kind: EventKind, **fields: Any) -> None:
        workflow_id = self._workflow.workflow_id if self._workflow else None
        elapsed_s = time.monotonic() - self._started_s
        self._on_event(AgentEvent(kind, self._question, workflow_id, elapsed_s, **fields))


def _outcome(child: Any, variable: str) -> tuple[Reply, dict[str, Any]]:
    """What a fork's one request gave, and its meta_info; waits for it."""
    try:
        text = child.get_var(variable)
    except KeyError:
        # The interpreter leaves the variable out and keeps the error on its executor.
        child.stream_executor.worker.join(_THREAD_END_S)
        error = child.stream_executor.error_
        return Reply(None, f"{type(error).__name__}: {error}"), {}
    return Reply(text), child.get_meta_info(variable) or {}


def _cost(
    stage: str, elapsed_s: float, outcomes: Sequence[tuple[Reply, dict[str, Any]]]
) -> StageCost:
    def total(field: str) -> int:
        return sum(int(meta.get(field) or 0) for _, meta in outcomes)

    return StageCost(
        stage=stage,
        elapsed_s=elapsed_s,
        num_requests=len(outcomes),
        num_failed=sum(reply.text is None for reply, _ in outcomes),
        prompt_tokens=total("prompt_tokens"),
        cached_tokens=total("cached_tokens"),
        output_tokens=total("completion_tokens"),
    )
