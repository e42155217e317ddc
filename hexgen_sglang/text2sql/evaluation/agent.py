"""The agent as a predictor: through any OpenAI-compatible server, without SGLang and torch."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.text2sql.agent import Agent
from hexgen_sglang.text2sql.answer import Answer, Question
from hexgen_sglang.text2sql.evaluation.predictions import Predicted, Prediction
from hexgen_sglang.text2sql.evaluation.questions import EvalQuestion
from hexgen_sglang.text2sql.settings import AgentSettings
from hexgen_sglang.text2sql.source import Source

_Answers = queue.SimpleQueue[Answer | None]


class AgentPredictor:
    """Asks the agent, several questions at a time.

    Args:
        base_url: of the server, as `Agent` takes it.
        model: its name there.
        settings: the agent's.
        max_parallel: questions at a time, 1 to 256.
        deadline_s: of each question; None: none.
        api_key: for a server that wants one.

    Raises:
        ConfigError: `max_parallel` is out of range.
    """

    name = "agent"

    def __init__(
        self,
        base_url: str,
        model: str,
        settings: AgentSettings,
        max_parallel: int,
        deadline_s: float | None,
        api_key: str | None = None,
    ) -> None:
        if not 1 <= max_parallel <= 256:
            raise ConfigError(f"max_parallel={max_parallel}: must be 1 to 256")
        self._base_url = base_url
        self._model = model
        self._agent_settings = settings
        self._max_parallel = max_parallel
        self._deadline_s = deadline_s
        self._api_key = api_key
        self.settings: Mapping[str, object] = {
            **asdict(settings),
            "deadline_s": deadline_s,
            "model": model,
        }

    def predict(self, source: Source, questions: Sequence[EvalQuestion]) -> Iterator[Predicted]:
        by_id = {one.question_id: one for one in questions}
        done: _Answers = queue.SimpleQueue()
        with _running_loop() as loop:
            asking = asyncio.run_coroutine_threadsafe(self._ask_all(source, questions, done), loop)
            is_over = False
            try:
                while (answer := done.get()) is not None:
                    yield by_id[answer.question.question_id], prediction_of(answer)
                is_over = True
                asking.result()
            finally:
                if not is_over:  # whoever reads the predictions has enough of them
                    asking.cancel()
                    while done.get() is not None:
                        continue

    async def _ask_all(
        self, source: Source, questions: Sequence[EvalQuestion], done: _Answers
    ) -> None:
        """Answers as they come, and None at the end, whatever that is.

        Raises:
            ConfigError: the database cannot be used.
            WorkerUnavailableError: no process for SQL could be started.
        """
        places = asyncio.Semaphore(self._max_parallel)

        async def ask(agent: Agent, one: EvalQuestion) -> None:
            async with places:
                asked = Question(one.text, one.question_id)
                done.put(await agent.ask(asked, deadline_s=self._deadline_s))

        try:
            async with Agent(
                self._base_url,
                source,
                model=self._model,
                api_key=self._api_key,
                settings=self._agent_settings,
            ) as agent:
                tasks = [asyncio.create_task(ask(agent, one)) for one in questions]
                try:
                    await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            done.put(None)


@contextmanager
def _running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="evaluation", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


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
