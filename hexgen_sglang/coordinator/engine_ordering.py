"""Has every worker's engine order its queue by the same settings, once somebody wants some.

Until then engines are left as they were started. From then on each linked worker is told, and
told again whenever it says hello, since a new process has its start-up settings. What each was
told and answered is kept: a worker without a link, or whose engine orders by another
policy, is never taken to stand where the others do. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from enum import StrEnum
from typing import Any

from hexgen_sglang.coordinator.worker import Worker
from hexgen_sglang.protocol.messages import CoordinatorMessage, OrderingSet, PolicySettings

log = logging.getLogger(__name__)

Send = Callable[[str, CoordinatorMessage], Awaitable[bool]]


class Standing(StrEnum):
    """What is known of one worker's engine."""

    APPLIED = "applied"  # it said so
    SENT = "sent"  # on its way, or its plugin is from before answers
    REFUSED = "refused"  # it said so
    UNREACHED = "unreached"  # the message could not be handed over
    UNLINKED = "unlinked"  # nobody listens: stock SGLang, or the link is lost
    OTHER = "other"  # its engine orders by another policy


class EngineOrdering:
    """The ordering settings that engines should have.

    Args:
        workers: those registered now.
        send: hands a message to a linked worker; False when it could not.

    Attributes:
        wanted: what engines are told; None while they are left as they were started.
    """

    def __init__(self, workers: Callable[[], Collection[Worker]], send: Send) -> None:
        self.wanted: PolicySettings | None = None
        self._workers = workers
        self._send = send
        self._told: dict[str, tuple[Standing, str]] = {}
        self._sending: set[asyncio.Task[None]] = set()

    def use(self, ordering: str, settings: dict[str, float]) -> None:
        """Have all engines that order by this policy use these settings of it from now on."""
        self.wanted = PolicySettings(ordering, dict(settings))
        self._told.clear()
        for worker in self._workers():
            if worker.linked:
                self.welcomed(worker)
        for worker_id, (standing, why) in self.standings().items():
            if standing in (Standing.UNLINKED, Standing.OTHER):
                log.warning("worker %s: keeps its ordering settings: %s", worker_id, why)

    def welcomed(self, worker: Worker) -> None:
        """A worker said hello: it may be a new process."""
        wanted = self.wanted
        if wanted is None or worker.ordering != wanted.ordering:
            return
        self._told[worker.worker_id] = (Standing.SENT, "")
        task = asyncio.get_running_loop().create_task(self._tell(worker.worker_id, wanted))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def answered(self, worker_id: str, answer: OrderingSet) -> None:
        """A worker tells what became of what it was sent; answers to older messages are left."""
        wanted = self.wanted
        if wanted is None or PolicySettings(answer.ordering, answer.settings) != wanted:
            return
        if answer.refusal:
            log.warning("worker %s: refuses ordering settings: %s", worker_id, answer.refusal)
            self._told[worker_id] = (Standing.REFUSED, answer.refusal)
        else:
            self._told[worker_id] = (Standing.APPLIED, "")

    def standings(self) -> dict[str, tuple[Standing, str]]:
        """Every registered worker's, with the reason where it does not stand as wanted."""
        wanted = self.wanted
        found: dict[str, tuple[Standing, str]] = {}
        if wanted is None:
            return found
        for worker in self._workers():
            if not worker.linked:
                found[worker.worker_id] = (Standing.UNLINKED, "no link to its plugin")
            elif worker.ordering != wanted.ordering:
                found[worker.worker_id] = (Standing.OTHER, f"it orders by {worker.ordering!r}")
            else:
                found[worker.worker_id] = self._told.get(worker.worker_id, (Standing.SENT, ""))
        return found

    def counts(self) -> dict[str, int]:
        """Workers by standing; all zero while engines are left as they were started."""
        counted = Counter(standing.value for standing, _ in self.standings().values())
        return {standing.value: counted[standing.value] for standing in Standing}

    def report(self) -> dict[str, Any]:
        """As `GET /tuning` shows it."""
        wanted = self.wanted
        return {
            "ordering": None if wanted is None else wanted.ordering,
            "settings": None if wanted is None else wanted.settings,
            "workers": {
                worker_id: {"standing": standing.value, "why": why or None}
                for worker_id, (standing, why) in self.standings().items()
            },
        }

    async def _tell(self, worker_id: str, message: PolicySettings) -> None:
        if await self._send(worker_id, message):
            return
        log.warning("worker %s: ordering settings did not reach it", worker_id)
        if message is self.wanted:
            self._told[worker_id] = (Standing.UNREACHED, "the message could not be handed over")
