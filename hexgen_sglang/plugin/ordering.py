"""The order of one engine's waiting queue, by an ordering policy of the registry.

Runs on SGLang's scheduler thread, once for each batch. A request's key is computed once and
kept on the `Req` until its workflow is re-prioritised or the policy changes, and a step inserts
what is new into what was in order, so that a deep queue costs little. SGLang is not imported
here.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.plugin.request_view import TagReader, view_of
from hexgen_sglang.policies.ordering import ORDERING, OrderingPolicy, total_order_key

MAX_KEPT_DEADLINES = 4096
_ENTRY = "hexgen_entry"  # attribute that we keep on a `Req`

Key = tuple[float | str, ...]
_KEY = itemgetter(0)


class _Entry:
    """What is kept on a `Req`: how the policy sees it, its key, and what both were made from."""

    __slots__ = ("deadline", "key", "policy", "view")

    def __init__(self, view: RequestView) -> None:
        self.view = view
        self.key: Key = ()
        self.policy: OrderingPolicy | None = None
        self.deadline: _Deadline | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class _Deadline:
    """A workflow's newest deadline, for its requests that came before `changed_s`."""

    deadline_s: float | None
    predicted_remaining_s: float
    changed_s: float


class QueueOrder:
    """Orders a waiting queue in place; one for each scheduler process.

    Not thread-safe: SGLang's scheduler thread owns it.
    """

    def __init__(self, ordering: str, settings: Mapping[str, float]) -> None:
        """Start with the policy `ordering`.

        Raises:
            ConfigError: the registry has no such policy, or it rejects the settings.
        """
        self.tags = TagReader()
        self.ordering = ordering
        self._policy = ORDERING.create(ordering, **settings)
        self._deadlines: OrderedDict[str, _Deadline] = OrderedDict()
        self._in_order: list[Any] = []  # the queue as `sort` left it,
        self._keys: list[Key] = []  # its keys,
        self._workflow_ids: list[str] = []  # and whose requests they are
        self._changed: set[str] = set()  # workflows that were re-prioritised since

    def sort(self, waiting_queue: list[Any]) -> None:
        """Put the request that should be admitted first in front; the order is total.

        What was in order before, less a head that was admitted, is recognised and stays.
        """
        if not self._insert_new(waiting_queue):
            keyed = sorted(zip(map(self._key, waiting_queue), waiting_queue, strict=True), key=_KEY)
            waiting_queue[:] = [req for _, req in keyed]
            self._keys = [key for key, _ in keyed]
            self._workflow_ids = [getattr(req, _ENTRY).view.workflow_id for req in waiting_queue]
        self._changed.clear()
        self._in_order = waiting_queue.copy()

    def _insert_new(self, waiting_queue: list[Any]) -> bool:
        """Order a queue that is the last one less its first requests, plus some at its end.

        False when it is not; then nothing was done. The common case by far: admission takes
        from the head, arrivals are appended.
        """
        last = self._in_order
        try:
            num_gone = last.index(waiting_queue[0])
        except (IndexError, ValueError):
            return False
        num_kept = len(last) - num_gone
        if waiting_queue[:num_kept] != last[num_gone:]:  # by identity, in C
            return False
        del self._keys[:num_gone], self._workflow_ids[:num_gone]
        if self._changed:
            num_kept -= self._move_changed_to_end(waiting_queue)
        new = [(self._key(req), req) for req in waiting_queue[num_kept:]]
        del waiting_queue[num_kept:]
        for key, req in new:
            place = bisect_left(self._keys, key)
            waiting_queue.insert(place, req)
            self._keys.insert(place, key)
            self._workflow_ids.insert(place, getattr(req, _ENTRY).view.workflow_id)
        return True

    def _move_changed_to_end(self, waiting_queue: list[Any]) -> int:
        """Take re-prioritised requests out of the ordered part; returns how many."""
        places = [
            place
            for place, workflow_id in enumerate(self._workflow_ids)
            if workflow_id in self._changed
        ]
        for place in reversed(places):
            waiting_queue.append(waiting_queue.pop(place))
            del self._keys[place], self._workflow_ids[place]
        return len(places)

    def view(self, req: Any) -> RequestView:
        """The request as the policy sees it at present."""
        self._key(req)
        entry: _Entry = getattr(req, _ENTRY)
        return entry.view

    def reprioritise(
        self,
        workflow_id: str,
        deadline_s: float | None,
        predicted_remaining_s: float,
        changed_s: float,
    ) -> None:
        """Give a workflow another deadline and prediction.

        Holds for its requests, waiting or running, that came before `changed_s`; later ones
        bring their own. Remembered for the last 4,096 workflows.
        """
        self._deadlines.pop(workflow_id, None)
        self._deadlines[workflow_id] = _Deadline(deadline_s, predicted_remaining_s, changed_s)
        if len(self._deadlines) > MAX_KEPT_DEADLINES:
            self._deadlines.popitem(last=False)
        self._changed.add(workflow_id)

    def use(self, ordering: str, settings: Mapping[str, float]) -> None:
        """Order by another policy from the next step on.

        Raises:
            ConfigError: unknown policy or bad settings; the present policy stays.
        """
        self._policy = ORDERING.create(ordering, **settings)
        self.ordering = ordering
        self._in_order = []  # no key holds any more

    def _key(self, req: Any) -> Key:
        entry: _Entry | None = getattr(req, _ENTRY, None)
        if entry is None:
            entry = _Entry(view_of(req, self.tags))
            setattr(req, _ENTRY, entry)
        newest = self._deadlines.get(entry.view.workflow_id)
        if entry.policy is not self._policy or entry.deadline is not newest:
            self._make_key(entry, newest)
        return entry.key

    def _make_key(self, entry: _Entry, newest: _Deadline | None) -> None:
        view = entry.view
        if newest is not None and view.arrival_s <= newest.changed_s:
            entry.view = view = dataclasses.replace(
                view,
                deadline_s=newest.deadline_s,
                predicted_remaining_s=newest.predicted_remaining_s,
            )
        # Flat, since tuples of plain floats compare much faster; all keys of one policy have
        # one length, so the order is that of the nested key.
        rank, arrival_s, request_id = total_order_key(self._policy, view)
        entry.key = (*rank, arrival_s, request_id)
        entry.policy = self._policy
        entry.deadline = newest
