"""A cluster whose workers are on the nodes of a Ray cluster, found by what the nodes have.

Runs in the process that owns them; the coordinator is a process beside it, the workers are
actors (`ray_worker`). A worker that ends is started again, where Ray finds room for it. Needs
the package `ray`, on this machine and on every node, as well as this package.
"""

from __future__ import annotations

import random
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hexgen_sglang.cluster import coordinator as coordinator_process
from hexgen_sglang.cluster.config import ClusterConfig, RayNeeds, WorkerRow, shared_fields
from hexgen_sglang.cluster.coordinator import CoordinatorSpec
from hexgen_sglang.cluster.process import ChildProcess, wait_ready
from hexgen_sglang.cluster.ray_worker import Look, RayWorker, needs_of, told
from hexgen_sglang.coordinator.backoff import backoff_s
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.transport.endpoints import is_loopback

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
STEADY_S = 120.0  # after so long in service an end counts as the first again
PATIENCE_S = 10.0  # without a node for a worker, before that is said
LONGEST_CALL_S = 15.0  # beyond the grace of a stop, for Ray to bring it there and back
SHOWN_LOG_LINES = 12

Say = Callable[[str], None]


@dataclass
class Placed:
    """One worker of the file, and where it stands.

    Attributes:
        fields: of its `WorkerSpec`.
        needs: what Ray must find free for it.
        actor, answer: Ray's handle, and the look that was asked for; None between an end and the
            next start.
        url: where it serves; "" while it does not.
        has_answered: since it was placed: its actor is on a node.
        asked_s: since when the answer is awaited.
        ready_s: since when it serves.
        num_ends: in a row, without a time of steady service between them.
        start_at_s: not before this instant is it started again.
    """

    name: str
    fields: dict[str, Any]
    needs: RayNeeds
    actor: Any = None
    answer: Any = None
    url: str = ""
    has_answered: bool = False
    asked_s: float = 0.0
    ready_s: float | None = None
    num_ends: int = 0
    start_at_s: float = 0.0
    waits_for_node: bool = field(default=False, repr=False)


