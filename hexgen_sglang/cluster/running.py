"""A cluster on this machine: one coordinator and its workers, up together and down together.

Runs in the process that owns them. Where the settings come from is `cluster.config`.
"""

from __future__ import annotations

import dataclasses
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from hexgen_sglang.cluster import coordinator, worker
from hexgen_sglang.cluster.coordinator import CoordinatorSpec
from hexgen_sglang.cluster.process import (
    TERM_GRACE_S,
    ChildProcess,
    Probe,
    Progress,
    stop_all,
    wait_ready,
)
from hexgen_sglang.cluster.worker import WorkerSpec
from hexgen_sglang.coordinator.config import CoordinatorConfig, WorkerConfig
from hexgen_sglang.core.errors import ConfigError

# Loading a model keeps a core busy; more starts at once than cores only make each slower.
STARTS_AT_ONCE = 2


class Cluster:
    """A coordinator and workers. Not started by the constructor; `stop` or `with` ends it.

    Workers with schedule_policy "hexgen" get the coordinator's link and announce themselves;
    the others are listed in the coordinator's configuration.

    Attributes:
        coordinator: the coordinator's specification, ports filled in.
        workers: specifications by worker name, in the order given.
        processes: what was made of them by `start`, by name; "coordinator" is one.
        folder: logs and written configuration.
    """

    def __init__(
        self, config: CoordinatorConfig, workers: Sequence[WorkerSpec], folder: Path
    ) -> None:
        names = [spec.name for spec in workers]
        for name in names:
            if names.count(name) > 1 or name == "coordinator":
                raise ConfigError(f"workers: name {name!r}: must be unique, not 'coordinator'")
        listed = [
            WorkerConfig(url=spec.url, worker_id=spec.name, hardware=spec.hardware)
            for spec in workers
            if spec.schedule_policy != "hexgen"
        ]
        self.coordinator = CoordinatorSpec.with_ports(config, listed)
        self.workers = {spec.name: self._linked(spec) for spec in workers}
        self.processes: dict[str, ChildProcess] = {}
        self.folder = folder

    def _linked(self, spec: WorkerSpec) -> WorkerSpec:
        """The worker with the coordinator's link, and its keys where it states none itself."""
        if spec.schedule_policy != "hexgen":
            return spec
        config = self.coordinator.config
        keys = spec.keys or (Path(config.keys) if config.keys else None)
        return dataclasses.replace(spec, coordinator_link=_reachable(config.link), keys=keys)

    @property
    def url(self) -> str:
        """The coordinator's base address."""
        return self.coordinator.url

    def start(
        self,
        on_progress: Progress | None = None,
        *,
        timeout_s: float = worker.READY_TIMEOUT_S,
        starts_at_once: int = STARTS_AT_ONCE,
    ) -> None:
        """Start everything and wait until the coordinator may send to every worker.

        Workers start `starts_at_once` at a time; `timeout_s` seconds are for each such group.
        What was started keeps running when this raises: call `stop`, or use `with`.

        Raises:
            ProcessError: something died or did not get ready.
        """
        self.start_coordinator(on_progress)
        names = list(self.workers)
        for first in range(0, len(names), starts_at_once):
            self.start_workers(names[first : first + starts_at_once], on_progress, timeout_s)

    def start_coordinator(self, on_progress: Progress | None = None) -> None:
        """Start the coordinator, also again after its end, and wait until it serves."""
        process = self.coordinator.process(self.folder)
        self.processes["coordinator"] = process
        process.start()
        wait_ready(
            [(process, self.coordinator.is_ready)],
            timeout_s=coordinator.READY_TIMEOUT_S,
            on_progress=on_progress,
            poll_s=0.2,
        )

    def start_workers(
        self,
        names: Sequence[str],
        on_progress: Progress | None = None,
        timeout_s: float = worker.READY_TIMEOUT_S,
    ) -> None:
        """Start the named workers, also again after their end, and wait until each is ready.

        Raises:
            ProcessError: one died or did not get ready within `timeout_s` seconds.
        """
        for name in names:
            self.processes[name] = self.workers[name].process(self.folder)
            self.processes[name].start()
        waits = [(self.processes[name], self._probe(name)) for name in names]
        wait_ready(waits, timeout_s=timeout_s, on_progress=on_progress)

    def _probe(self, name: str) -> Probe:
        """Whether the worker generates, and the coordinator knows it."""

        def is_ready() -> bool:
            known = name in self.coordinator.ready_workers()
            return known and self.workers[name].is_ready()

        return is_ready

    def check(self) -> None:
        """Raise if something that was started has ended by itself.

        Raises:
            ProcessError: names the process and quotes the end of its log.
        """
        for process in self.processes.values():
            if not process.is_running():
                raise process.failure(f"ended with status {process.exit_code()}")

    def stop(self, grace_s: float = TERM_GRACE_S) -> None:
        """Stop everything that was started; see `process.stop_all`."""
        stop_all(self.processes.values(), grace_s)

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.stop(grace_s=0)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(TERM_GRACE_S if error is None else 0.0)


def _reachable(link: str) -> str:
    """The link's bind address as one that a worker of this machine can connect to."""
    parts = urllib.parse.urlsplit(link)
    if parts.hostname in {"0.0.0.0", "*"}:
        return f"tcp://127.0.0.1:{parts.port}"
    return link
