"""HTTP towards other coordinators: what they tell, and requests that are theirs.

A request that is passed on keeps its headers, the caller's key among them, so that its owner
judges it as if it had come there first. The answer comes back as it is, events whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import aiohttp
import msgspec
from starlette.types import Receive

from hexgen_sglang.coordinator.delivery import Delivery, disconnected
from hexgen_sglang.coordinator.http_errors import ApiError
from hexgen_sglang.core.errors import ConfigError, HexgenError

if TYPE_CHECKING:
    from hexgen_sglang.coordinator.peers import Peer

# Names who passed the request on; it is passed on once. No `x-hexgen-` name: those are the tag's.
FORWARDED = "hexgen-forwarded-by"
BEAT_PATH = "/peers/beat"
_BEAT_TIMEOUT_S = 1.0
_ASK_TIMEOUT_S = 10.0
_BEAT_BYTES = 4 * 1024 * 1024
_EVENT_END = b"\n\n"
# Of one connection, or set anew by whoever sends.
_OWN_HEADERS = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te"),
        *("trailer", "transfer-encoding", "upgrade", "host", "content-length"),
        *("accept-encoding", "expect", FORWARDED),
    }
)

T = TypeVar("T")


class PeerLost(HexgenError):
    """A coordinator cannot be reached, or broke off; nothing of an answer has come.

    Attributes:
        is_refused: nothing listens there.
    """

    def __init__(self, message: str, *, is_refused: bool = False) -> None:
        super().__init__(message)
        self.is_refused = is_refused


class PeerClient:
    """One connection pool for all peers. Make and close it on the event loop.

    Args:
        own_id: of this coordinator.
        key_file: holds the API key that peers are shown; None: no peer wants one.
        connect_timeout_s: to open a connection.

    Raises:
        ConfigError: the key cannot be read.
    """

    def __init__(self, own_id: str, key_file: Path | None, connect_timeout_s: float) -> None:
        self._own_id = own_id
        self._headers = {FORWARDED: own_id}
        if key_file is not None:
            try:
                key = key_file.read_text(encoding="ascii").strip()
            except (OSError, UnicodeError) as error:
                raise ConfigError(f"peer_key={str(key_file)!r}: {error}") from error
            self._headers["authorization"] = f"Bearer {key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=3.0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def beat(self, url: str, told: msgspec.Struct, patience_s: float, kind: type[T]) -> T:
        """Tell a peer; returns what it tells.

        Raises:
            PeerLost: no answer, or none that can be read.
        """
        timeout = aiohttp.ClientTimeout(total=min(_BEAT_TIMEOUT_S, patience_s))
        try:
            async with self._session.post(
                url + BEAT_PATH,
                data=msgspec.json.encode(told),
                headers=self._headers,
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                body = await response.content.read(_BEAT_BYTES)
                if response.status != 200:
                    raise PeerLost(f"{url} answered {response.status}")
                return msgspec.json.decode(body, type=kind)
        except aiohttp.ClientConnectorError as error:
            raise PeerLost(f"{url}: {error}", is_refused=True) from error
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.MsgspecError) as error:
            raise PeerLost(f"{url}: {type(error).__name__}: {error}") from error

    async def ask(
        self, peer: Peer, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, bytes]:
        """Status and body of a short answer.

        Raises:
            PeerLost: none came.
        """
        timeout = aiohttp.ClientTimeout(total=_ASK_TIMEOUT_S)
        try:
            async with self._session.request(
                method,
                peer.url + target,
                data=body or None,
                headers=self._passed_on(headers),
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise PeerLost(f"{peer.url}: {type(error).__name__}: {error}") from error

    async def relay(
        self,
        peer: Peer,
        route: str,
        headers: Mapping[str, str],
        body: bytes,
        delivery: Delivery,
        receive: Receive,
    ) -> None:
        """Pass a request on and its answer back, until either side is gone.

        Raises:
            PeerLost: the peer is gone, and the client has got nothing.
        """
        work = asyncio.create_task(self._relay(peer, route, headers, body, delivery))
        lost = asyncio.create_task(peer.lost.wait())
        gone = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait({work, lost, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not work.done():
                return
            error = PeerLost(f"coordinator {peer.coordinator_id!r} was lost")
            if work.done():
                if work.exception() is None:
                    return
                error = _as_lost(work.exception(), peer)
        finally:
            for task in (work, lost, gone):
                task.cancel()
            await asyncio.wait({work, lost, gone})
        if not delivery.has_begun:
            raise error
        await delivery.fail(
            ApiError(
                502,
                f"coordinator {peer.coordinator_id!r} was lost after the first byte",
                kind="server_error",
                code="coordinator_lost",
            )
        )

    async def _relay(
        self,
        peer: Peer,
        route: str,
        headers: Mapping[str, str],
        body: bytes,
        delivery: Delivery,
    ) -> None:
        async with self._session.post(
            peer.url + route,
            data=body,
            headers=self._passed_on(headers),
            allow_redirects=False,
        ) as response:
            kept = _kept(response.headers.items())
            kept.append((b"x-hexgen-coordinator-id", peer.coordinator_id.encode()))
            if response.content_type != "text/event-stream":
                whole = await response.read()
                kept.append((b"content-length", str(len(whole)).encode()))
                await delivery.whole(response.status, kept, whole)
                return
            await delivery.begin(response.status, kept)
            held = b""
            async for piece in response.content.iter_any():
                ready, end, held = (held + piece).rpartition(_EVENT_END)
                if end:
                    await delivery.write(ready + end)
            if held:
                await delivery.write(held)
            await delivery.end()

    def _passed_on(self, headers: Mapping[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in headers.items() if name not in _OWN_HEADERS}
        return {**kept, FORWARDED: self._own_id, "accept-encoding": "identity"}


def _kept(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [
        (name.lower().encode(), value.encode("latin-1"))
        for name, value in headers
        if name.lower() not in _OWN_HEADERS and name.lower() not in ("date", "server")
    ]


def _as_lost(error: BaseException | None, peer: Peer) -> PeerLost:
    """What went wrong with a peer.

    Raises:
        BaseException: it was not the peer's fault.
    """
    if isinstance(error, aiohttp.ClientError | OSError | TimeoutError):
        return PeerLost(f"coordinator {peer.coordinator_id!r}: {type(error).__name__}: {error}")
    assert error is not None
    raise error
