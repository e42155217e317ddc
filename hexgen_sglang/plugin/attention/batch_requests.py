"""Which requests the next forward pass computes, and which of them hold the same KV: host only.

On a GPU the KV slots of a request are known on the device alone, and to read them back would
hold up the scheduler. But its own records say enough: of every request, the first
`cache_protected_len` slots are the prefix cache's, and the cache holds one slot for a token
behind the same tokens of the same namespace (`extra_key`, `cache_salt`). As long as a request
runs, its path in the cache is locked. So where two running requests begin with the same tokens
of one namespace, they hold the same slots, as far as both are protected.

How this stays with the batch that it belongs to: SGLang's scheduler thread makes a ForwardBatch
of its batch, and prepares and launches the forward pass, without running anything else between,
also with the overlap schedule, which only processes the results later. `note` is called at the
making, and `noted` answers in the preparation only for that very batch. Without a graph SGLang
computes a copy of it over buffers of its own, which still has the batch's list of request ids; a
graph's view of it has its array of new slots, `out_cache_loc`. Both are made anew for every pass
and held here until the next, so that no other batch can be taken for this one. The device reads
the KV table as it was when the batch was launched: its stream waits for what was written before,
and SGLang keeps later writes waiting.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np

from hexgen_kernels.shared_prefix_decode.forest import Int32


class _Noted(NamedTuple):
    rids: Any
    out_cache_loc: Any
    requests: tuple[Any, ...]


_last: _Noted | None = None


def note(batch: Any, forward_batch: Any) -> None:
    """Remember whose rows SGLang's `forward_batch` has; replaces what was remembered."""
    global _last
    _last = _Noted(forward_batch.rids, forward_batch.out_cache_loc, tuple(batch.reqs))


def noted(forward_batch: Any) -> tuple[Any, ...] | None:
    """SGLang's requests by row, if `forward_batch` is the last noted, a copy or a graph's view.

    Rows that pad it, behind the others, have none. None: it is another batch.
    """
    if _last is None:
        return None
    same_ids = _last.rids is not None and getattr(forward_batch, "rids", None) is _last.rids
    slots = _last.out_cache_loc
    if same_ids or (slots is not None and forward_batch.out_cache_loc is slots):
        return _last.requests
    return None


class Name(NamedTuple):
    """A request for the group finder: another one whenever what it shares may have changed."""

    serial: int
    protected_tokens: int
    retractions: int


class RequestPrefixes:
    """What the running requests hold in the prefix cache, as entries for `PrefixTree`.

    One object for each attention backend; holds requests weakly.
    """

    def __init__(self) -> None:
        self._serials: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._next_serial = itertools.count()
        # A namespace lives as long as a request that is in it.
        self._spaces: WeakValueDictionary[Hashable, _Namespace] = WeakValueDictionary()
        self._space_of: WeakKeyDictionary[Any, _Namespace] = WeakKeyDictionary()
        self._next_first = itertools.count(1)

    def names(self, requests: Sequence[Any]) -> list[Name]:
        """One name for each request, in order."""
        return [
            Name(self._serial(request), _protected_tokens(request), request.retraction_count)
            for request in requests
        ]

    def entries(self, request: Any) -> Int32:
        """What the cache holds of the request's tokens; empty: nothing that others may share.

        Equal beginnings of two requests are equal slots. Token ids, but for the first entry of
        a request in a namespace, which stands for token and namespace.
        """
        if request.session is not None or request.positional_embed_overrides is not None:
            return np.empty(0, dtype=np.int32)
        count = _protected_tokens(request)
        tokens = np.array(request.origin_input_ids[:count], dtype=np.int64)
        if len(tokens) < count:
            more = np.array(request.output_ids[: count - len(tokens)], dtype=np.int64)
            tokens = np.concatenate((tokens, more))
        entries = tokens.astype(np.int32)
        if (entries != tokens).any():  # an image's stand-in may be any number
            return np.empty(0, dtype=np.int32)
        space = self._namespace(request)
        if space is not None and count:
            entries[0] = space.first_entry(int(entries[0]), self._next_first)
        return entries

    def _serial(self, request: Any) -> int:
        serial = self._serials.get(request)
        if serial is None:
            serial = self._serials[request] = next(self._next_serial)
        return serial

    def _namespace(self, request: Any) -> _Namespace | None:
        key = (request.extra_key, getattr(request, "cache_salt", None))
        if key == (None, None):
            return None
        space = self._spaces.get(key)
        if space is None:
            space = self._spaces[key] = _Namespace()
        self._space_of[request] = space
        return space


class _Namespace:
    """Numbers below 0 for the first tokens of one namespace."""

    def __init__(self) -> None:
        self._entries: dict[int, int] = {}

    def first_entry(self, token: int, numbers: itertools.count[int]) -> int:
        if token not in self._entries:
            self._entries[token] = -next(numbers)
        return self._entries[token]


def _protected_tokens(request: Any) -> int:
    """Tokens whose slots belong to the prefix cache; SGLang 0.5.17 has it at the request."""
    protected = getattr(request, "cache_protected_len", None)
    return int(request.kv.cache_protected_len if protected is None else protected)
