"""Bounds that must hold before there is a request: connections, header bytes, header time.

A layer over uvicorn's own HTTP protocol (h11 or httptools), in the coordinator's event loop.
Bodies are bounded by the routes, which know how long they may be.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.auto import AutoHTTPProtocol

_Base: Any = AutoHTTPProtocol
_PAGE = (
    b"HTTP/1.1 %s\r\ncontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n"
    b"%s\r\n%s"
)


def bounded_protocol(
    *, max_connections: int, max_header_bytes: int, header_timeout_s: float
) -> type[asyncio.Protocol]:
    """The HTTP protocol of uvicorn, with bounds.

    Args:
        max_connections: more get 503 and are closed.
        max_header_bytes: a request whose line and headers are longer without being complete
            gets 431. (One that is complete reaches the application, which counts again.)
        header_timeout_s: from the first byte of a request (or the connection's start) until
            its headers are complete; then 408.
    """

    class BoundedProtocol(_Base):  # type: ignore[misc]
        """One connection."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._num_header_bytes = 0
            self._is_in_headers = True  # of httptools, which has no state of its own to ask
            self._deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                self._refuse(
                    b"503 Service Unavailable",
                    b"at most %d connections" % max_connections,
                    b"retry-after: 1\r\n",
                )
                return
            self._deadline = self.loop.call_later(header_timeout_s, self._too_slow)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            if not self._awaits_headers():
                self._num_header_bytes = 0
                self._stop_waiting()
                return
            self._num_header_bytes += len(data)
            if self._num_header_bytes > max_header_bytes:
                self._refuse(
                    b"431 Request Header Fields Too Large",
                    b"request line and headers: at most %d bytes" % max_header_bytes,
                )
            elif self._deadline is None:
                self._deadline = self.loop.call_later(header_timeout_s, self._too_slow)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            self._is_in_headers = True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._is_in_headers = False
            super().on_headers_complete()

        def _awaits_headers(self) -> bool:
            """Not so inside a body, even when the request has been answered already."""
            parser = getattr(self, "conn", None)
            return self._is_in_headers if parser is None else parser.their_state is h11.IDLE

        def _stop_waiting(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _too_slow(self) -> None:
            self._deadline = None
            if self._num_header_bytes:
                self._refuse(
                    b"408 Request Timeout", b"headers: within %g seconds" % header_timeout_s
                )
            else:
                self.transport.close()

        def _refuse(self, status: bytes, text: bytes, extra: bytes = b"") -> None:
            self._stop_waiting()
            if not self.transport.is_closing():
                self.transport.write(_PAGE % (status, len(text), extra, text))
                self.transport.close()

    return BoundedProtocol
