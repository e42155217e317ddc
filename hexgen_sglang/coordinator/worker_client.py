"""HTTP towards the workers: the only place of the coordinator that opens connections to them.

Failures that another worker may not share come out as `AttemptFailed`; everything a worker
says with a status below 500 is an answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from hexgen_sglang.coordinator.live_request import AttemptFailed

log = logging.getLogger(__name__)

# Shorter than uvicorn's 5 s: the worker must not close a connection just as we use it again.
_KEEP_ALIVE_S = 3.0
_ABORT_TIMEOUT_S = 5.0
_TOKENIZER_TIMEOUT_S = 10.0
_PROBE_BYTES = 4 * 1024 * 1024
# Statuses with which a worker says "not me, not now"; other 4xx are the client's to see.
_BUSY_STATUSES = frozenset({408, 429})


class WorkerClient:
    """One connection pool for all workers. Make and close it on the event loop.

    Args:
        connect_timeout_s: to open a connection.
    """

    def __init__(self, connect_timeout_s: float) -> None:
        timeout = aiohttp.ClientTimeout(
            total=None, connect=None, sock_connect=connect_timeout_s, sock_read=None
        )
        # No limit here: how much is in flight is the dispatcher's decision.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            auto_decompress=False,
            headers={"accept-encoding": "identity"},
        )
        self._aborts: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait for outstanding aborts, then close all connections."""
        if self._aborts:
            await asyncio.wait(self._aborts, timeout=_ABORT_TIMEOUT_S)
        await self._session.close()

    @asynccontextmanager
    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer whose headers have come and whose status is not the worker's failure.

        Leaving the block before the end of the body closes the connection, by which SGLang
        notices that nobody waits any more.

        Raises:
            AttemptFailed: connection refused or broken, also inside the block; a 5xx, 408 or
                429 status.
        """
        try:
            async with self._session.post(
                url, data=body, headers=headers, allow_redirects=False
            ) as response:
                if response.status >= 500 or response.status in _BUSY_STATUSES:
                    detail = (await response.content.read(500)).decode("utf-8", "replace")
                    raise AttemptFailed(f"answered {response.status}", "status", f": {detail}")
                yield response
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError) as error:
            raise AttemptFailed(f"no connection: {error}", "connect") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            detail = f"{type(error).__name__}: {error}"
            raise AttemptFailed(f"connection broke: {detail}", "disconnect") from error

    def abort(self, base_url: str, rid: str) -> None:
        """Tell the worker to stop a request; in the background, failures are only logged."""
        task = asyncio.get_running_loop().create_task(self._abort(base_url, rid))
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)

    async def tokenize(self, base_url: str, text: str, *, begins: bool) -> list[int]:
        """The token ids of a text, by the worker's tokenizer.

        `begins`: with what the tokenizer puts before a sequence.

        Raises:
            AttemptFailed: no answer, or one without token ids.
        """
        question = {"prompt": text, "add_special_tokens": begins}
        answer = await self._ask_tokenizer(f"{base_url}/tokenize", question)
        ids = answer.get("tokens") if isinstance(answer, dict) else None
        if not isinstance(ids, list) or any(type(item) is not int for item in ids):
            raise AttemptFailed(f"{base_url}/tokenize: tells no token ids", "status")
        return ids

    async def detokenize(self, base_url: str, ids: list[int]) -> str:
        """The text of token ids, by the worker's tokenizer.

        Raises:
            AttemptFailed: no answer, or one without a text.
        """
        answer = await self._ask_tokenizer(f"{base_url}/detokenize", {"tokens": ids})
        text = answer.get("text") if isinstance(answer, dict) else None
        if not isinstance(text, str):
            raise AttemptFailed(f"{base_url}/detokenize: tells no text", "status")
        return text

    async def _ask_tokenizer(self, url: str, question: dict[str, Any]) -> Any:
        body = msgspec.json.encode(question)
        headers = {"content-type": "application/json"}
        try:
            async with (
                asyncio.timeout(_TOKENIZER_TIMEOUT_S),
                self.post(url, body, headers) as reply,
            ):
                if reply.status != 200:
                    raise AttemptFailed(f"{url} answered {reply.status}", "status")
                return msgspec.json.decode(await reply.read())
        except TimeoutError as error:
            raise AttemptFailed(f"{url}: no answer", "timeout") from error
        except msgspec.DecodeError as error:
            raise AttemptFailed(f"{url}: not JSON: {error}", "status") from error

    async def get_json(self, url: str, timeout_s: float) -> Any:
        """A JSON answer with status 200, of at most 4 MiB.

        Raises:
            AttemptFailed: no connection, another status, too long, or not JSON.
        """
        body = await self.get(url, timeout_s)
        try:
            return msgspec.json.decode(body)
        except msgspec.DecodeError as error:
            raise AttemptFailed(f"{url}: not JSON: {error}", "status") from error

    async def get(self, url: str, timeout_s: float) -> bytes:
        """The body of an answer with status 200.

        Raises:
            AttemptFailed: with reason "connect", "timeout", "status" or "disconnect".
        """
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._session.get(url, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise AttemptFailed(f"{url} answered {response.status}", "status")
                body = await response.content.read(_PROBE_BYTES)
                while not response.content.at_eof() and len(body) < _PROBE_BYTES:
                    body += await response.content.read(_PROBE_BYTES)
                return body
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError) as error:
            raise AttemptFailed(f"no connection: {error}", "connect") from error
        except TimeoutError as error:
            raise AttemptFailed(f"{url}: no answer in {timeout_s:g} s", "timeout") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            detail = f"{type(error).__name__}: {error}"
            raise AttemptFailed(f"connection broke: {detail}", "disconnect") from error

    async def _abort(self, base_url: str, rid: str) -> None:
        try:
            async with (
                asyncio.timeout(_ABORT_TIMEOUT_S),
                self._session.post(
                    f"{base_url}/abort_request", json={"rid": rid}, allow_redirects=False
                ) as response,
            ):
                if response.status != 200:
                    log.warning("%s: abort of %s answered %d", base_url, rid, response.status)
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            log.debug("%s: abort of %s: %s", base_url, rid, error)
