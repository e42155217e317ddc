"""The page's routes: its assets for everybody, databases and questions for callers with a key.

The assets hold nothing but the page; they come with headers that forbid the browser to run or
load anything else, whatever a model or a database wrote.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from hexgen_sglang.ask_page.databases import OfferedDatabases
from hexgen_sglang.ask_page.questions import Questions
from hexgen_sglang.coordinator import reports
from hexgen_sglang.coordinator.access import Caller
from hexgen_sglang.coordinator.api_keys import Role
from hexgen_sglang.coordinator.app import make_app
from hexgen_sglang.coordinator.config import is_loopback_host
from hexgen_sglang.coordinator.http_errors import ApiError, as_api_error
from hexgen_sglang.coordinator.receiving import admitted
from hexgen_sglang.coordinator.service import Coordinator
from hexgen_sglang.core.errors import HexgenError

_PAGE = "page.html"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


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
    assets = _assets()

    def admit(request: Request) -> Caller:
        _check_host(coordinator, request.headers)
        return admitted(coordinator, request.headers, (Role.CLIENT,))

    async def page(request: Request) -> Response:
        return assets[_PAGE]

    async def asset(request: Request) -> Response:
        found = assets.get(request.path_params["name"])
        return found or _refusal(ApiError(404, "no such file"))

    async def state(request: Request) -> Response:
        try:
            caller = admit(request)
        except HexgenError as error:
            refusal = as_api_error(error)
            coordinator.parts.metrics.refused.labels(str(refusal.status)).inc()
            return _refusal(refusal)
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
        return Response(reports.as_json(body), 200, _HEADERS, "application/json")

    headers = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
    questions = Questions(coordinator, make_app(coordinator), databases, admit, headers)
    return [
        Route("/ask", page),
        Route("/ask/assets/{name}", asset),
        Route("/ask/databases", state),
        Route("/ask/questions", questions, methods=["POST"]),
    ]


def _assets() -> dict[str, Response]:
    """Every file of the page, by its name."""
    folder = importlib.resources.files("hexgen_sglang.ask_page") / "assets"
    return {
        one.name: Response(
            one.read_bytes(), 200, _HEADERS, _TYPES["." + one.name.rpartition(".")[2]]
        )
        for one in folder.iterdir()
    }


def _check_host(coordinator: Coordinator, headers: Mapping[str, str]) -> None:
    """Refuse a page that another site's name leads to, where nobody needs a key.

    A browser on this machine would take our answers for that site's own (DNS rebinding).

    Raises:
        ApiError: 403.
    """
    config = coordinator.config
    if config.api_keys is not None or config.allow_anonymous:
        return
    host = headers.get("host", "")
    if not is_loopback_host(urlsplit(f"//{host}").hostname or ""):
        raise ApiError(
            403,
            f"host={host[:200]!r}: without API keys the page is for this machine's own address; "
            "state api_keys, or allow_anonymous = true",
            kind="permission_error",
            code="foreign_host",
        )


def _refusal(error: ApiError) -> Response:
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(error.body(), error.status, headers | _HEADERS)
