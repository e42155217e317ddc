"""The order of one engine's waiting queue, by an ordering policy of the registry.

Runs on SGLang's scheduler thread, once for each batch. A request's key is computed once and
kept on the `Req` until its workflow is re-prioritised or the policy changes, so that a step
with a deep queue costs one comparison for each request. SGLang is not imported here.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.plugin.request_view import TagReader, view_of
from hexgen_sglang.policies.ordering import ORDERING, total_order_key

logger = logging.getLogger(__name__)

MAX_KEPT_DEADLINES = 4096
_ATTRIBUTE = "hexgen_queue_entry"


class _Entry:
    """What is kept on a `Req`: how the policy sees it, its key, and when both were made."""

    __slots__ = ("key", "revision", "view")

    def __init__(self, view: RequestView) -> None:
        self.view = view
        self.revision = -1
        self.key: tuple[tuple[float, ...], float, str] = ((), 0.0, "")


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
        self._revision = 0

    def sort(self, waiting_queue: list[Any]) -> None:
        """Put the request that should be admitted first in front; the order is total."""
        waiting_queue.sort(key=self._key)

    def view(self, req: Any) -> RequestView:
        """The request as the policy sees it at present."""
        self._key(req)
        view: RequestView = getattr(req, _ATTRIBUTE).view
        return view

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
        self._revision += 1

    def use(self, ordering: str, settings: Mapping[str, float]) -> None:
        """Order by another policy from the next step on.

        Raises:
            ConfigError: unknown policy or bad settings; the present policy stays.
        """
        self._policy = ORDERING.create(ordering, **settings)
        self.ordering = ordering
        self._revision += 1

    def _key(self, req: Any) -> tuple[tuple[float, ...], float, str]:
        entry: _Entry | None = getattr(req, _ATTRIBUTE, None)
        if entry is None:
            entry = _Entry(view_of(req, self.tags))
            setattr(req, _ATTRIBUTE, entry)
        if entry.revision != self._revision:
            self._refresh(entry)
        return entry.key

    def _refresh(self, entry: _Entry) -> None:
        view = entry.view
        newest = self._deadlines.get(view.workflow_id)
        if newest is not None and view.arrival_s <= newest.changed_s:
            entry.view = view = dataclasses.replace(
                view,
                deadline_s=newest.deadline_s,
                predicted_remaining_s=newest.predicted_remaining_s,
            )
        entry.key = total_order_key(self._policy, view)
        entry.revision = self._revision
