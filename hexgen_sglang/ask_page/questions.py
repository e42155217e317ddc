"""`POST /ask/questions`: one question, answered as a stream of server-sent events.

Plain ASGI, since it streams and notices hang-ups: whoever leaves the page or stops the question
cancels its workflow, and with it every request that is still out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from hexgen_sglang.ask_page import events
from hexgen_sglang.ask_page.databases import OfferedDatabase, OfferedDatabases
from hexgen_sglang.ask_page.in_process import InProcessClient
from hexgen_sglang.coordinator import incoming
from hexgen_sglang.coordinator.access import Caller
from hexgen_sglang.coordinator.ask_config import AskConfig
from hexgen_sglang.coordinator.delivery import Delivery, Headers, disconnected
from hexgen_sglang.coordinator.http_errors import ApiError, as_api_error, draining
from hexgen_sglang.coordinator.receiving import read_body
from hexgen_sglang.coordinator.service import Coordinator
from hexgen_sglang.core.errors import AdmissionRejected, HexgenError, ProtocolError
from hexgen_sglang.core.strict import convert
from hexgen_sglang.text2sql.events import AgentEvent

log = logging.getLogger(__name__)

_RETRY_AFTER_S = 2.0
Admit = Callable[[Request], Caller]


class NewQuestion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /ask/questions`.

    Attributes:
        database: one that `GET /ask/databases` names.
        deadline_s: for the whole answer; None: the configured one.
        model: by name; None: the first one that workers serve.
    """

    database: Annotated[str, Meta(min_length=1, max_length=256)]
    question: Annotated[str, Meta(min_length=1, max_length=500)]
    deadline_s: Annotated[float, Meta(gt=0, le=86_400)] | None = None
    model: Annotated[str, Meta(min_length=1, max_length=256)] | None = None


class Questions:
    """The route.

    Args:
        app: the coordinator's own routes, which the agent's requests take.
        admit: who calls, or an error.
        headers: of every answer.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        app: ASGIApp,
        databases: OfferedDatabases,
        admit: Admit,
        headers: Headers,
    ) -> None:
        self._coordinator = coordinator
        self._config: AskConfig = coordinator.config.ask
        self._app = app
        self._databases = databases
        self._admit = admit
        self._headers = list(headers)
        self._num_open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request, delivery = Request(scope, receive), Delivery(send)
        try:
            caller = self._admit(request)
            asked, offered = await self._read(request, caller)
            with self._place():
                await self._answer(request, caller, asked, offered, delivery)
        except ClientDisconnect:
            return
        except HexgenError as error:
            refusal = as_api_error(error)
            if not delivery.has_begun:
                self._coordinator.parts.metrics.refused.labels(str(refusal.status)).inc()
            await delivery.fail(refusal, self._headers)

    async def _read(self, request: Request, caller: Caller) -> tuple[NewQuestion, OfferedDatabase]:
        """The checked question.

        Raises:
            ApiError, ProtocolError: malformed, sent by another site's page, or about a database
                that is not offered; or the coordinator cannot serve it now.
        """
        # Another site's page may send such a type only with our leave, which we never give.
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise ApiError(415, "content-type: must be application/json", param="content-type")
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            raise ApiError(403, f"origin={origin[:200]!r}: must be this server's own page")
        body = incoming.read_object(await read_body(request, self._coordinator))
        asked = convert(body, NewQuestion, "body")
        if not asked.question.strip():
            raise ProtocolError("question: must have text")
        most_s = self._config.max_deadline_s
        if asked.deadline_s is not None and asked.deadline_s > most_s:
            raise ProtocolError(f"deadline_s={asked.deadline_s:g}: must be at most {most_s:g}")
        offered = self._databases.named(asked.database, caller)
        if self._coordinator.exchanges.is_draining:
            raise draining()
        return asked, offered

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Hold one of the places for open questions.

        Raises:
            AdmissionRejected: all are taken.
        """
        if self._num_open >= self._config.max_open:
            message = f"{self._num_open} questions are open: at most {self._config.max_open} may"
            raise AdmissionRejected(message, _RETRY_AFTER_S)
        self._num_open += 1
        try:
            yield
        finally:
            self._num_open -= 1

    async def _answer(
        self,
        request: Request,
        caller: Caller,
        asked: NewQuestion,
        offered: OfferedDatabase,
        delivery: Delivery,
    ) -> None:
        """Stream what happens until the answer is there, or nobody reads it any more.

        Raises:
            HexgenError: the question could not be worked on.
        """
        told: asyncio.Queue[bytes | None] = asyncio.Queue()
        authorization = request.headers.get("authorization", "")
        await delivery.begin(200, [(b"content-type", b"text/event-stream"), *self._headers])
        work = asyncio.create_task(
            self._work(asked, offered, caller, authorization, told.put_nowait)
        )
        gone = asyncio.create_task(disconnected(request.receive))
        for task in (work, gone):
            task.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while (event := await told.get()) is not None:
                await delivery.write(event)
            if work.done():
                await _outcome_of(work)
                await delivery.end()
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.wait({work, gone})

    async def _work(
        self,
        asked: NewQuestion,
        offered: OfferedDatabase,
        caller: Caller,
        authorization: str,
        tell: Callable[[bytes], None],
    ) -> None:
        """Open the database if need be, ask, and tell what happens."""
        from hexgen_sglang.text2sql.agent import Agent
        from hexgen_sglang.text2sql.settings import AgentSettings

        deadline_s = asked.deadline_s or self._config.deadline_s
        tell(events.encoded("opening", {"database": offered.name, "deadline_s": deadline_s}))
        opened = await self._databases.open(offered)
        settings = AgentSettings(
            num_candidates=self._config.num_candidates,
            max_rounds=self._config.max_rounds,
            num_checks=self._config.num_checks,
            max_sql_tokens=self._config.max_sql_tokens,
            fallback_model=self._config.fallback_model,
        )
        client = InProcessClient(self._app, authorization, self._coordinator.config.queue_timeout_s)

        def on_event(event: AgentEvent) -> None:
            def workers_of(stage: str) -> list[str]:
                return self._workers_of(event.workflow_id or "", stage, caller)

            tell(events.event_of(event, workers_of))

        async with Agent(
            client, opened.database, model=asked.model, settings=settings, times=opened.times
        ) as agent:
            await agent.ask(asked.question, deadline_s=deadline_s, on_event=on_event)

    def _workers_of(self, workflow_id: str, stage: str, caller: Caller) -> list[str]:
        """Where a stage's requests went, in order of first use."""
        for entered_id in caller.entered_ids(workflow_id):
            workflow = self._coordinator.parts.tracker.get(entered_id)
            if workflow is not None:
                records = workflow.records.values()
                used = (one.worker_id for one in records if one.stage == stage and one.worker_id)
                return list(dict.fromkeys(used))
        return []


async def _outcome_of(work: Awaitable[None]) -> None:
    """Raise what a finished question failed with.

    Raises:
        HexgenError: expected, or a 500 for what is not, which is logged.
    """
    try:
        await work
    except HexgenError:
        raise
    except Exception as error:
        log.exception("a question failed unexpectedly")
        raise ApiError(500, "internal error", kind="server_error", code="internal_error") from error
