"""What the coordinator does about the workers' plugins: the observer of the link.

Runs on the event loop. A worker whose link is lost stays in service over HTTP, without load
reports; whether it lives is for the health probes to say.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from hexgen_sglang.coordinator.config import check_worker_url
from hexgen_sglang.coordinator.engine_ordering import EngineOrdering
from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.http_errors import ApiError
from hexgen_sglang.coordinator.worker import Worker
from hexgen_sglang.coordinator.workers import WorkerDirectory
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.core.worker import StepCosts, WorkerState
from hexgen_sglang.protocol.messages import (
    LINK_VERSION,
    Features,
    Hello,
    Load,
    OrderingSet,
    Rejected,
    RequestFinished,
    StageFinished,
    StepTimes,
    Welcome,
)

log = logging.getLogger(__name__)


class LinkEvents:
    """Implements `LinkObserver` on the worker directory.

    Args:
        is_authenticated: peers proved who they are with keys, so they may name more hosts.
        on_load: told after each load report.
        on_finished: told of each request that a worker says has ended.
        engines: told who is linked, and what workers answer; None: nothing is changed in them.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        directory: WorkerDirectory,
        estimates: Estimates,
        *,
        coordinator_id: str,
        heartbeat_ms: int,
        is_authenticated: bool,
        on_load: Callable[[], None],
        on_finished: Callable[[str, RequestFinished], None] = lambda worker_id, message: None,
        engines: EngineOrdering | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._estimates = estimates
        self._welcome = Welcome(
            link_version=LINK_VERSION, coordinator_id=coordinator_id, heartbeat_ms=heartbeat_ms
        )
        self._is_authenticated = is_authenticated
        self._on_load = on_load
        self._on_finished = on_finished
        self._engines = engines
        self._clock = clock

    def on_hello(self, hello: Hello) -> Welcome | Rejected:
        """Register the worker, or recognise it by id or by URL."""
        try:
            worker = self._find_or_add(hello)
        except (ApiError, ConfigError) as error:
            return Rejected(reason=str(error)[:512])
        if worker.incarnation != hello.incarnation:
            self._begin_incarnation(worker, hello)
        worker.linked = True
        worker.hardware = hello.hardware or worker.hardware
        worker.sglang_version = hello.sglang_version
        worker.ordering = hello.ordering
        worker.max_running_requests = hello.max_running_requests or worker.max_running_requests
        worker.kv_capacity_tokens = hello.kv_capacity_tokens or worker.kv_capacity_tokens
        log.info("worker %s: linked (%s)", worker.worker_id, hello.url)
        self._directory.wake(worker)
        if self._engines is not None:
            self._engines.welcomed(worker)
        return self._welcome

    def on_restart(self, worker_id: str) -> None:
        """A new process took the id over; its `on_hello` follows and does the rest."""
        log.info("worker %s: restarted", worker_id)

    def on_load(self, worker_id: str, load: Load) -> None:
        """Take the report and let the dispatcher look again."""
        worker = self._directory.workers.get(worker_id)
        if worker is not None:
            worker.take_load(load, self._clock())
            self._on_load()

    def on_request_finished(self, worker_id: str, message: RequestFinished) -> None:
        """Learn from the engine's timings, and fill in what HTTP did not tell."""
        record = self._estimates.note_reported(message, worker_id, self._clock())
        if record is not None:
            if record.cached_tokens is None:
                record.cached_tokens = message.cached_tokens
            if record.prompt_tokens is None:
                record.prompt_tokens = message.prompt_tokens
                record.output_tokens = message.output_tokens
        self._on_finished(worker_id, message)

    def on_stage_finished(self, worker_id: str, message: StageFinished) -> None:
        """Nothing to do: stages are tracked by the requests that end here."""

    def on_step_times(self, worker_id: str, message: StepTimes) -> None:
        """Believe the worker's own measurement of its steps; the message bounds it."""
        self._estimates.costs.note(
            worker_id,
            StepCosts(
                message.prefill_base_s,
                message.prefill_token_s,
                message.prefill_context_s,
                message.decode_base_s,
                message.decode_request_s,
                message.decode_context_s,
                message.decode_repeated_frac,
            ),
        )

    def on_features(self, worker_id: str, message: Features) -> None:
        """Tell the worker about workflows between stages from now on, if it asks for it."""
        worker = self._directory.workers.get(worker_id)
        if worker is not None:
            worker.keeps_prefixes = message.keeps_prefixes
            worker.prewarms = message.prewarms

    def on_ordering_set(self, worker_id: str, message: OrderingSet) -> None:
        """Keep what the worker's engine made of its settings."""
        if self._engines is not None:
            self._engines.answered(worker_id, message)

    def on_goodbye(self, worker_id: str, reason: str) -> None:
        """Send nothing new there; SGLang ends what it has before it leaves."""
        log.info("worker %s: says goodbye: %s", worker_id, reason)
        worker = self._unlink(worker_id)
        if worker is not None:
            worker.said_goodbye = True
            if worker.state is WorkerState.READY:
                worker.state = WorkerState.DRAINING
            self._directory.wake(worker)

    def on_lost(self, worker_id: str) -> None:
        """Go on without its reports, and ask over HTTP whether it lives."""
        worker = self._unlink(worker_id)
        if worker is not None:
            worker.needs_full_check = True
            self._directory.wake(worker)

    def _unlink(self, worker_id: str) -> Worker | None:
        worker = self._directory.workers.get(worker_id)
        if worker is not None:
            worker.linked = False
            worker.keeps_prefixes = worker.prewarms = False
            worker.take_load(None, self._clock())
        return worker

    def _begin_incarnation(self, worker: Worker, hello: Hello) -> None:
        """Another process than before is at this address: its cache is empty.

        The first hello of a worker known by URL changes nothing: it may be serving already.
        """
        is_first = not worker.incarnation
        worker.incarnation = hello.incarnation
        if is_first:
            return
        self._estimates.forget_cache(worker.worker_id)
        worker.keeps_prefixes = worker.prewarms = False
        worker.url = check_worker_url(hello.url)
        worker.take_load(None, self._clock())
        worker.drained = False
        worker.said_goodbye = False
        worker.needs_full_check = True
        worker.state = WorkerState.STARTING

    def _find_or_add(self, hello: Hello) -> Worker:
        """The worker that says hello.

        Raises:
            ApiError, ConfigError: why it cannot be one of ours.
        """
        if hello.link_version != LINK_VERSION:
            raise ConfigError(f"link_version={hello.link_version}: must be {LINK_VERSION}")
        url = check_worker_url(hello.url)
        directory = self._directory
        if directory.banned.get(hello.worker_id) == hello.incarnation:
            raise ConfigError(f"worker_id={hello.worker_id!r}: was removed by the operator")
        if not (directory.may_link(url) if self._is_authenticated else directory.may_register(url)):
            raise ConfigError(
                f"url={url!r}: host is not allowed for a link "
                f"{'with' if self._is_authenticated else 'without'} keys; "
                "add it to allowed_worker_hosts"
            )
        named, at_url = directory.workers.get(hello.worker_id), directory.by_url(url)
        if at_url is not None and at_url is not named:
            if named is not None or not at_url.names_itself:
                raise ConfigError(
                    f"url={url!r}: belongs to worker {at_url.worker_id!r}, "
                    f"not to {hello.worker_id!r}"
                )
            directory.rename(at_url, hello.worker_id)
            return at_url
        if named is not None:
            if named.url != url and not named.incarnation:
                raise ConfigError(f"worker_id={hello.worker_id!r}: is at {named.url}, not at {url}")
            return named
        worker = Worker(hello.worker_id, url, "link")
        directory.insert(worker)
        return worker
