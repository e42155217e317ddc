"""The agent as a library: questions over a database, through any OpenAI-compatible server.

Lives in the caller's process, on its event loop; loads neither SGLang nor torch. What is asked is
decided in `stages.py`; here: one question's requests, their end, and their cancellation.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hexgen_sglang.client.completions import CompletionsClient
from hexgen_sglang.client.tags import Workflow
from hexgen_sglang.core.errors import (
    ConfigError,
    HexgenError,
    ProtocolError,
    WorkerUnavailableError,
)
from hexgen_sglang.text2sql.answer import Answer, Question
from hexgen_sglang.text2sql.budget import StageTimes
from hexgen_sglang.text2sql.database import Database
from hexgen_sglang.text2sql.events import OnEvent, ignore
from hexgen_sglang.text2sql.execution import Execution
from hexgen_sglang.text2sql.record import LATE, Outcome, QuestionRecord, Usage
from hexgen_sglang.text2sql.settings import AgentSettings
from hexgen_sglang.text2sql.source import Source
from hexgen_sglang.text2sql.stages import WORKFLOW_TYPE, QuestionStages
from hexgen_sglang.text2sql.steps import Ask, AskTogether, Execute, Extend, Reply, Retrieve, Step

_END_TOLD_S = 5.0
Send = Callable[[dict[str, Any], Workflow, dict[str, Any]], Awaitable[Outcome]]

logger = logging.getLogger(__name__)


class Agent:
    """Answers questions in English over one database, as many at a time as are asked.

        async with Agent("http://127.0.0.1:8000/v1", "shop.sqlite") as agent:
            answer = await agent.ask("Which artist sold most last year?", deadline_s=20)
            print(answer.sql, answer.rows)

    Behind a coordinator each question is a workflow, and its requests are tagged with it; other
    servers ignore those headers. The database is opened, and its values are indexed, on entry.

    Args:
        base_url: as OpenAI clients take it, e.g. "http://127.0.0.1:8000/v1"; a URL without a
            path gets "/v1". Or a client of one's own, which knows its key and timeout itself.
        database: an SQLite or DuckDB file, a server's URL, or a `Database`, which stays open.
        model: its name at the server; None: the first one that the server lists.
        api_key: sent as a bearer token when given.
        settings: how much to do for each question, at most.
        tenant: for a coordinator's fairness and accounting.
        timeout_s: longest silence while one answer of the server is awaited, above 0.
        times: what stages took, to share among agents of one database and server; None: an
            agent learns it by itself.

    Raises:
        ConfigError: the URL or a setting is wrong; on entry: the database cannot be read.
        ProtocolError: `tenant` breaks the tag's rules.
    """

    def __init__(
        self,
        base_url: str | CompletionsClient,
        database: str | Path | Source | Database,
        *,
        model: str | None = None,
        api_key: str | None = None,
        settings: AgentSettings | None = None,
        tenant: str | None = None,
        timeout_s: float = 600.0,
        times: StageTimes | None = None,
    ) -> None:
        self._client = (
            base_url
            if isinstance(base_url, CompletionsClient)
            else CompletionsClient(base_url, api_key, timeout_s)
        )
        self._given = database
        self._database: Database | None = None
        self._model = model
        self._settings = settings or AgentSettings()
        self._tenant = tenant
        Workflow(tenant=tenant)
        self._times = times or StageTimes()
        self._finding_model = asyncio.Lock()
        self._knows_workflows = True
        self._telling: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        given = self._given
        self._database = (
            given if isinstance(given, Database) else await asyncio.to_thread(Database, given)
        )
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._telling:
            await asyncio.wait(self._telling, timeout=_END_TOLD_S)
        await self._client.__aexit__(kind, error, traceback)
        database, self._database = self._database, None
        if database is not None and database is not self._given:
            await asyncio.to_thread(database.close)

    async def ask(
        self,
        question: str | Question,
        *,
        deadline_s: float | None = None,
        on_event: OnEvent | None = None,
    ) -> Answer:
        """Answer one question; whatever the model, the server or the SQL do is in the answer.

        Cancelling the task aborts all of the question's requests; SQL that runs by then ends
        by itself, within its time limit.

        Args:
            question: in English; only its first 500 characters are read.
            deadline_s: seconds from now for the whole answer, above 0 and at most 86,400; None:
                the question's own, if it has one. A near deadline makes the agent do less
                (`Answer.dropped`); one that is missed still gives an answer.
            on_event: called on the event loop as it goes on; must be quick.

        Raises:
            ConfigError: outside `async with`, an empty question, or a deadline out of range.
            WorkerUnavailableError: no process for SQL could be started.
        """
        if self._database is None:
            raise ConfigError("Agent: use it inside `async with`")
        if isinstance(question, str):
            question = Question(question)
        if not question.text.strip():
            raise ConfigError("question='': must have text")
        if deadline_s is not None:
            question = replace(question, deadline_s=deadline_s)
        workflow = Workflow(WORKFLOW_TYPE, question.deadline_s, self._tenant)
        driver = _QuestionDriver(
            question, self._database, self._settings, workflow, self._send, self._times, on_event
        )
        is_over = False
        try:
            answer = await driver.answer()
            is_over = True
        finally:
            self._tell_end(workflow.workflow_id, cancel=not is_over)
        return answer

    async def _send(self, body: dict[str, Any], workflow: Workflow, tag: dict[str, Any]) -> Outcome:
        """One tagged request; what goes wrong with it is in the reply."""
        try:
            body = {**body, "model": body["model"] or await self._usual_model()}
            completion = await self._client.complete(
                body, lambda: workflow.headers(**tag), workflow.remaining_s
            )
        except HexgenError as error:
            return Reply(None, f"{type(error).__name__}: {error}"), Usage()
        counts = completion.prompt_tokens, completion.cached_tokens, completion.output_tokens
        return Reply(completion.text), Usage(*counts)

    async def _usual_model(self) -> str:
        """The model's name, asked for once.

        Raises:
            WorkerUnavailableError, ProtocolError, AdmissionRejected: the server does not tell it.
        """
        async with self._finding_model:
            if self._model is None:
                names = await self._client.model_names()
                if not names:
                    raise WorkerUnavailableError("the server has no model yet")
                self._model = names[0]
            return self._model

    def _tell_end(self, workflow_id: str, *, cancel: bool) -> None:
        """Tell a coordinator in the background; nobody waits for it but `__aexit__`."""
        if self._knows_workflows:
            task = asyncio.create_task(self._told_end(workflow_id, cancel=cancel))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _told_end(self, workflow_id: str, *, cancel: bool) -> None:
        try:
            async with asyncio.timeout(_END_TOLD_S):
                await self._client.end_workflow(workflow_id, cancel=cancel)
        except ProtocolError as error:
            # Another server has no such path; a coordinator may not know this one workflow.
            self._knows_workflows = "workflow_not_found" in str(error)
        except (HexgenError, TimeoutError) as error:
            logger.warning("workflow %s: its end was not told: %s", workflow_id, error)


class _QuestionDriver:
    """Carries out one question's steps."""

    def __init__(
        self,
        question: Question,
        database: Database,
        settings: AgentSettings,
        workflow: Workflow,
        send: Send,
        times: StageTimes,
        on_event: OnEvent | None,
    ) -> None:
        self._database = database
        self._workflow = workflow
        self._send = send
        self._times = times
        self._record = QuestionRecord(question, workflow, on_event or ignore)
        self._prefix = ""
        self._stages = QuestionStages(
            question,
            database.schema,
            database.examples,
            settings,
            workflow.remaining_s,
            times,
        )

    async def answer(self) -> Answer:
        """All steps, one after the other."""
        self._record.started()
        steps = self._stages.run()
        result: Any = None
        while True:
            try:
                step = steps.send(result)
            except StopIteration as end:
                return self._record.finished(end.value)
            result = await self._carried_out(step)

    async def _carried_out(self, step: Step) -> Any:
        match step:
            case Ask():
                return await self._ask(step)
            case AskTogether():
                async with asyncio.TaskGroup() as group:
                    asked = [group.create_task(self._ask(one)) for one in step.asks]
                return [task.result() for task in asked]
            case Execute():
                return await self._execute(step.sqls)
            case Retrieve():
                started_s = self._record.stage_started(step.stage, 0)
                found = await asyncio.to_thread(self._database.values_in, step.text)
                self._record.stage_finished(step.stage, started_s, ())
                return found
            case Extend():
                self._prefix += step.text
                return None

    async def _ask(self, ask: Ask) -> list[Reply]:
        """One stage's requests; those that are not awaited any more are aborted."""
        started_s = self._record.stage_started(ask.stage, len(ask.tails))
        tasks = [
            asyncio.create_task(self._request(ask, position)) for position in range(len(ask.tails))
        ]
        try:
            await self._await(ask, tasks)
        finally:
            for task in tasks:
                task.cancel()
            # Until every connection is closed.
            await asyncio.gather(*tasks, return_exceptions=True)
        outcomes = [(LATE, Usage()) if task.cancelled() else task.result() for task in tasks]
        cost = self._record.stage_finished(ask.stage, started_s, outcomes)
        self._times.note(
            ask.stage, cost.num_requests, cost.elapsed_s, ask.model, is_cut=cost.num_late > 0
        )
        return [reply for reply, _ in outcomes]

    async def _await(self, ask: Ask, tasks: Sequence[asyncio.Task[Outcome]]) -> None:
        """Until all have answered, enough agree, or the deadline makes the rest useless."""
        open_tasks = set(tasks)
        while open_tasks:
            limit_s = self._workflow.remaining_s() if ask.may_be_cut else None
            limit_s = None if limit_s is None else max(0.0, limit_s)
            done, open_tasks = await asyncio.wait(
                open_tasks, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                return
            if ask.agreement is None:
                continue
            texts = [task.result()[0].text for task in tasks if task in done]
            written, new = ask.agreement.statements(texts)
            ask.agreement.note(written, await self._execute(new))
            if ask.agreement.is_enough:
                return

    async def _request(self, ask: Ask, position: int) -> Outcome:
        body = {
            "model": ask.model,
            "prompt": self._prefix + ask.tails[position],
            "max_tokens": ask.max_new_tokens,
            "temperature": ask.temperatures[position],
            "stop": list(ask.stop),
        }
        tag = {"stage": ask.stage, "siblings": len(ask.tails), "sibling_index": position}
        return await self._send(body, self._workflow, tag)

    async def _execute(self, sqls: Sequence[str]) -> list[Execution]:
        run = self._database.sandbox.run
        return await asyncio.gather(*(asyncio.to_thread(run, sql) for sql in sqls))
