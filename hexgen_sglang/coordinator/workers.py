"""The worker directory: who is registered, by whom, in which state, and who may be.

Workers come from the configuration, from POST /workers and from the link (`link_events`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Callable, Sequence

from hexgen_sglang.coordinator.config import LOOPBACK_HOSTS, WorkerConfig, check_worker_url
from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.health import HealthWatch
from hexgen_sglang.coordinator.http_errors import ApiError
from hexgen_sglang.coordinator.live_request import AttemptFailed
from hexgen_sglang.coordinator.metrics import Metrics
from hexgen_sglang.coordinator.prompt import BLOCK_TOKENS
from hexgen_sglang.coordinator.worker import Worker
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.core.worker import WorkerState

log = logging.getLogger(__name__)

_MAX_BANNED = 4_096


class WorkerDirectory:
    """Registered workers by id.

    Args:
        allowed_hosts: that a worker's URL may name, beside loopback.
        max_workers: registered at most.
        on_change: told whenever a worker may have become able to take requests.
        has_stated_hosts: the operator stated a list, which binds authenticated workers, too.

    Attributes:
        workers: by id, in order of registration.
        banned: removed linked workers and the process that was removed, by id; that process
            is not let in again by its own hello.
        on_drain: told of each worker that begins to drain.
        on_ready: told of each worker that begins to take requests, at first or after it was away.
    """

    def __init__(
        self,
        estimates: Estimates,
        metrics: Metrics,
        allowed_hosts: set[str],
        max_workers: int,
        on_change: Callable[[], None],
        *,
        has_stated_hosts: bool = False,
    ) -> None:
        self.workers: dict[str, Worker] = {}
        self.banned: dict[str, str] = {}
        self._estimates = estimates
        self._metrics = metrics
        self._allowed_hosts = allowed_hosts | set(LOOPBACK_HOSTS)
        self._has_stated_hosts = has_stated_hosts
        self._max_workers = max_workers
        self._on_change = on_change
        self.on_drain: Callable[[Worker], None] = _ignore
        self.on_ready: Callable[[Worker], None] = _ignore
        self._health: HealthWatch | None = None

    def watch_with(self, health: HealthWatch) -> None:
        """Probe workers with this; call once, before the first worker is added."""
        self._health = health

    def keeps_prefixes(self, worker_id: str) -> bool:
        """Whether the worker keeps prefixes of workflows that it is told of."""
        worker = self.workers.get(worker_id)
        return worker is not None and worker.keeps_prefixes

    def prewarms(self, worker_id: str) -> bool:
        """Whether the worker computes prefixes ahead when it is told of them."""
        worker = self.workers.get(worker_id)
        return worker is not None and worker.prewarms

    def exact_match(self, worker_id: str, blocks: Sequence[int]) -> int | None:
        """Leading blocks of token ids in the worker's prefix cache; None when it does not tell."""
        worker = self.workers.get(worker_id)
        if worker is None or worker.kv_index is None or not worker.kv_index.is_whole:
            return None
        return worker.kv_index.num_matched(blocks, time.monotonic())

    def ready(self) -> list[Worker]:
        """Workers that take requests now."""
        return [w for w in self.workers.values() if w.state is WorkerState.READY]

    def models(self) -> dict[str, dict[str, object]]:
        """Every model that a registered worker serves or served, and its card."""
        cards: dict[str, dict[str, object]] = {}
        for worker in self.workers.values():
            cards.update(worker.model_cards)
        return cards

    def by_url(self, url: str) -> Worker | None:
        """The worker registered with this URL."""
        return next((w for w in self.workers.values() if w.url == url), None)

    def may_register(self, url: str) -> bool:
        """Whether the URL's host is loopback or on the allow list, as it stands there.

        Other spellings of an address (decimal, hexadecimal, short, IPv6-mapped) are other
        hosts; no name is looked up.
        """
        host = Worker("", url, "").host
        return host in self._allowed_hosts

    def may_link(self, url: str) -> bool:
        """Whether a worker that proved its key may name this URL.

        Any host that is not on a stated list of hosts is refused; without such a list those
        where no worker of ours can be.
        """
        if self.may_register(url):
            return True
        return not self._has_stated_hosts and not _is_out_of_bounds(Worker("", url, "").host)

    def add(self, config: WorkerConfig, origin: str) -> Worker:
        """Register a worker by URL; it takes requests after its first successful probe.

        Adding a drained worker again lets it take requests again.

        Raises:
            ApiError: 409 when id or URL belong to another worker, 403 when the host is not
                allowed, 429 when there are too many.
            ConfigError: the URL is malformed.
        """
        url = check_worker_url(config.url)
        known = self.by_url(url)
        if known is not None and config.worker_id in (None, known.worker_id):
            self.undrain(known)
            return known
        worker_id = config.worker_id or url.partition("://")[2]
        if known is not None or worker_id in self.workers:
            other = known or self.workers[worker_id]
            raise ApiError(
                409,
                f"url={url!r}, worker_id={worker_id!r}: worker {other.worker_id!r} is at "
                f"{other.url}; both must be new",
                code="worker_exists",
            )
        if not self.may_register(url):
            allowed = ", ".join(sorted(self._allowed_hosts))
            raise ApiError(
                403, f"url={url!r}: host must be one of {allowed}", code="host_not_allowed"
            )
        worker = Worker(
            worker_id,
            url,
            origin,
            names_itself=config.worker_id is None,
            hardware=config.hardware,
            max_in_flight=config.max_in_flight,
        )
        self._estimates.rates.state(
            worker_id, config.prefill_tokens_per_s, config.decode_tokens_per_s
        )
        self.insert(worker)
        return worker

    def insert(self, worker: Worker) -> None:
        """Take in a new worker and begin to probe it.

        Raises:
            ApiError: 429 when there are too many.
        """
        if len(self.workers) >= self._max_workers:
            raise ApiError(
                429,
                f"{len(self.workers)} workers are registered: at most {self._max_workers} may",
                kind="rate_limit_error",
                code="too_many_workers",
                retry_after_s=60.0,
            )
        self.banned.pop(worker.worker_id, None)
        self.workers[worker.worker_id] = worker
        log.info("worker %s: registered by %s at %s", worker.worker_id, worker.origin, worker.url)
        if self._health is not None:
            self._health.start(worker)

    def rename(self, worker: Worker, worker_id: str) -> None:
        """Give a worker that was named after its URL the id it has itself."""
        del self.workers[worker.worker_id]
        self._metrics.drop_worker(worker.worker_id)
        self._estimates.rename_worker(worker.worker_id, worker_id)
        worker.worker_id = worker_id
        worker.names_itself = False
        self.workers[worker_id] = worker

    def get(self, worker_id: str) -> Worker:
        """The worker with this id.

        Raises:
            ApiError: 404, listing those there are.
        """
        worker = self.workers.get(worker_id)
        if worker is None:
            known = ", ".join(self.workers) or "none"
            raise ApiError(
                404,
                f"worker_id={worker_id!r}: not registered; workers: {known}",
                code="worker_not_found",
                param="worker_id",
            )
        return worker

    def drain(self, worker_id: str) -> Worker:
        """Send nothing new there; what has begun ends as usual, what waits there comes back.

        Raises:
            ApiError: 404.
        """
        worker = self.get(worker_id)
        worker.drained = True
        if worker.state is WorkerState.READY:
            worker.state = WorkerState.DRAINING
        self.on_drain(worker)
        self._changed(worker)
        return worker

    def undrain(self, worker: Worker) -> None:
        """Let a drained worker take requests again."""
        worker.drained = False
        if worker.state is WorkerState.DRAINING:
            worker.state = WorkerState.READY
        self._changed(worker)

    def remove(self, worker_id: str) -> Worker:
        """Forget a worker; what is in flight there still ends as usual.

        Raises:
            ApiError: 404.
        """
        worker = self.get(worker_id)
        del self.workers[worker_id]
        if worker.incarnation:
            self.banned[worker_id] = worker.incarnation
            while len(self.banned) > _MAX_BANNED:
                del self.banned[next(iter(self.banned))]
        if self._health is not None:
            self._health.stop(worker)
        self._metrics.drop_worker(worker_id)
        self._estimates.forget_worker(worker_id)
        log.info("worker %s: removed", worker_id)
        self._on_change()
        return worker

    def wake(self, worker: Worker) -> None:
        """Probe the worker now."""
        if self._health is not None:
            self._health.wake(worker)

    def on_attempt_failed(self, worker: Worker, failure: AttemptFailed, rid: str) -> None:
        """A request failed there: look at the worker at once, and avoid it until then.

        Too many in a row, and it is avoided for longer, even if it looks well.
        """
        if failure.reason != "lost":
            self._count_failure(worker, rid)
        if failure.reason in ("connect", "disconnect") and worker.state is WorkerState.READY:
            worker.state = WorkerState.UNREACHABLE
            worker.last_error = str(failure)
        elif failure.reason == "timeout":
            worker.needs_full_check = True
        self._changed(worker)
        self.wake(worker)

    def _count_failure(self, worker: Worker, rid: str) -> None:
        """Enter a failed request into the worker's breaker; look again when it lets one through."""
        open_s = worker.breaker.failed(rid, time.monotonic())
        if open_s is not None:
            log.warning("worker %s: gets nothing for %.1f s", worker.worker_id, open_s)
            # A little later than that, so that it is surely over.
            asyncio.get_running_loop().call_later(open_s + 0.001, self._on_change)

    def on_healthy(self, worker: Worker) -> None:
        """See `HealthObserver`."""
        is_leaving = worker.drained or worker.said_goodbye
        new_state = WorkerState.DRAINING if is_leaving else WorkerState.READY
        if worker.state is not new_state:
            log.info("worker %s: %s -> %s", worker.worker_id, worker.state, new_state)
            if new_state is WorkerState.READY:
                self.on_ready(worker)
        worker.state = new_state
        worker.last_error = ""
        if worker.kv_capacity_tokens:
            self._estimates.prefixes.limit(
                worker.worker_id, worker.kv_capacity_tokens // BLOCK_TOKENS
            )
        self._changed(worker)

    def on_unhealthy(self, worker: Worker, why: str, *, is_hung: bool) -> None:
        """See `HealthObserver`. Requests at a hung worker are taken back."""
        if worker.state not in (WorkerState.STARTING, WorkerState.UNREACHABLE):
            log.warning("worker %s: unreachable: %s", worker.worker_id, why)
            worker.state = WorkerState.UNREACHABLE
        worker.said_goodbye = False
        if is_hung:
            for attempt in list(worker.in_flight.values()):
                attempt.interrupt(f"worker {worker.worker_id} does not answer: {why}")
        self._changed(worker)

    def _changed(self, worker: Worker) -> None:
        if self.workers.get(worker.worker_id) is worker:
            self._metrics.set_worker(worker)
        self._on_change()


def _ignore(worker: Worker) -> None:
    """Nobody is told."""


def _is_out_of_bounds(host: str) -> bool:
    """Link-local (cloud metadata services are there), multicast, unspecified, or disguised.

    Nobody needs to write an IPv4 address as an IPv6 one, or as a number: resolvers take
    2852039166, 0xa9fe.1 and 169.254.43518 for addresses, and no host has such a name.
    """
    try:
        address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(
            host.partition("%")[0]
        )
    except ValueError:
        return host.rstrip(".").rpartition(".")[2][:1].isdigit()
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return True
    return address.is_link_local or address.is_multicast or address.is_unspecified


def allowed_hosts(extra: tuple[str, ...], workers: tuple[WorkerConfig, ...]) -> set[str]:
    """Hosts that may be registered: the stated ones and those of the configured workers.

    Raises:
        ConfigError: a host is empty or holds more than a host.
    """
    hosts = {Worker("", row.url, "").host for row in workers}
    for host in extra:
        if not host or set(host) & set("/@ "):
            raise ConfigError(
                f"allowed_worker_hosts={host!r}: must be a host name or address, no port or URL"
            )
        hosts.add(host.lower().strip("[]"))
    return hosts
