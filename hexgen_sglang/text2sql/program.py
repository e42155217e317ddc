"""The agent as an SGLang frontend program, and many questions at once.

Importing this loads SGLang's frontend (hence torch). One run of the program is one workflow;
each stage is a fork of the common prefix, so its requests are siblings that share it. The
frontend cannot abort one request of a program: late siblings run to their end at the engine, are
not awaited, and are counted in `StageCost.num_late`. `agent.py` aborts them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import sglang as sgl

from hexgen_sglang.client import HexgenEndpoint, workflow_of
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.text2sql.answer import Answer, Question
from hexgen_sglang.text2sql.budget import StageTimes
from hexgen_sglang.text2sql.database import Database
from hexgen_sglang.text2sql.events import OnEvent, ignore
from hexgen_sglang.text2sql.record import LATE, Outcome, QuestionRecord, Usage
from hexgen_sglang.text2sql.settings import AgentSettings
from hexgen_sglang.text2sql.stages import WORKFLOW_TYPE, QuestionStages
from hexgen_sglang.text2sql.steps import Ask, AskTogether, Execute, Extend, Reply, Retrieve, Step

__all__ = ["WORKFLOW_TYPE", "ask_many", "text_to_sql"]

# A failed request ends its executor's thread a moment after it woke us.
_THREAD_END_S = 10.0


@sgl.function  # type: ignore[untyped-decorator]
def text_to_sql(
    s: Any,
    question: Question,
    database: Database,
    settings: AgentSettings,
    times: StageTimes,
    on_event: OnEvent,
) -> Answer:
    """One question: the program's return value is its `Answer`."""
    return _Run(s, question, database, settings, times, on_event).answer()


def ask_many(
    questions: Sequence[Question],
    db: str | Path | Database,
    backend: Any,
    max_parallel: int = 12,
    on_event: OnEvent | None = None,
    settings: AgentSettings | None = None,
) -> list[Answer]:
    """Answer questions over one database, several at a time.

    Whatever becomes of a question is in its answer; nothing is raised for it.

    Args:
        questions: a question's `deadline_s` overrides the backend's.
        db: a file or a server's URL, or one that is open already.
        backend: `HexgenEndpoint`, or any SGLang frontend backend (without workflows then).
        max_parallel: questions at a time, 1 to 256.
        on_event: called from the questions' threads as they go on; must be quick.
        settings: how much to do for each.

    Returns:
        Answers in the order of the questions.

    Raises:
        ConfigError: the database or a setting is wrong; also `fallback_model`, since a program's
            requests name no model.
    """
    if not 1 <= max_parallel <= 256:
        raise ConfigError(f"max_parallel={max_parallel}: must be 1 to 256")
    if not questions:
        return []
    if not isinstance(db, Database):
        with Database(db) as opened:
            return ask_many(questions, opened, backend, max_parallel, on_event, settings)
    settings = settings or AgentSettings()
    if settings.fallback_model is not None:
        raise ConfigError(
            f"AgentSettings.fallback_model={settings.fallback_model!r}: must be None here, since "
            "a frontend program's requests name no model; use `text2sql.Agent`"
        )
    arguments = (db, settings, StageTimes(), on_event or ignore)
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
    question: Question,
    backend: Any,
    db: Database,
    settings: AgentSettings,
    times: StageTimes,
    on_event: OnEvent,
) -> Answer:
    if question.deadline_s is not None and isinstance(backend, HexgenEndpoint):
        backend = backend.with_deadline(question.deadline_s)
    state = text_to_sql.run(
        question=question,
        database=db,
        settings=settings,
        times=times,
        on_event=on_event,
        backend=backend,
    )
    answer: Answer = state.ret_value
    return answer


