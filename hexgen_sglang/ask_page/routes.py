"""The page's routes: its assets for everybody, databases and questions for callers with a key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from hexgen_sglang.ask_page.databases import OfferedDatabases
from hexgen_sglang.ask_page.questions import Questions
from hexgen_sglang.coordinator import reports
from hexgen_sglang.coordinator.access import Caller
from hexgen_sglang.coordinator.api_keys import Role
from hexgen_sglang.coordinator.app import make_app
from hexgen_sglang.coordinator.service import Coordinator
from hexgen_sglang.core.errors import HexgenError
from hexgen_sglang.pages.serving import HEADERS, PageFiles, admit, refused


@asynccontextmanager
async def ask_page(coordinator: Coordinator) -> AsyncIterator[Sequence[BaseRoute]]:
    """The routes of the page, if the configuration asks for it; databases are closed at the end.

    Raises:
        ConfigError: a database of the configuration is not there.
    """
    if not coordinator.config.ask.is_on:
        yield ()
        return
    databases = OfferedDatabases(coordinator.config.ask)
    try:
        yield _routes(coordinator, databases)
    finally:
        await databases.close()


def _routes(coordinator: Coordinator, databases: OfferedDatabases) -> Sequence[BaseRoute]:
    def admit_client(request: Request) -> Caller:
        return admit(coordinator, request.headers, (Role.CLIENT,))

    async def state(request: Request) -> Response:
        try:
            caller = admit_client(request)
        except HexgenError as error:
            return refused(coordinator, error)
        config = coordinator.config.ask
        body = {
            "databases": [
                {"name": one.name, "dialect": one.source.dialect.label}
                for one in databases.visible_to(caller)
            ],
            "models": list(coordinator.parts.directory.models()),
            "deadline_s": config.deadline_s,
            "max_deadline_s": config.max_deadline_s,
        }
        return Response(reports.as_json(body), 200, HEADERS, "application/json")

    headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    files = PageFiles("hexgen_sglang.ask_page")
    return [
        Route("/ask", files.page),
        Route("/ask/assets/{name}", files.asset),
        Route("/ask/databases", state),
        Route(
            "/ask/questions",
            Questions(coordinator, make_app(coordinator), databases, admit_client, headers),
            methods=["POST"],
        ),
    ]
