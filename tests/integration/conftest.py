"""Real SGLang servers for the integration tests, on the CPU, with a tiny random model.

Starting a server takes 15 to 90 s on two cores, so most tests share the session's: `cluster`,
`stock_worker`, and what `shared_worker` was asked for before. A test that kills, drains or
reconfigures something takes `fresh_cluster`. Logs stay in pytest's temporary folder; a failing
test shows the end of the logs of the servers it used.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hexgen_sglang.cluster.process import ChildProcess, stop_all, wait_ready
from hexgen_sglang.cluster.running import Cluster
from hexgen_sglang.cluster.worker import WorkerSpec
from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.core.strict import convert
from hexgen_sglang.models.tiny import make_tiny_model

START_TIMEOUT_S = 300.0
STOP_GRACE_S = 3.0
SHARES_PREFIXES = "worker-1"
SERVER_FIXTURES = {"cluster", "stock_worker", "hexgen_worker", "shared_worker", "fresh_cluster"}


@dataclass(frozen=True)
class RunningWorker:
    """A server of its own, without a coordinator: what was asked for, and the process."""

    spec: WorkerSpec
    process: ChildProcess

    @property
    def url(self) -> str:
        return self.spec.url

    @property
    def processes(self) -> dict[str, ChildProcess]:
        return {self.spec.name: self.process}


class SharedWorkers:
    """Servers by what was asked for; equal requests get the same server."""

    def __init__(self, model: str, folder: Path) -> None:
        self._model = model
        self._folder = folder
        self._running: dict[str, RunningWorker] = {}

    @property
    def processes(self) -> dict[str, ChildProcess]:
        return {worker.spec.name: worker.process for worker in self._running.values()}

    def __call__(self, **fields: Any) -> RunningWorker:
        key = repr(sorted(fields.items()))
        if key not in self._running or not self._running[key].process.is_running():
            number = len(self._running)
            given = {"name": f"shared-{number}", "core": number, "model_path": self._model}
            spec = WorkerSpec(**{**given, **fields})
            process = spec.process(self._folder)
            self._running[key] = RunningWorker(spec, process)
            process.start()
            wait_ready([(process, spec.is_ready)], timeout_s=START_TIMEOUT_S)
        return self._running[key]


class FreshClusters:
    """Clusters of one test; called to start another one."""

    def __init__(self, model: str, folder: Path) -> None:
        self._model = model
        self._folder = folder
        self._made: list[Cluster] = []

    @property
    def processes(self) -> dict[str, ChildProcess]:
        return {
            f"{number}/{name}": process
            for number, cluster in enumerate(self._made)
            for name, process in cluster.processes.items()
        }

    def __call__(
        self, num_workers: int = 2, coordinator: dict[str, Any] | None = None, **fields: Any
    ) -> Cluster:
        folder = self._folder / f"cluster-{len(self._made)}"
        cluster = _make_cluster(self._model, folder, num_workers, coordinator or {}, fields)
        self._made.append(cluster)
        cluster.start(timeout_s=START_TIMEOUT_S)
        return cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The time limit of a test does not count the start of the servers that it is first to use."""
    for item in items:
        if SERVER_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            stated = item.get_closest_marker("timeout")
            limit_s = stated.args[0] if stated else 120
            item.add_marker(pytest.mark.timeout(limit_s, func_only=True), append=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Add the end of the servers' logs to the report of a failing test."""
    report = yield
    if report.failed:
        for used in getattr(item, "funcargs", {}).values():
            for name, process in getattr(used, "processes", {}).items():
                report.sections.append((f"{name}: {process.log_path}", process.log_tail(40)))
    return report


@pytest.fixture(scope="session")
def tiny_model() -> str:
    """Folder of a small random Llama that starts and answers fast; its text means nothing."""
    return str(make_tiny_model())


@pytest.fixture(scope="session")
def logs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def shared_worker(tiny_model: str, logs_folder: Path) -> Iterator[SharedWorkers]:
    """`shared_worker(**fields of WorkerSpec)`: one server for each set of fields and session.

    Tests that share it must not kill it nor leave requests behind.
    """
    workers = SharedWorkers(tiny_model, logs_folder)
    yield workers
    stop_all(workers.processes.values(), STOP_GRACE_S)


@pytest.fixture(scope="session")
def stock_worker(shared_worker: SharedWorkers) -> RunningWorker:
    """SGLang without any flag of ours."""
    return shared_worker(name="stock")


@pytest.fixture(scope="session")
def kv_endpoints(logs_folder: Path) -> dict[str, str]:
    """Where `hexgen_worker` publishes its KV events, in the words of --kv-events-config."""
    return {
        "endpoint": f"ipc://{logs_folder}/kv-events",
        "replay_endpoint": f"ipc://{logs_folder}/kv-replay",
    }


@pytest.fixture(scope="session")
def hexgen_worker(shared_worker: SharedWorkers, kv_endpoints: dict[str, str]) -> RunningWorker:
    """SGLang with our scheduling policy and no coordinator; it publishes KV events."""
    events = json.dumps({"publisher": "zmq", **kv_endpoints})
    return shared_worker(
        name="hexgen", schedule_policy="hexgen", flags=("--kv-events-config", events)
    )


@pytest.fixture(scope="session")
def cluster(tiny_model: str, logs_folder: Path) -> Iterator[Cluster]:
    """Two workers with our policy, linked to a coordinator at `cluster.url`.

    The second, `SHARES_PREFIXES`, has our attention backend and metrics, too.
    """
    made = _make_cluster(tiny_model, logs_folder / "cluster", 2, {}, {})
    sharing = made.workers[SHARES_PREFIXES]
    flags = ("--attention-backend", "hexgen_shared_prefix", "--enable-metrics")
    made.workers[SHARES_PREFIXES] = dataclasses.replace(sharing, flags=(*sharing.flags, *flags))
    try:
        made.start(timeout_s=START_TIMEOUT_S)
        yield made
    finally:
        made.stop(STOP_GRACE_S)


@pytest.fixture
def fresh_cluster(tiny_model: str, tmp_path: Path) -> Iterator[FreshClusters]:
    """`fresh_cluster(num_workers=2, coordinator={...}, **fields of WorkerSpec)`: a cluster of
    the test's own, to kill and restart parts of. Takes a minute: use it sparingly.
    """
    clusters = FreshClusters(tiny_model, tmp_path)
    yield clusters
    stop_all(clusters.processes.values(), STOP_GRACE_S)


def _make_cluster(
    model: str, folder: Path, num_workers: int, coordinator: dict[str, Any], fields: dict[str, Any]
) -> Cluster:
    config = convert({"port": 0, **coordinator}, CoordinatorConfig, "coordinator")
    fields = {"schedule_policy": "hexgen", "model_path": model, **fields}
    workers = [
        WorkerSpec(name=f"worker-{number}", core=number, **fields) for number in range(num_workers)
    ]
    return Cluster(config, workers, folder)
