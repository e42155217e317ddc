"""SGLang's KV cache events (`--kv-events-config`), as far as they are read here.

A batch is a msgpack array [time, events, rank]; an event is a map with its class name under
`type`. Fields that are not read are skipped, so that newer engines can add some.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from hexgen_sglang.core.errors import ProtocolError

# Of one batch; an engine that has more to tell has a wrong idea of a step.
MAX_EVENT_BYTES = 64 * 1024 * 1024
_Hashes = Annotated[list[int], Meta(max_length=1_048_576)]


class BlockStored(Struct, frozen=True, tag="BlockStored"):
    """Blocks of `block_size` tokens were computed, each behind the one before it.

    `parent_block_hash`: of the block before the first; None at the start of a prompt.
    """

    block_hashes: _Hashes
    parent_block_hash: int | None
    token_ids: _Hashes
    block_size: Annotated[int, Meta(ge=1, le=65_536)]
    lora_id: int | str | None = None
    medium: str | None = None
    cache_salt: str | None = None


class BlockRemoved(Struct, frozen=True, tag="BlockRemoved"):
    """Blocks were evicted."""

    block_hashes: _Hashes
    medium: str | None = None


class AllBlocksCleared(Struct, frozen=True, tag="AllBlocksCleared"):
    """The cache was flushed."""


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


class _Batch(Struct, frozen=True, array_like=True):
    ts: float
    events: list[KvEvent]


_DECODER = msgspec.msgpack.Decoder(_Batch)


def decode_kv_events(payload: bytes) -> list[KvEvent]:
    """The events of a batch.

    Raises:
        ProtocolError: too long, or not such a batch.
    """
    if len(payload) > MAX_EVENT_BYTES:
        raise ProtocolError(f"KV events: {len(payload)} bytes: at most {MAX_EVENT_BYTES}")
    try:
        return _DECODER.decode(payload).events
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"KV events: {error}") from error
