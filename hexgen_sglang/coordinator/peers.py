"""The other coordinators beside this one: which of them live, and whose a workflow is.

Every workflow belongs to one coordinator: of those that live, the one with the highest hash of
its own id and the workflow's (rendezvous hashing), so that one that dies or comes back moves its
own workflows and no others. One that took over a workflow keeps it until it ends, and says so.
Coordinators tell each other, several times a second over HTTP, what they hold in this sense, what
they have in flight at each worker, and what tenants used and attained there. Nothing of it is on
disk; what a taken-over workflow is judged by travels in its tag.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Annotated

from msgspec import Meta, Struct

from hexgen_sglang.coordinator import limits, tenant_shares
from hexgen_sglang.coordinator.config import PeerConfig
from hexgen_sglang.coordinator.http_errors import ApiError
from hexgen_sglang.coordinator.limits import Limiter, Used
from hexgen_sglang.coordinator.peer_client import PeerClient, PeerLost
from hexgen_sglang.coordinator.tenant_shares import TenantShares
from hexgen_sglang.coordinator.worker import Elsewhere, Worker
from hexgen_sglang.coordinator.workers import WorkerDirectory
from hexgen_sglang.coordinator.workflows import WorkflowTracker
from hexgen_sglang.protocol.tag import Name

log = logging.getLogger(__name__)

_MAX_HELD = 4_096
_MAX_WORKERS = 4_096
# Intervals without an answer after which a peer counts as dead; a refused connection is enough.
_MISSED_INTERVALS = 4
_SHORTEST_PATIENCE_S = 1.0

Count = Annotated[int, Meta(ge=0, le=2**40)]
TenantKey = Annotated[str, Meta(max_length=64)]
Attained = Annotated[float, Meta(ge=0, le=2.0**53)]


class Beat(Struct, frozen=True):
    """What a coordinator tells the others, and is told back.

    During an upgrade one of them is newer: what the other does not know yet is left out, and
    what a newer one is not told has a default.

    Attributes:
        coordinator_id: who tells.
        is_draining: it takes no new requests.
        holds: workflows in progress there that would be another's if all lived.
        in_flight: by worker: requests, and their prompt and expected output tokens.
        run, number: names the coordinator's process, and which of its beats this is.
        used: by tenant: what its limits count there (see `limits`).
        attained: by tenant: what is left of the service it was given there (see `tenant_shares`).
    """

    coordinator_id: Name
    is_draining: bool = False
    holds: Annotated[
        tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=_MAX_HELD)
    ] = ()
    in_flight: Annotated[dict[str, tuple[Count, Count, Count]], Meta(max_length=_MAX_WORKERS)] = {}
    run: Annotated[str, Meta(max_length=64)] = ""
    number: Count = 0
    used: Annotated[dict[TenantKey, Used], Meta(max_length=limits.MOST_TOLD)] = {}
    attained: Annotated[dict[TenantKey, Attained], Meta(max_length=tenant_shares.MOST_TOLD)] = {}


class Peer:
    """Another coordinator, as this one sees it.

    Attributes:
        coordinator_id, url: who and where.
        is_alive: it answered lately.
        is_draining: it takes no new requests.
        holds: what it said that it holds.
        heard_last: run and number of the last beat that was heard.
        lost: set when it dies; a new one when it is back.
    """

    def __init__(self, row: PeerConfig) -> None:
        self.coordinator_id = row.coordinator_id
        self.url = row.url.rstrip("/")
        self.is_alive = False
        self.is_draining = False
        self.holds: frozenset[str] = frozenset()
        self.heard_last = "", 0
        self.lost = asyncio.Event()
        self.answered_s = float("-inf")

    @property
    def takes_requests(self) -> bool:
        """Whether it can be given a workflow's request."""
        return self.is_alive and not self.is_draining


