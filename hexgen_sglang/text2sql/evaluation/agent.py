"""The agent as a predictor. Importing it loads SGLang's frontend (hence torch)."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from hexgen_sglang.text2sql.answer import Answer, Question
from hexgen_sglang.text2sql.database import Database
from hexgen_sglang.text2sql.evaluation.predictions import Predicted, Prediction
from hexgen_sglang.text2sql.evaluation.questions import EvalQuestion
from hexgen_sglang.text2sql.events import AgentEvent, EventKind
from hexgen_sglang.text2sql.program import ask_many
from hexgen_sglang.text2sql.settings import AgentSettings
from hexgen_sglang.text2sql.source import Source


class AgentPredictor:
    """Asks the agent, several questions at a time.

    Args:
        backend: `HexgenEndpoint`, or any SGLang frontend backend.
        settings: the agent's.
        max_parallel: questions at a time, 1 to 256.
        deadline_s: of each question, for the record; the backend has it already.
    """

    name = "agent"

    def __init__(
        self,
        backend: Any,
        settings: AgentSettings,
        max_parallel: int,
        deadline_s: float | None,
        model: str,
    ) -> None:
        self._backend = backend
        self._agent_settings = settings
        self._max_parallel = max_parallel
        self.settings: Mapping[str, object] = {
            **asdict(settings),
            "deadline_s": deadline_s,
            "model": model,
        }

    def predict(self, source: Source, questions: Sequence[EvalQuestion]) -> Iterator[Predicted]:
        done: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()

        def note(event: AgentEvent) -> None:
            if event.kind is EventKind.FINISHED:
                done.put(event.answer)

        def ask() -> None:
            try:
                with Database(source) as database:
                    asked = [Question(one.text, one.question_id) for one in questions]
                    ask_many(
                        asked, database, self._backend, self._max_parallel, note,
                        self._agent_settings,
                    )  # fmt: skip
            finally:
                done.put(None)

        by_id = {one.question_id: one for one in questions}
        pool = ThreadPoolExecutor(1, "evaluation")
        asking = pool.submit(ask)
        pool.shutdown(wait=False)
        while (answer := done.get()) is not None:
            yield by_id[answer.question.question_id], prediction_of(answer)
        asking.result()


def prediction_of(answer: Answer) -> Prediction:
    """What the agent answered, and what it cost."""
    return Prediction(
        sql=answer.sql,
        message=answer.message,
        elapsed_s=answer.elapsed_s,
        num_rounds=max((one.num_revisions for one in answer.candidates), default=0),
        num_requests=sum(stage.num_requests for stage in answer.stages),
        prompt_tokens=sum(stage.prompt_tokens for stage in answer.stages),
        cached_tokens=sum(stage.cached_tokens for stage in answer.stages),
        output_tokens=sum(stage.output_tokens for stage in answer.stages),
        met_deadline=answer.met_deadline,
    )
