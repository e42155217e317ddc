"""Versions, bounds and senders' mistakes; the codec's laws are in tests/laws."""

from __future__ import annotations

import msgspec
import numpy
import pytest

from hexgen_sglang.core.errors import ProtocolError
from hexgen_sglang.protocol.codec import (
    MAX_MESSAGE_BYTES,
    LinkVersionError,
    decode_coordinator_message,
    decode_worker_message,
    encode,
)
from hexgen_sglang.protocol.messages import Cancel, Heartbeat, Load, PolicySettings, Welcome


def test_another_version_is_named_even_when_its_shape_is_unknown():
    newer = {"type": "hello", "link_version": 2, "worker_id": 7, "colour": "green"}
    with pytest.raises(LinkVersionError, match=r"hello\.link_version=2.*speaks version 1"):
        decode_worker_message(msgspec.msgpack.encode(newer))
    with pytest.raises(LinkVersionError, match=r"welcome\.link_version=9.*speaks version 1"):
        decode_coordinator_message(encode(Welcome(9, "c", 1000)))


def test_a_malformed_hello_of_our_version_is_not_called_a_version_error(hello):
    fields = {**msgspec.to_builtins(hello), "url": "ftp://elsewhere"}
    with pytest.raises(ProtocolError, match="url") as caught:
        decode_worker_message(msgspec.msgpack.encode(fields))
    assert not isinstance(caught.value, LinkVersionError)


def test_each_direction_refuses_the_messages_of_the_other(hello):
    with pytest.raises(ProtocolError, match="hello"):
        decode_coordinator_message(encode(hello))
    with pytest.raises(ProtocolError, match="heartbeat"):
        decode_worker_message(encode(Heartbeat()))


def test_unknown_fields_are_errors():
    with pytest.raises(ProtocolError, match="colour"):
        decode_coordinator_message(msgspec.msgpack.encode({"type": "heartbeat", "colour": 1}))


def test_the_size_bound_is_checked_before_anything_else():
    with pytest.raises(ProtocolError, match=f"{MAX_MESSAGE_BYTES + 1} bytes; allowed"):
        decode_worker_message(b"\xc1" * (MAX_MESSAGE_BYTES + 1))


def test_the_largest_valid_message_fits():
    names = [f"{number:064d}" for number in range(64)]
    largest = PolicySettings(ordering="x" * 64, settings=dict.fromkeys(names, 1e300))
    assert decode_coordinator_message(encode(largest)) == largest
    assert len(encode(largest)) < MAX_MESSAGE_BYTES / 2


def test_a_sender_hears_of_its_own_mistake():
    for wrong in (-1, 2**40 + 1, 2**70, 1.5, numpy.int64(3), None):
        with pytest.raises(ProtocolError, match="Load cannot be sent"):
            encode(Load(wrong, 0, 0, 0))


def test_a_cancel_means_a_workflow_or_a_request():
    for fields in (
        {"workflow_id": None, "request_id": None},
        {"workflow_id": "f", "request_id": "r"},
    ):
        data = msgspec.msgpack.encode({"type": "cancel", **fields})
        with pytest.raises(ProtocolError, match="exactly one of workflow_id and request_id"):
            decode_coordinator_message(data)
    with pytest.raises(ValueError, match="exactly one"):
        Cancel(workflow_id=None, request_id=None)