class Peers:
    """The coordinators of one cluster, seen from one of them. Make it on the event loop.

    Args:
        own_id: of this coordinator.
        rows: the others.
        tracker: of workflows here.
        directory: of workers here.
        client: towards the others.
        limiter: of tenants here.
        shares: of tenants here; None: they share nothing.
        interval_s: between two exchanges.
        is_draining: whether this coordinator refuses new requests.
        on_change: told when room at a worker may have changed.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        own_id: str,
        rows: Sequence[PeerConfig],
        tracker: WorkflowTracker,
        directory: WorkerDirectory,
        client: PeerClient,
        *,
        limiter: Limiter,
        shares: TenantShares | None,
        interval_s: float,
        is_draining: Callable[[], bool],
        on_change: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.own_id = own_id
        self.client = client
        self.peers = [Peer(row) for row in rows]
        self._by_id = {peer.coordinator_id: peer for peer in self.peers}
        self._tracker = tracker
        self._directory = directory
        self._limiter = limiter
        self._shares = shares
        self._run = secrets.token_hex(8)
        self._number = 0
        self._interval_s = interval_s
        self._patience_s = max(_SHORTEST_PATIENCE_S, _MISSED_INTERVALS * interval_s)
        self._is_draining = is_draining
        self._on_change = on_change
        self._clock = clock
        self._adopted: set[str] = set()

    def owner(self, workflow_id: str) -> Peer | None:
        """The peer that a request of the workflow is for; None: this coordinator."""
        live = [peer for peer in self.peers if peer.takes_requests]
        for peer in live:
            # Where both took it over, while neither saw the other, the first by name has it.
            is_ours = workflow_id in self._adopted and self.own_id < peer.coordinator_id
            if workflow_id in peer.holds and not is_ours:
                return peer
        if not self._is_draining() and self._holds(workflow_id):
            return None
        ids = [peer.coordinator_id for peer in live]
        if not self._is_draining() or not ids:
            ids.append(self.own_id)
        return self._by_id.get(first_of(ids, workflow_id))

    def note_served(self, workflow_id: str) -> None:
        """A request of the workflow is served here, whoever's it would be."""
        if first_of([self.own_id, *self._by_id], workflow_id) != self.own_id:
            self._adopted.add(workflow_id)

    def beat(self) -> Beat:
        """What the others are told now."""
        self._adopted = {one for one in self._adopted if self._holds(one)}
        self._number += 1
        return Beat(
            coordinator_id=self.own_id,
            is_draining=self._is_draining(),
            holds=tuple(sorted(self._adopted)[:_MAX_HELD]),
            in_flight={
                worker.worker_id: _counts(worker)
                for worker in self._directory.workers.values()
                if worker.in_flight
            },
            run=self._run,
            number=self._number,
            used=self._limiter.used(),
            attained={} if self._shares is None else self._shares.told(),
        )

    def heard(self, beat: Beat) -> Beat:
        """A peer told us; returns what it is told back.

        Raises:
            ApiError: 404, it is no peer of ours.
        """
        peer = self._by_id.get(beat.coordinator_id)
        if peer is None:
            raise ApiError(
                404,
                f"coordinator_id={beat.coordinator_id!r}: must be one of "
                f"{', '.join(sorted(self._by_id))}",
                param="coordinator_id",
            )
        self._take(peer, beat)
        return self.beat()

    def lose(self, peer: Peer, why: str) -> None:
        """The peer does not answer: its workflows are whoever's they are now."""
        if peer.is_alive:
            log.warning("coordinator %s: lost: %s", peer.coordinator_id, why)
            peer.is_alive = False
            peer.holds = frozenset()
            peer.lost.set()
            self._limiter.forget_elsewhere(peer.coordinator_id)
            self._count_elsewhere(peer, {})

    async def exchange(self) -> None:
        """Tell every peer once, and take what it tells."""
        await asyncio.gather(*(self._exchange(peer) for peer in self.peers))

    async def run(self) -> None:
        """Exchange until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.exchange()
            except Exception:
                # One bad exchange must not end the watch over the others.
                log.exception("peers: an exchange failed; going on")

    async def _exchange(self, peer: Peer) -> None:
        try:
            told = await self.client.beat(peer.url, self.beat(), self._patience_s, Beat)
        except PeerLost as error:
            if error.is_refused or self._clock() - peer.answered_s > self._patience_s:
                self.lose(peer, str(error))
            return
        if told.coordinator_id != peer.coordinator_id:
            self.lose(peer, f"it calls itself {told.coordinator_id!r}")
            return
        peer.answered_s = self._clock()
        if not peer.is_alive:
            log.info("coordinator %s: there", peer.coordinator_id)
            peer.is_alive = True
            peer.lost = asyncio.Event()
        self._take(peer, told)

    def _take(self, peer: Peer, beat: Beat) -> None:
        run, number = peer.heard_last
        if beat.run != run:
            self._limiter.forget_elsewhere(peer.coordinator_id)
        elif beat.number < number:
            return  # a later one was faster
        peer.heard_last = beat.run, beat.number
        peer.is_draining = beat.is_draining
        peer.holds = frozenset(beat.holds)
        self._limiter.note_elsewhere(peer.coordinator_id, beat.used)
        if self._shares is not None:
            self._shares.note_elsewhere(peer.coordinator_id, beat.attained)
        self._count_elsewhere(peer, beat.in_flight)

    def _count_elsewhere(self, peer: Peer, counts: dict[str, tuple[int, int, int]]) -> None:
        """Have our workers know what the peer has in flight there."""
        now_s = self._clock()
        for worker in self._directory.workers.values():
            told = counts.get(worker.worker_id)
            seen = None if told is None or not told[0] else Elsewhere.of(*told, now_s)
            worker.note_elsewhere(peer.coordinator_id, seen)
        self._on_change()

    def _holds(self, workflow_id: str) -> bool:
        workflow = self._tracker.get(workflow_id)
        return workflow is not None and workflow.ended_s is None


def first_of(coordinator_ids: Sequence[str], workflow_id: str) -> str:
    """Which of these coordinators a workflow belongs to."""
    return max(coordinator_ids, key=lambda one: (_weight(one, workflow_id), one))


def _weight(coordinator_id: str, workflow_id: str) -> bytes:
    return blake2b(f"{coordinator_id}\n{workflow_id}".encode(), digest_size=8).digest()


def _counts(worker: Worker) -> tuple[int, int, int]:
    seen = worker.seen.values()
    return (
        len(seen),
        sum(one.num_prompt_tokens for one in seen),
        sum(one.expected_output_tokens for one in seen),
    )
