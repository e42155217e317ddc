"""Serves the files of a page, and looks at who asks for what it shows.

The files hold nothing but the page, so everybody gets them; they come with headers that forbid
the browser to run or load anything else, whatever a model, a database or a client wrote.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from hexgen_sglang.coordinator.access import Caller
from hexgen_sglang.coordinator.api_keys import Role
from hexgen_sglang.coordinator.config import is_loopback_host
from hexgen_sglang.coordinator.http_errors import ApiError, as_api_error
from hexgen_sglang.coordinator.receiving import admitted
from hexgen_sglang.coordinator.service import Coordinator
from hexgen_sglang.core.errors import HexgenError

_PARTS = ("head.html", "page.html")
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
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
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class PageFiles:
    """The files of one page, read once.

    Args:
        package: whose folder `assets` holds them; those that all pages share come along. Its
            `page.html` begins inside the head, behind what `head.html` says for all.
    """

    def __init__(self, package: str) -> None:
        folders = [importlib.resources.files(name) / "assets" for name in (__package__, package)]
        files = [one for folder in folders for one in folder.iterdir()]
        self._files = {one.name: _answer(one.name, one.read_bytes()) for one in files}
        parts = [(folder / name).read_bytes() for folder, name in zip(folders, _PARTS, strict=True)]
        self._page = _answer("page.html", b"".join(parts))

    async def page(self, request: Request) -> Response:
        """The page itself."""
        return self._page

    async def asset(self, request: Request) -> Response:
        """The file that the path names."""
        found = self._files.get(request.path_params["name"])
        return found or refusal(ApiError(404, "no such file"))


def _answer(name: str, body: bytes) -> Response:
    return Response(body, 200, HEADERS, _TYPES[name.rpartition(".")[2]])


def admit(coordinator: Coordinator, headers: Mapping[str, str], roles: tuple[Role, ...]) -> Caller:
    """Who asks for what a page shows.

    Raises:
        ApiError: 401, 403 or 431, as of every route; 403 for a page that another site's name leads
            to, where nobody needs a key: a browser on this machine would take our answers for that
            site's own (DNS rebinding).
    """
    config = coordinator.config
    host = headers.get("host", "")
    is_open = config.api_keys is None and not config.allow_anonymous
    if is_open and not is_loopback_host(urlsplit(f"//{host}").hostname or ""):
        raise ApiError(
            403,
            f"host={host[:200]!r}: without API keys the page is for this machine's own address; "
            "state api_keys, or allow_anonymous = true",
            kind="permission_error",
            code="foreign_host",
        )
    return admitted(coordinator, headers, roles)


def refused(coordinator: Coordinator, error: HexgenError) -> Response:
    """The answer to a call that is refused, which is counted."""
    told = as_api_error(error)
    coordinator.parts.metrics.refused.labels(str(told.status)).inc()
    return refusal(told)


def refusal(error: ApiError) -> Response:
    """An error in the coordinator's usual form, with a page's headers."""
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(error.body(), error.status, headers | HEADERS)
