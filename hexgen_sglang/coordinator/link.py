"""The coordinator's side of the link: who is connected, who is alive, who is told what.

Runs in the coordinator's event loop over a `CoordinatorEnd`. Knows the connection, identity
and heartbeat of each worker and nothing else of it: what a message means for dispatch is the
`LinkObserver`'s business (the worker directory).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hexgen_sglang.protocol.messages import (
    CoordinatorMessage,
    Features,
    Goodbye,
    Heartbeat,
    Hello,
    HelloWanted,
    Load,
    OrderingSet,
    Rejected,
    RequestFinished,
    StageFinished,
    StepTimes,
    Welcome,
    WorkerMessage,
)
from hexgen_sglang.transport.incidents import IncidentCounter
from hexgen_sglang.transport.interface import CoordinatorEnd, PeerId

log = logging.getLogger(__name__)


class LinkObserver(Protocol):
    """What the coordinator does about link events. Called on the event loop; must not block.

    For one worker: `on_hello` first; then, if it was welcomed, any number of the others until
    `on_goodbye` or `on_lost`; after either nothing but another `on_hello`.
    """

    def on_hello(self, hello: Hello) -> Welcome | Rejected:
        """A worker registers, or registers again after a broken connection.

        Must be idempotent for the same `hello.incarnation`. A welcomed worker can be sent to
        at once: what a task created here sends arrives after the `Welcome`. An observer that
        rejects a worker it had welcomed before has thereby forgotten it.
        """
        ...

    def on_restart(self, worker_id: str) -> None:
        """A new process took this id over: what the old one was working on is gone.

        Comes right before the `on_hello` of the new incarnation. Only while the old one is
        registered: after `on_lost` or `on_goodbye` compare `hello.incarnation` yourself.
        """
        ...

    def on_load(self, worker_id: str, load: Load) -> None:
        """The worker's newest load; also its heartbeat."""
        ...

    def on_request_finished(self, worker_id: str, message: RequestFinished) -> None:
        """A request ended in the engine. May be missing: delivery is at most once."""
        ...

    def on_stage_finished(self, worker_id: str, message: StageFinished) -> None:
        """The worker's share of a stage ended."""
        ...

    def on_step_times(self, worker_id: str, message: StepTimes) -> None:
        """What the worker's steps cost, as it measured them."""
        ...

    def on_features(self, worker_id: str, message: Features) -> None:
        """What the worker does beyond the first version of the link."""
        ...

    def on_ordering_set(self, worker_id: str, message: OrderingSet) -> None:
        """What became of a `PolicySettings` that was sent to the worker."""
        ...

    def on_goodbye(self, worker_id: str, reason: str) -> None:
        """The worker shuts down in order."""
        ...

    def on_lost(self, worker_id: str) -> None:
        """Nothing was heard from the worker for several heartbeats.

        The process may still live and serve; it then says hello again, with the same
        incarnation.
        """
        ...


@dataclass(slots=True)
class _Registration:
    """A welcomed worker: its connection and when it was last heard of and sent to."""

    worker_id: str
    incarnation: str
    peer: PeerId
    heartbeat_s: float
    last_heard_s: float
    last_beat_s: float


