"""The page's routes: its files for everybody, what it shows for callers with a key.

Whoever looks asks once a second. However many do, what they are told is made at most once a
second for each tenant, and the same bytes go to all of it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from hexgen_sglang.coordinator import reports
from hexgen_sglang.coordinator.access import Caller
from hexgen_sglang.coordinator.api_keys import Role
from hexgen_sglang.coordinator.service import Coordinator
from hexgen_sglang.core.errors import HexgenError
from hexgen_sglang.dashboard_page.history import History
from hexgen_sglang.dashboard_page.snapshot import snapshot
from hexgen_sglang.pages.serving import HEADERS, PageFiles, admit, refused

_LOOK_S = 1.0
# Younger than this, a snapshot is told again.
_FRESH_S = 0.9
_MAX_KEPT = 64


@asynccontextmanager
async def dashboard_page(coordinator: Coordinator) -> AsyncIterator[Sequence[BaseRoute]]:
    """The routes of the page, if the configuration asks for it; it remembers from now on."""
    if not coordinator.config.dashboard:
        yield ()
        return
    history = History(coordinator.parts.clock)
    coordinator.listeners.append(history.workflow_ended)
    looking = asyncio.create_task(_look(coordinator, history))
    try:
        yield _routes(Snapshots(coordinator, history))
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        coordinator.listeners.remove(history.workflow_ended)


class Snapshots:
    """What callers are told, made at most once a second for each kind of caller."""

    def __init__(self, coordinator: Coordinator, history: History) -> None:
        self.coordinator = coordinator
        self._history = history
        self._kept: OrderedDict[tuple[str | None, bool], tuple[float, bytes]] = OrderedDict()

    def told_to(self, caller: Caller) -> bytes:
        """The newest snapshot for this caller, encoded."""
        key = (caller.tenant, Role.OPERATOR in caller.roles)
        now_s = self.coordinator.parts.clock()
        made_s, body = self._kept.get(key, (-_FRESH_S, b""))
        if now_s - made_s >= _FRESH_S or not body:
            body = reports.as_json(snapshot(self.coordinator, self._history, caller))
            self._kept[key] = (now_s, body)
            self._kept.move_to_end(key)
            while len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
        return body


def _routes(snapshots: Snapshots) -> Sequence[BaseRoute]:
    coordinator = snapshots.coordinator

    async def state(request: Request) -> Response:
        try:
            caller = admit(coordinator, request.headers, tuple(Role))
        except HexgenError as error:
            return refused(coordinator, error)
        return Response(snapshots.told_to(caller), 200, HEADERS, "application/json")

    files = PageFiles("hexgen_sglang.dashboard_page")
    return [
        Route("/dashboard", files.page),
        Route("/dashboard/assets/{name}", files.asset),
        Route("/dashboard/state", state),
        Route("/dashboard/workflows/{workflow_id:path}", files.page),
    ]


async def _look(coordinator: Coordinator, history: History) -> None:
    """Once a second, as long as the coordinator runs."""
    parts = coordinator.parts
    while True:
        history.look(parts.directory.workers.values(), len(parts.queue))
        await asyncio.sleep(_LOOK_S)
