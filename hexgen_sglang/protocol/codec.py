"""Link messages to msgpack and back: strict, bounded, versioned. No I/O.

Used by the transport ends on both sides. Whatever bytes arrive, decoding gives a valid message
or a `ProtocolError`, in time and memory bounded by `MAX_MESSAGE_BYTES`.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from hexgen_sglang.core.errors import ProtocolError
from hexgen_sglang.protocol.messages import (
    LINK_VERSION,
    CoordinatorMessage,
    Hello,
    Welcome,
    WorkerMessage,
)

# The largest valid message is a Prewarm with 3,072 token ids: under 13 KiB.
MAX_MESSAGE_BYTES = 16_384

M = TypeVar("M", WorkerMessage, CoordinatorMessage)

# What msgspec raises on hostile input: wrong types and ranges, bad UTF-8, deep nesting.
_DECODE_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)


class LinkVersionError(ProtocolError):
    """The other end speaks another version of the link; the message names both versions."""


class _Envelope(msgspec.Struct):
    """The part of `Hello` and `Welcome` that stays readable across link versions."""

    type: str
    link_version: int


_encoder = msgspec.msgpack.Encoder()
_any_decoder: msgspec.msgpack.Decoder[WorkerMessage | CoordinatorMessage] = msgspec.msgpack.Decoder(
    WorkerMessage | CoordinatorMessage
)
_worker_decoder: msgspec.msgpack.Decoder[WorkerMessage] = msgspec.msgpack.Decoder(WorkerMessage)
_coordinator_decoder: msgspec.msgpack.Decoder[CoordinatorMessage] = msgspec.msgpack.Decoder(
    CoordinatorMessage
)
_envelope_decoder = msgspec.msgpack.Decoder(_Envelope)


def encode(message: WorkerMessage | CoordinatorMessage) -> bytes:
    """The message as msgpack, checked: what this returns, the other end accepts.

    Raises:
        ProtocolError: a field has a wrong type or is out of range (structs do not check that
            when they are made).
    """
    try:
        data = _encoder.encode(message)
        _any_decoder.decode(data)
    except (*_DECODE_ERRORS, TypeError, OverflowError) as error:
        raise ProtocolError(f"{type(message).__name__} cannot be sent: {error}") from error
    return data


def decode_worker_message(data: bytes) -> WorkerMessage:
    """What a worker sent.

    Raises:
        LinkVersionError: a `Hello` of another link version.
        ProtocolError: anything else that is not exactly one valid worker message of at most
            `MAX_MESSAGE_BYTES`.
    """
    return _decode(data, _worker_decoder)


def decode_coordinator_message(data: bytes) -> CoordinatorMessage:
    """What the coordinator sent.

    Raises:
        LinkVersionError: a `Welcome` of another link version.
        ProtocolError: anything else that is not exactly one valid coordinator message of at
            most `MAX_MESSAGE_BYTES`.
    """
    return _decode(data, _coordinator_decoder)


def _decode(data: bytes, decoder: msgspec.msgpack.Decoder[M]) -> M:
    if len(data) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"link message: {len(data)} bytes; allowed: 0 to {MAX_MESSAGE_BYTES}")
    try:
        message = decoder.decode(data)
    except _DECODE_ERRORS as error:
        _refuse_other_version(data)
        raise ProtocolError(f"link message: {error}") from error
    if isinstance(message, Hello | Welcome) and message.link_version != LINK_VERSION:
        raise _other_version(type(message).__name__, message.link_version)
    return message


def _refuse_other_version(data: bytes) -> None:
    """Say so if `data` failed only because a newer or older peer shapes it differently."""
    try:
        envelope = _envelope_decoder.decode(data)
    except _DECODE_ERRORS:
        return
    if envelope.type in {"hello", "welcome"} and envelope.link_version != LINK_VERSION:
        raise _other_version(envelope.type, envelope.link_version)


def _other_version(what: str, version: int) -> LinkVersionError:
    return LinkVersionError(
        f"{what.lower()}.link_version={version}: this end speaks version {LINK_VERSION}; "
        "run the same hexgen-sglang on coordinator and workers"
    )
