"""The client's end of a request: sends the answer, and knows whether it has begun."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import Receive, Send

from hexgen_sglang.coordinator.continuation import StreamPosition
from hexgen_sglang.coordinator.http_errors import ApiError

Headers = Iterable[tuple[bytes, bytes]]


class Delivery:
    """One HTTP answer over ASGI. Sending waits while the client is slow (backpressure).

    Attributes:
        has_begun: status and headers are out: there is no other answer any more.
        has_ended: the answer is complete.
        position: what the client has of a stream; None for answers in one piece.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False
        self.has_ended = False
        self.position: StreamPosition | None = None

    async def begin(self, status: int, headers: Headers) -> None:
        """Send status and headers."""
        self.has_begun = True
        await self._send(
            {"type": "http.response.start", "status": status, "headers": list(headers)}
        )

    async def write(self, data: bytes) -> None:
        """Send a piece of the body; returns when the connection takes more."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """Complete the body."""
        self.has_ended = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send an answer in one piece."""
        await self.begin(status, headers)
        self.has_ended = True
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def fail(self, error: ApiError, headers: Headers = ()) -> None:
        """Tell the client what went wrong.

        Before the answer has begun: an error status. Inside an event stream: a last event
        with the error, without [DONE], so that no client takes the answer for complete.
        """
        if self.has_ended:
            return
        if not self.has_begun:
            await self.whole(error.status, [*error.headers(), *headers], error.body())
            return
        await self.write(error.sse_event())
        await self.end()


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone away. Call it after the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass
