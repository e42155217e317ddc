"""How long a prompt is and which prefix it has, without a tokenizer.

Text is measured in characters and cut into blocks of 256 of them, token ids into blocks of 64;
each block's hash is chained to the ones before it, so equal hashes mean equal prefixes. Runs
on the event loop: linear in the prompt, about 1 us for each block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

BLOCK_CHARS = 256
BLOCK_TOKENS = 64
# Longer prompts are described by their first 1,024 blocks: 262,144 characters.
_MAX_BLOCKS = 1_024
_HASH_BYTES = 8


@dataclass(frozen=True, slots=True)
class PromptShape:
    """What the coordinator knows of a request's prompts.

    Attributes:
        num_prompts: prompts in the request, at least 1.
        num_chars: characters of all prompts given as text.
        num_token_ids: tokens of all prompts given as ids.
        blocks: chained hashes of the first prompt's whole blocks.
    """

    num_prompts: int
    num_chars: int
    num_token_ids: int
    blocks: tuple[int, ...]

    @property
    def units_in_a_block(self) -> int:
        """Token ids or characters that one of the blocks stands for."""
        return BLOCK_TOKENS if self.num_token_ids else BLOCK_CHARS

    @property
    def num_whole_blocks(self) -> int:
        """How many blocks prompts of this length have, taken as one."""
        return (self.num_token_ids or self.num_chars) // self.units_in_a_block


def shape_of_texts(texts: list[str]) -> PromptShape:
    """Shape of one or more text prompts."""
    first = texts[0]
    num_blocks = min(len(first) // BLOCK_CHARS, _MAX_BLOCKS)
    cut = (
        first[i * BLOCK_CHARS : (i + 1) * BLOCK_CHARS].encode("utf-8", "surrogatepass")
        for i in range(num_blocks)
    )
    return PromptShape(len(texts), sum(map(len, texts)), 0, _chain(cut))


def shape_of_ids(prompts: list[list[int]]) -> PromptShape:
    """Shape of one or more prompts given as token ids."""
    first = prompts[0]
    num_blocks = min(len(first) // BLOCK_TOKENS, _MAX_BLOCKS)
    cut = (
        repr(first[i * BLOCK_TOKENS : (i + 1) * BLOCK_TOKENS]).encode() for i in range(num_blocks)
    )
    return PromptShape(len(prompts), 0, sum(map(len, prompts)), _chain(cut))


def chat_text(messages: list[Any], tools: Any) -> str:
    """A text that grows as the rendered chat does: tools, then each message in turn.

    Not what the engine's template makes of it, but two chats share a prefix of this text
    where they share one of the rendered prompt.
    """
    parts = [msgspec.json.encode(tools).decode()] if tools else []
    for message in messages:
        if not isinstance(message, dict):
            parts.append(str(message))
            continue
        content = message.get("content")
        text = content if isinstance(content, str) else msgspec.json.encode(content).decode()
        parts.append(f"{message.get('role', '')}\n{text}\n")
    return "".join(parts)


def _chain(blocks: Iterable[bytes]) -> tuple[int, ...]:
    """64-bit hashes, each over its block and the hash before."""
    chained: list[int] = []
    previous: int | None = None
    for block in blocks:
        previous = _link(previous, block)
        chained.append(previous)
    return tuple(chained)


def chained_ids(previous: int | None, block: Sequence[int]) -> int:
    """The hash of a block of `BLOCK_TOKENS` ids behind the one with that hash; None: the first."""
    return _link(previous, repr(list(block)).encode())


def _link(previous: int | None, block: bytes) -> int:
    key = b"" if previous is None else previous.to_bytes(_HASH_BYTES, "big")
    return int.from_bytes(hashlib.blake2b(block, digest_size=_HASH_BYTES, key=key).digest(), "big")