class CoordinatorLink:
    """Serve the workers of one `CoordinatorEnd`.

    Use `run()` as one task for the life of the coordinator; cancel it, then close the end.

    Args:
        end: where messages come from and go to; stays the caller's to close.
        observer: told of every event.
        clock: monotonic seconds.
        missed_heartbeats: heartbeats without a sign of life after which a worker is lost, >= 2.
        tick_s: seconds between looks at the heartbeats, > 0.

    Attributes:
        num_observer_errors: exceptions raised by the observer (logged; a defect each).
    """

    def __init__(
        self,
        end: CoordinatorEnd,
        observer: LinkObserver,
        *,
        clock: Callable[[], float] = time.monotonic,
        missed_heartbeats: int = 5,
        tick_s: float = 0.1,
    ) -> None:
        self._end = end
        self._observer = observer
        self._clock = clock
        self._missed_heartbeats = missed_heartbeats
        self._tick_s = tick_s
        self._last_tick_s: float | None = None
        self._by_worker: dict[str, _Registration] = {}
        self._by_peer: dict[PeerId, _Registration] = {}
        self._rejections = IncidentCounter(log, "rejected a hello", clock)
        self.num_observer_errors = 0

    @property
    def worker_ids(self) -> tuple[str, ...]:
        """Ids of the workers registered now, in order of registration."""
        return tuple(self._by_worker)

    async def run(self) -> None:
        """Receive and keep heartbeats until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._receive_forever())
            tasks.create_task(self._tick_forever())

    async def send_to(self, worker_id: str, message: CoordinatorMessage) -> bool:
        """Hand a message over for one worker, without blocking.

        Returns:
            False when the worker is not registered, or its connection is gone or full.

        Raises:
            ProtocolError: the message itself is out of range.
        """
        registration = self._by_worker.get(worker_id)
        if registration is None:
            return False
        return await self._end.send(registration.peer, message)

    async def broadcast(self, message: CoordinatorMessage) -> int:
        """Send to every registered worker; returns to how many it was handed over."""
        sent = [await self.send_to(worker_id, message) for worker_id in self.worker_ids]
        return sum(sent)

    async def handle(self, peer: PeerId, message: WorkerMessage) -> None:
        """Act on one received message. `run` calls it; public for tests with a manual clock."""
        if isinstance(message, Hello):
            await self._handle_hello(peer, message)
            return
        registration = self._by_peer.get(peer)
        if registration is None:
            if not isinstance(message, Goodbye):
                await self._end.send(peer, HelloWanted())
            return
        registration.last_heard_s = self._clock()
        worker_id = registration.worker_id
        match message:
            case Load():
                self._observer.on_load(worker_id, message)
            case RequestFinished():
                self._observer.on_request_finished(worker_id, message)
            case StageFinished():
                self._observer.on_stage_finished(worker_id, message)
            case StepTimes():
                self._observer.on_step_times(worker_id, message)
            case Features():
                self._observer.on_features(worker_id, message)
            case OrderingSet():
                self._observer.on_ordering_set(worker_id, message)
            case Goodbye():
                self._forget(registration)
                self._observer.on_goodbye(worker_id, message.reason)

    async def tick(self) -> None:
        """Send due heartbeats and drop silent workers. `run` calls it every `tick_s`.

        Time in which this process itself stood still (stopped, or its loop blocked) is not
        held against the workers: their messages are still waiting to be read.
        """
        now_s = self._clock()
        stalled_s = 0.0 if self._last_tick_s is None else now_s - self._last_tick_s - self._tick_s
        self._last_tick_s = now_s
        for registration in list(self._by_worker.values()):
            if stalled_s > self._tick_s:
                registration.last_heard_s = min(now_s, registration.last_heard_s + stalled_s)
            patience_s = self._missed_heartbeats * registration.heartbeat_s
            if now_s - registration.last_heard_s > patience_s:
                log.warning(
                    "worker %s: nothing heard for %.1f s", registration.worker_id, patience_s
                )
                self._forget(registration)
                self._observer.on_lost(registration.worker_id)
            elif now_s - registration.last_beat_s >= registration.heartbeat_s:
                registration.last_beat_s = now_s
                await self._end.send(registration.peer, Heartbeat())

    async def _receive_forever(self) -> None:
        while True:
            peer, message = await self._end.receive()
            try:
                await self.handle(peer, message)
            except Exception:
                # One bad event must not end the service of all workers.
                self.num_observer_errors += 1
                log.exception("link: handling a %s failed; going on", type(message).__name__)

    async def _tick_forever(self) -> None:
        while True:
            try:
                await self.tick()
            except Exception:
                self.num_observer_errors += 1
                log.exception("link: a tick failed; going on")
            await asyncio.sleep(self._tick_s)

    async def _handle_hello(self, peer: PeerId, hello: Hello) -> None:
        known = self._by_worker.get(hello.worker_id)
        if known is not None and known.incarnation != hello.incarnation:
            if await self._is_connected(known):
                answer = _id_in_use(hello)
                self._rejections.add(hello.worker_id, answer.reason)
                await self._end.send(peer, answer)
                return
            log.info("worker %s restarted", hello.worker_id)
            self._forget(known)
            self._observer.on_restart(hello.worker_id)
        verdict = self._observer.on_hello(hello)
        if isinstance(verdict, Welcome):
            self._register(peer, hello, verdict)
        else:
            self._rejections.add(hello.worker_id, verdict.reason)
            if known is not None:
                self._forget(known)
        await self._end.send(peer, verdict)

    async def _is_connected(self, registration: _Registration) -> bool:
        """True while the registered process still holds its connection (probed by sending)."""
        return await self._end.send(registration.peer, Heartbeat())

    def _register(self, peer: PeerId, hello: Hello, welcome: Welcome) -> None:
        known = self._by_worker.get(hello.worker_id)
        if known is not None:
            self._forget(known)
        renamed = self._by_peer.get(peer)
        if renamed is not None:
            self._forget(renamed)
            self._observer.on_lost(renamed.worker_id)
        now_s = self._clock()
        registration = _Registration(
            worker_id=hello.worker_id,
            incarnation=hello.incarnation,
            peer=peer,
            heartbeat_s=welcome.heartbeat_ms / 1000,
            last_heard_s=now_s,
            last_beat_s=now_s,
        )
        self._by_worker[hello.worker_id] = registration
        self._by_peer[peer] = registration

    def _forget(self, registration: _Registration) -> None:
        if self._by_worker.get(registration.worker_id) is registration:
            del self._by_worker[registration.worker_id]
        if self._by_peer.get(registration.peer) is registration:
            del self._by_peer[registration.peer]


def _id_in_use(hello: Hello) -> Rejected:
    """The answer to a second live process that claims a registered worker id."""
    return Rejected(
        reason=f"worker_id={hello.worker_id!r} is in use by another live worker process; "
        "give each worker its own --hexgen-worker-id"
    )