class _Run:
    """Carries out one question's steps with one program's state."""

    def __init__(
        self,
        state: Any,
        question: Question,
        database: Database,
        settings: AgentSettings,
        times: StageTimes,
        on_event: OnEvent,
    ) -> None:
        self._state = state
        self._database = database
        self._times = times
        self._record = QuestionRecord(question, workflow_of(state), on_event)
        self._stages = QuestionStages(
            question,
            database.schema,
            database.examples,
            settings,
            self._record.remaining_s,
            times,
        )

    def answer(self) -> Answer:
        """All steps, one after the other."""
        self._record.started()
        steps = self._stages.run()
        result: Any = None
        while True:
            try:
                step = steps.send(result)
            except StopIteration as end:
                return self._record.finished(end.value)
            result = self._carried_out(step)

    def _carried_out(self, step: Step) -> Any:
        match step:
            case Ask():
                return self._ask((step,))[0]
            case AskTogether():
                return self._ask(step.asks)
            case Execute():
                return [self._database.sandbox.run(sql) for sql in step.sqls]
            case Retrieve():
                started_s = self._record.stage_started(step.stage, 0)
                found = self._database.values_in(step.text)
                self._record.stage_finished(step.stage, started_s, ())
                return found
            case Extend():
                self._state += step.text
                return None

    def _ask(self, asks: Sequence[Ask]) -> list[list[Reply]]:
        """Stages at the same time, each a fork of the prefix."""
        sent = [
            (ask, self._record.stage_started(ask.stage, len(ask.tails)), self._fork(ask))
            for ask in asks
        ]
        return [self._replies(*one) for one in sent]

    def _fork(self, ask: Ask) -> list[Any]:
        """The states whose requests are under way when this returns."""
        states: list[Any] = self._state.fork(len(ask.tails)).states
        for child, tail, temperature in zip(states, ask.tails, ask.temperatures, strict=True):
            child += tail + sgl.gen(
                ask.stage,
                max_tokens=ask.max_new_tokens,
                stop=list(ask.stop),
                temperature=temperature,
            )
        return states

    def _replies(self, ask: Ask, started_s: float, states: Sequence[Any]) -> list[Reply]:
        """What the forks gave, as far as it was awaited."""
        pool = ThreadPoolExecutor(len(states), ask.stage)
        waiting = [pool.submit(_outcome, child, ask.stage) for child in states]
        pool.shutdown(wait=False)
        self._await(ask, waiting)
        outcomes = [one.result() if one.done() else (LATE, Usage()) for one in waiting]
        for child in states:
            child.stream_executor.end()
        cost = self._record.stage_finished(ask.stage, started_s, outcomes)
        self._times.note(ask.stage, cost.num_requests, cost.elapsed_s, is_cut=cost.num_late > 0)
        return [reply for reply, _ in outcomes]

    def _await(self, ask: Ask, waiting: Sequence[Future[Outcome]]) -> None:
        """Until all have answered, enough agree, or the deadline makes the rest useless."""
        still = set(waiting)
        while still:
            limit_s = self._record.remaining_s() if ask.may_be_cut else None
            limit_s = None if limit_s is None else max(0.0, limit_s)
            done, still = wait(still, limit_s, FIRST_COMPLETED)
            if not done:
                return
            if ask.agreement is None:
                continue
            texts = [one.result()[0].text for one in waiting if one in done]
            written, new = ask.agreement.statements(texts)
            ask.agreement.note(written, [self._database.sandbox.run(sql) for sql in new])
            if ask.agreement.is_enough:
                return


def _outcome(child: Any, variable: str) -> Outcome:
    """What a fork's one request gave; waits for it."""
    try:
        text = child.get_var(variable)
    except KeyError:
        # The interpreter leaves the variable out and keeps the error on its executor.
        child.stream_executor.worker.join(_THREAD_END_S)
        error = child.stream_executor.error_
        return Reply(None, f"{type(error).__name__}: {error}"), Usage()
    meta = child.get_meta_info(variable) or {}
    counts = (meta.get(name) for name in ("prompt_tokens", "cached_tokens", "completion_tokens"))
    return Reply(text), Usage(*(int(count or 0) for count in counts))
