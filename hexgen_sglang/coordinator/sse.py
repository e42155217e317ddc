"""Cuts a byte stream into server-sent events, so that each can be looked at and passed on."""

from __future__ import annotations

from hexgen_sglang.core.errors import ProtocolError

DONE = b"data: [DONE]"
_DATA = b"data:"


class EventSplitter:
    """Whole events out of arbitrary chunks.

    Args:
        max_event_bytes: a longer event is an error: nothing here may grow without end.
    """

    def __init__(self, max_event_bytes: int = 64 * 1024 * 1024) -> None:
        self._max_event_bytes = max_event_bytes
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events completed by `chunk`, each with its closing blank line, unchanged.

        Raises:
            ProtocolError: an event is longer than allowed.
        """
        data = self._rest + chunk if self._rest else chunk
        events: list[bytes] = []
        start = 0
        while True:
            end = _end_of_event(data, start)
            if end < 0:
                break
            events.append(data[start:end])
            start = end
        self._rest = data[start:]
        if len(self._rest) > self._max_event_bytes:
            raise ProtocolError(
                f"event of {len(self._rest)} bytes: must be at most {self._max_event_bytes}"
            )
        return events

    @property
    def rest(self) -> bytes:
        """Bytes after the last whole event."""
        return self._rest


def payload(event: bytes) -> bytes | None:
    """The JSON of an event's single `data:` line; None for [DONE], comments and the rest."""
    at = event.find(_DATA)
    if at < 0 or (at > 0 and event[at - 1 : at] != b"\n"):
        return None
    line = event[at + len(_DATA) :].split(b"\n", 1)[0].strip()
    return None if line == b"[DONE]" else line


def is_done(event: bytes) -> bool:
    """True for the event that ends a complete stream."""
    return event.lstrip().startswith(DONE)


def _end_of_event(data: bytes, start: int) -> int:
    """Index after the next blank line, or -1."""
    unix, windows = data.find(b"\n\n", start), data.find(b"\r\n\r\n", start)
    if windows >= 0 and (unix < 0 or windows < unix):
        return windows + 4
    return unix + 2 if unix >= 0 else -1