class RayCluster:
    """Workers on Ray's nodes. Not connected by the constructor; `stop` ends what was started.

    Args:
        config: all rows have schedule policy "hexgen": an address is known only to whoever is
            placed there, and the plugin tells it to the coordinator.
        address: of the Ray cluster, as `ray.init` takes it.
        link: of a coordinator that runs elsewhere, or of several (`A,B`); None: one is started.
        say: gets one line for each thing that happens.

    Attributes:
        workers: by name, in the order of the file.

    Raises:
        ConfigError: a row cannot be placed by Ray, or Ray is not installed.
    """

    def __init__(self, config: ClusterConfig, *, address: str, link: str | None, say: Say) -> None:
        self._config = config
        self._address = address
        self._link = link
        self._say = say
        self._folder = Path(config.cluster.logs).resolve()
        self._coordinator: ChildProcess | None = None
        self._url = ""
        self._ray = _ray()
        self.workers = {
            name: Placed(name, self._fields(row, name, number), needs_of(row))
            for row in config.workers
            for number, name in enumerate(row.names())
        }

    def _fields(self, row: WorkerRow, name: str, number: int) -> dict[str, Any]:
        """Fields of the worker's specification; port 0 for one that is free where it starts."""
        fields = shared_fields(row)
        keys = self._config.coordinator.keys
        if fields["keys"] is None and keys is not None:
            fields["keys"] = Path(keys)
        return {**fields, "name": name, "port": row.port + number if row.port else 0}

    @property
    def url(self) -> str:
        """Base address of the coordinator that was started here; "" when it runs elsewhere."""
        return self._url

    @property
    def is_ready(self) -> bool:
        """Whether every worker serves."""
        return all(worker.ready_s is not None for worker in self.workers.values())

    def connect(self) -> None:
        """Join the Ray cluster; nothing is started yet.

        Ray takes SIGTERM over here, and aborts the process 3 s after one: handlers that are to
        stop in order must be set afterwards.

        Raises:
            ConfigError: there is no Ray cluster at the address.
        """
        try:
            self._ray.init(address=self._address, log_to_driver=False, logging_level="error")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"--ray-address={self._address}: {error}") from error

    def start(self) -> None:
        """Start the coordinator if it is ours, and ask for all workers.

        Raises:
            ConfigError: the Ray cluster's nodes could not reach the link.
            ProcessError: the coordinator does not start.
        """
        link = self._link if self._link is not None else self._start_coordinator()
        self._check_reach(link)
        for worker in self.workers.values():
            worker.fields["coordinator_link"] = link
            self._place(worker)

    def watch(self, pause_s: float) -> None:
        """After a pause take what the workers' nodes have said since, and act on it.

        The pause is not spent in Ray's own waiting: an exception of a signal handler would come
        out of that as another one.

        Raises:
            ProcessError: the coordinator that was started here has ended.
        """
        time.sleep(pause_s)
        if self._coordinator is not None and not self._coordinator.is_running():
            status = self._coordinator.exit_code()
            raise self._coordinator.failure(f"ended with status {status}")
        asked = {worker.answer: worker for worker in self.workers.values() if worker.answer}
        if asked:
            answered, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=0)
            for answer in answered:
                self._take(asked[answer])
        for worker in self.workers.values():
            self._go_on(worker)

    def stop(self, grace_s: float) -> None:
        """Stop all workers at once, then the coordinator, and leave the Ray cluster.

        Raises:
            ProcessError: the coordinator survived.
        """
        if self._ray.is_initialized():
            placed = [worker for worker in self.workers.values() if worker.actor is not None]
            stops = [w.actor.stop.remote(grace_s) for w in placed if w.has_answered]
            if stops:
                self._ray.wait(stops, num_returns=len(stops), timeout=grace_s + LONGEST_CALL_S)
            for worker in placed:
                self._ray.kill(worker.actor)
        if self._coordinator is not None:
            self._coordinator.stop(grace_s)
        self._ray.shutdown()

    def _start_coordinator(self) -> str:
        """The coordinator, on this machine; its link as the workers reach it."""
        spec = CoordinatorSpec.with_ports(self._config.coordinator)
        self._coordinator = spec.process(self._folder)
        self._coordinator.start()
        wait_ready(
            [(self._coordinator, spec.is_ready)],
            timeout_s=coordinator_process.READY_TIMEOUT_S,
            poll_s=0.2,
        )
        self._url = spec.url
        parts = urllib.parse.urlsplit(spec.config.link)
        if parts.hostname in {"0.0.0.0", "*"}:
            return f"tcp://{self._ray.util.get_node_ip_address()}:{parts.port}"
        return spec.config.link

    def _check_reach(self, link: str) -> None:
        """A link on loopback is for this machine's workers only.

        Raises:
            ConfigError: the Ray cluster has nodes on other machines.
        """
        here = self._ray.util.get_node_ip_address()
        nodes = {row["NodeManagerAddress"] for row in self._ray.nodes() if row["Alive"]}
        if _is_local(link) and nodes - {here}:
            others = ", ".join(sorted(nodes - {here}))
            raise ConfigError(
                f"link={link!r}: workers on {others} cannot reach it; must be an address of the "
                'network, or tcp://0.0.0.0:PORT, with keys (see "hexgen-sglang keys")'
            )

    def _place(self, worker: Placed) -> None:
        """Ask Ray for an actor on a node that has what the worker needs."""
        actor_class = self._ray.remote(RayWorker)
        options = actor_class.options(
            name=None,
            num_cpus=worker.needs.num_cpus,
            num_gpus=worker.needs.num_gpus,
            resources=dict(worker.needs.resources),
            max_restarts=0,  # we do that ourselves, with pauses
        )
        on_network = not _is_local(worker.fields["coordinator_link"])
        worker.actor = options.remote(worker.fields, str(self._folder), on_network=on_network)
        self._ask(worker)

    def _ask(self, worker: Placed) -> None:
        worker.answer = worker.actor.look.remote()
        worker.asked_s = time.monotonic()

    def _take(self, worker: Placed) -> None:
        """What a worker's node said, or that it will say nothing more."""
        answer, worker.answer = worker.answer, None
        worker.has_answered, worker.waits_for_node = True, False
        try:
            look: Look = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            self._ended(worker, f"is gone: {_first_line(error)}")
            return
        if look.exit_code is not None:
            tail = "\n".join(look.log_tail.splitlines()[-SHOWN_LOG_LINES:])
            self._ended(worker, f"ended with status {look.exit_code}; its log ends with:\n{tail}")
        elif look.is_ready and worker.ready_s is None:
            worker.ready_s, worker.url = time.monotonic(), look.url
            self._say(f"{worker.name}: ready at {look.url}")

    def _ended(self, worker: Placed, what: str) -> None:
        now_s = time.monotonic()
        if worker.ready_s is not None and now_s - worker.ready_s > STEADY_S:
            worker.num_ends = 0
        worker.num_ends += 1
        pause_s = backoff_s(worker.num_ends, FIRST_PAUSE_S, LONGEST_PAUSE_S, random.random)
        worker.start_at_s = now_s + pause_s
        worker.ready_s, worker.url = None, ""
        self._ray.kill(worker.actor)
        worker.actor, worker.has_answered = None, False
        self._say(f"{worker.name}: {what}\n{worker.name}: starts again in {pause_s:.1f} s")

    def _go_on(self, worker: Placed) -> None:
        """Start it again when its pause is over; else look at it again."""
        now_s = time.monotonic()
        if worker.actor is None:
            if now_s >= worker.start_at_s:
                self._place(worker)
        elif worker.answer is None:
            self._ask(worker)
        elif not worker.waits_for_node and now_s - worker.asked_s > PATIENCE_S:
            worker.waits_for_node = True
            self._say(f"{worker.name}: no answer yet; needs a node with {told(worker.needs)}")


def _is_local(link: str) -> bool:
    """Whether only this machine reaches the coordinator, or one of several (`A,B`)."""
    return any(is_loopback(endpoint) for endpoint in link.split(","))


def _ray() -> Any:
    """The package `ray`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import ray
        import ray.exceptions
        import ray.util
    except ImportError as error:
        raise ConfigError(
            "engine ray: needs the package ray; pip install 'hexgen-sglang[ray]'"
        ) from error
    return ray


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
