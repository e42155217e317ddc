"""POST /v1/completions of any OpenAI-compatible server: one asynchronous exchange.

Lives in the caller's process, on its event loop; loads neither SGLang nor torch. Whoever cancels
an exchange closes its connection, which makes a server drop the request.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

from hexgen_sglang.client.trace_context import trace_headers
from hexgen_sglang.core.errors import (
    AdmissionRejected,
    ConfigError,
    ProtocolError,
    WorkerUnavailableError,
)

HeaderMaker = Callable[[], dict[str, str]]
Remaining = Callable[[], float | None]

_CONNECT_TIMEOUT_S = 10.0
# Below the 5 s after which uvicorn closes idle connections: a request on one that is being
# closed would fail.
_KEEPALIVE_S = 2.0
_MIN_RETRY_S, _MAX_RETRY_S = 0.05, 5.0
_MAX_ERROR_CHARS = 500
_MAX_ANSWER_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer: its text, and token counts (0 where the server tells none)."""

    text: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


class CompletionsClient:
    """Sends completions to one server, as many at a time as are asked for.

    Use `async with`: connections are closed at its end.

    Args:
        base_url: as OpenAI clients take it, e.g. "http://127.0.0.1:8000/v1"; a URL without a
            path gets "/v1".
        api_key: sent as a bearer token when given.
        timeout_s: longest silence while an answer is awaited, queueing included; above 0.

    Raises:
        ConfigError: the URL or the timeout is wrong.
    """

    def __init__(self, base_url: str, api_key: str | None, timeout_s: float) -> None:
        parts = urllib.parse.urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise ConfigError(f"base_url={base_url!r}: must look like http://host:port/v1")
        if not timeout_s > 0:
            raise ConfigError(f"timeout_s={timeout_s}: must be above 0")
        path = parts.path.rstrip("/") or "/v1"
        self._url = f"{parts.scheme}://{parts.netloc}{path}"
        self._root = self._url.removesuffix("/v1")
        self._timeout_s = timeout_s
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    async def model_names(self) -> list[str]:
        """Names of the models that the server offers.

        Raises:
            WorkerUnavailableError, ProtocolError: it does not answer as it should.
        """
        answer = await self._call("GET", f"{self._url}/models")
        rows = answer.get("data")
        if not isinstance(rows, list):
            raise ProtocolError(f"GET {self._url}/models: expected `data`, a list")
        return [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row]

    async def complete(
        self, body: dict[str, Any], make_headers: HeaderMaker, remaining_s: Remaining
    ) -> Completion:
        """The first choice's text. The headers, which hold the tag, are made when it is sent.

        A 429 is waited out as the server asks, until the deadline has passed or, without one,
        `timeout_s` is over.

        Raises:
            AdmissionRejected: the queue stayed full.
            ProtocolError: the server refuses the request (a 4xx), or its answer has no text.
            WorkerUnavailableError: no connection, silence, a 5xx, or a broken answer.
        """
        give_up_s = time.monotonic() + self._timeout_s
        url = f"{self._url}/completions"
        while True:
            try:
                return _completion(url, await self._call("POST", url, body, make_headers()))
            except AdmissionRejected as error:
                left_s = remaining_s()
                if left_s is None:
                    left_s = give_up_s - time.monotonic()
                if left_s <= error.retry_after_s:
                    raise
                await asyncio.sleep(error.retry_after_s)

    async def end_workflow(self, workflow_id: str, *, cancel: bool = False) -> None:
        """Tell a coordinator that the workflow is over, or that what is left of it is not wanted.

        Raises:
            ProtocolError: the server knows no such workflow, or no workflows at all.
            WorkerUnavailableError: it cannot be reached.
        """
        url = f"{self._root}/workflows/{urllib.parse.quote(workflow_id, safe='')}"
        await self._call(*(("DELETE", url) if cancel else ("POST", f"{url}/end")))

    async def _call(
        self,
        method: str,
        url: str,
        body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        sent = {**trace_headers(), **(headers or {})}
        status, retry_after, data = await self.exchange(method, url, body, sent)
        if status != 200:
            text = data.decode("utf-8", "replace")[:_MAX_ERROR_CHARS]
            raise _refusal(f"{method} {url}: HTTP {status}: {text}", status, retry_after)
        return _object(method, url, data)

    async def exchange(
        self, method: str, url: str, body: dict[str, Any] | None, headers: dict[str, str]
    ) -> tuple[int, str | None, bytes]:
        """Carry one request over: status, `Retry-After` and the answer's body.

        Subclasses may have another way than a connection.

        Raises:
            WorkerUnavailableError: no answer.
        """
        if self._session is None:
            raise ConfigError("CompletionsClient: use it inside `async with`")
        try:
            async with self._session.request(method, url, json=body, headers=headers) as response:
                data = await response.content.read(_MAX_ANSWER_BYTES)
                while not response.content.at_eof() and len(data) < _MAX_ANSWER_BYTES:
                    data += await response.content.read(_MAX_ANSWER_BYTES)
                return response.status, response.headers.get("Retry-After"), data
        except TimeoutError as error:
            message = f"{method} {url}: silent for {self._timeout_s:g} s"
            raise WorkerUnavailableError(message) from error
        except (aiohttp.ClientError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise WorkerUnavailableError(f"{method} {url}: {reason}") from error

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=self._timeout_s
            ),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _refusal(message: str, status: int, retry_after: str | None) -> Exception:
    if status == 429:
        return AdmissionRejected(message, _retry_after_s(retry_after))
    return ProtocolError(message) if 400 <= status < 500 else WorkerUnavailableError(message)


def _object(method: str, url: str, data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        shown = data[:_MAX_ERROR_CHARS]
        raise WorkerUnavailableError(f"{method} {url}: expected a JSON object, got {shown!r}")
    return answer


def _completion(url: str, answer: dict[str, Any]) -> Completion:
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    text = first.get("text") if isinstance(first, dict) else None
    if not isinstance(text, str):
        raise ProtocolError(f"POST {url}: no choices[0].text in {str(answer)[:_MAX_ERROR_CHARS]}")
    if isinstance(first, dict) and first.get("finish_reason") == "abort":
        raise WorkerUnavailableError(f"POST {url}: the server aborted the request")
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    return Completion(
        text=text,
        prompt_tokens=_count(usage.get("prompt_tokens")),
        cached_tokens=_count(details.get("cached_tokens") if isinstance(details, dict) else 0),
        output_tokens=_count(usage.get("completion_tokens")),
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _retry_after_s(header: str | None) -> float:
    """Seconds to wait as the header asks, within bounds; it may also be a date (then: most)."""
    try:
        wanted_s = float(header) if header is not None else _MIN_RETRY_S
    except ValueError:
        wanted_s = _MAX_RETRY_S
    return min(_MAX_RETRY_S, max(_MIN_RETRY_S, wanted_s))
