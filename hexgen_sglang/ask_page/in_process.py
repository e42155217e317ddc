"""The agent's requests to the coordinator that it runs in: the same routes, without a connection.

They are admitted, limited, tagged, queued and placed like any client's, as coming from the person
who asked; neither the address nor the certificate of the coordinator matters.
"""

from __future__ import annotations

import asyncio
import json
import logging
import urllib.parse
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from starlette.types import ASGIApp, Message

from hexgen_sglang.client.completions import CompletionsClient
from hexgen_sglang.core.errors import WorkerUnavailableError

log = logging.getLogger(__name__)

_URL = "http://coordinator/v1"  # stands in messages only


class InProcessClient(CompletionsClient):
    """Calls an ASGI application in this event loop.

    Args:
        app: the coordinator's.
        authorization: the header of whoever asks; "" without one.
        timeout_s: as long as full queues are waited out without a deadline, above 0.
    """

    def __init__(self, app: ASGIApp, authorization: str, timeout_s: float) -> None:
        super().__init__(_URL, None, timeout_s)
        self._app = app
        self._authorization = {"authorization": authorization} if authorization else {}

    async def exchange(
        self, method: str, url: str, body: dict[str, Any] | None, headers: dict[str, str]
    ) -> tuple[int, str | None, bytes]:
        """As over a connection; whoever cancels it hangs up, which makes the coordinator abort."""
        call = _Call(b"" if body is None else json.dumps(body).encode())
        named = {"content-type": "application/json", **headers, **self._authorization}
        scope = _scope(method, urllib.parse.urlsplit(url).path, named)
        serving = asyncio.ensure_future(self._app(scope, call.receive, call.send))
        try:
            await asyncio.wait({serving})
        finally:
            call.hung_up.set()
            await asyncio.wait({serving})
        if (error := serving.exception()) is not None:
            log.error("%s %s failed unexpectedly", method, url, exc_info=error)
            raise WorkerUnavailableError("internal error of the coordinator") from error
        return call.status, call.headers.get(b"retry-after", b"").decode() or None, call.answer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None


@dataclass
class _Call:
    """One request's two ends, as ASGI has them."""

    body: bytes
    status: int = 500
    headers: dict[bytes, bytes] = field(default_factory=dict)
    answer: bytes = b""
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    is_read: bool = False

    async def receive(self) -> Message:
        """The body, then nothing until the caller hangs up."""
        if not self.is_read:
            self.is_read = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Collect the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = dict(message["headers"])
        else:
            self.answer += message.get("body", b"")


def _scope(method: str, path: str, headers: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": urllib.parse.unquote(path),
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": None,
        "server": None,
    }
