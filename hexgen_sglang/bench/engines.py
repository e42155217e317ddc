"""The engines of a comparison: SGLang servers of one cluster file under one queue order.

Started once for all systems that share the order; between runs their caches are flushed and
their counters read. Runs in the process that owns them.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from hexgen_sglang.bench.scaling import scaled_settings
from hexgen_sglang.bench.systems import Engine
from hexgen_sglang.cluster.config import ClusterConfig, WorkerRow, worker_specs
from hexgen_sglang.cluster.ports import free_port
from hexgen_sglang.cluster.process import ChildProcess, Progress, stop_all, wait_ready
from hexgen_sglang.cluster.running import STARTS_AT_ONCE
from hexgen_sglang.cluster.worker import READY_TIMEOUT_S, WorkerSpec
from hexgen_sglang.core.errors import ConfigError, ProcessError
from hexgen_sglang.policies.ordering import ORDERING
from hexgen_sglang.results.laws import EngineTotals

# Longer than any answer: one event with the first token, one with the rest. Events for each
# token would cost more CPU than the schedulers themselves.
_STREAM_INTERVAL = 1_000_000
_FLUSH_TIMEOUT_S = 30.0
# The step log is written twice a second.
_LOG_SETTLES_S = 1.2
_COUNTERS = {
    "sglang:num_requests_total": "requests",
    "sglang:prompt_tokens_total": "input_tokens",
    "sglang:generation_tokens_total": "output_tokens",
}

_PREFIX_COUNTER = re.compile(
    r"^hexgen_(?P<kind>retained|prewarmed)_prefix_tokens_total"
    r'\{[^}]*outcome="(?P<outcome>\w+)"[^}]*\} (?P<value>\S+)$',
    re.MULTILINE,
)

# A proxy of the environment must not see requests to our own children.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters of all engines at one instant; differences of two readings are one run.

    Attributes:
        totals: by worker, as SGLang counts them.
        emulation: by worker, the emulated accelerator's sums; {} for a real one.
        prefixes: what our plugin counts of kept and prewarmed prefixes, over all workers.
    """

    totals: Mapping[str, EngineTotals]
    emulation: Mapping[str, Mapping[str, Any]]
    prefixes: Mapping[str, float] = field(default_factory=dict)


class Engines:
    """All workers of a cluster with one engine policy. Not started by the constructor.

    Args:
        config: the cluster file; policies that its rows name are replaced.
        engine: how every worker orders its queue.
        time_scale: emulated seconds in a real one; must be 1 for workers without a profile.
        linked: give the workers the ZMQ link of a coordinator that may run or not.
        folder: logs and step logs.

    Attributes:
        engine, time_scale: as given.
        link: the endpoint on which a coordinator has to listen; "" when not linked.
        folder: logs of the workers.

    Raises:
        ConfigError: a time scale other than 1 with a worker that is not emulated.
    """

    def __init__(
        self, config: ClusterConfig, engine: Engine, time_scale: float, linked: bool, folder: Path
    ) -> None:
        real = [row.name for row in config.workers if row.profile is None]
        if real and time_scale != 1:
            raise ConfigError(
                f"time_scale={time_scale}: must be 1 with workers that are not emulated: "
                f"{', '.join(real)}"
            )
        self.engine = engine
        self.link = f"tcp://127.0.0.1:{free_port()}" if linked else ""
        self.folder = folder
        self.time_scale = time_scale
        rows = tuple(_row(row, engine) for row in config.workers)
        specs = worker_specs(msgspec.structs.replace(config, workers=rows))
        self.specs = {spec.name: self._spec(spec) for spec in specs}
        self._processes: dict[str, ChildProcess] = {}

    @property
    def urls(self) -> dict[str, str]:
        """Base address by worker name, in the cluster file's order."""
        return {name: spec.url for name, spec in self.specs.items()}

    def start(self, on_progress: Progress | None = None) -> None:
        """Start all workers, a few at a time, and wait until each generates.

        Raises:
            ProcessError: one died or did not get ready; call `stop` then too.
        """
        names = list(self.specs)
        for first in range(0, len(names), STARTS_AT_ONCE):
            group = names[first : first + STARTS_AT_ONCE]
            for name in group:
                self._processes[name] = self.specs[name].process(self.folder)
                self._processes[name].start()
            waits = [(self._processes[name], self.specs[name].is_ready) for name in group]
            wait_ready(waits, timeout_s=READY_TIMEOUT_S, on_progress=on_progress)

    def check(self) -> None:
        """Raise ProcessError when a worker has ended by itself."""
        for process in self._processes.values():
            if not process.is_running():
                raise process.failure(f"ended with status {process.exit_code()}")

    def flush(self) -> None:
        """Empty every prefix cache.

        Raises:
            ProcessError: a worker refused, because it is not idle.
        """
        for name, url in self.urls.items():
            deadline_s = time.monotonic() + _FLUSH_TIMEOUT_S
            while not _posted(f"{url}/flush_cache"):
                if time.monotonic() > deadline_s:
                    raise ProcessError(f"{name}: did not flush its cache; is it still busy?")
                time.sleep(0.5)

    def read(self) -> Reading:
        """The counters now; waits until the step logs are written.

        Raises:
            ProcessError: a worker's metrics cannot be read.
        """
        time.sleep(_LOG_SETTLES_S)
        texts = {name: _metrics(name, url) for name, url in self.urls.items()}
        totals = {name: _totals(text) for name, text in texts.items()}
        emulation = {
            name: json.loads((self._step_log(name) / "summary.json").read_text("utf-8"))
            for name, spec in self.specs.items()
            if spec.emulate is not None
        }
        return Reading(totals, emulation, _prefixes(texts.values()))

    def stop(self) -> None:
        """Stop every worker."""
        stop_all(self._processes.values())

    def __enter__(self) -> Engines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _spec(self, spec: WorkerSpec) -> WorkerSpec:
        """The worker with what the bench needs on top."""
        flags = [
            *self.engine.flags,
            "--enable-metrics",
            *("--stream-interval", str(_STREAM_INTERVAL)),
            # Comes back in every answer, so that the driver learns who served it.
            *("--weight-version", spec.name),
        ]
        if spec.emulate is not None:
            flags += ["--hexgen-time-scale", str(self.time_scale)]
            flags += ["--hexgen-step-log", str(self._step_log(spec.name).resolve())]
        if self.link:
            flags += ["--hexgen-coordinator", self.link, "--hexgen-worker-id", spec.name]
            flags += ["--hexgen-advertise-url", spec.url]
            flags += ["--hexgen-hardware", spec.hardware] if spec.hardware else []
            if self.engine.patience:
                flags += ["--hexgen-prefill-patience", str(self.engine.patience)]
            if self.engine.retained_share:
                flags += ["--hexgen-retain-prefixes", str(self.engine.retained_share)]
            if self.engine.prewarm_share:
                flags += ["--hexgen-prewarm", str(self.engine.prewarm_share)]
        if self.engine.ordering:
            flags += ["--hexgen-hold-prefixes", "on" if self.engine.holds_prefixes else "off"]
            own = dict(self.engine.ordering_settings)
            settings = scaled_settings(ORDERING, self.engine.ordering, own, self.time_scale)
            if "best_effort_slack_s" in settings:
                flags += ["--hexgen-best-effort-slack", str(settings["best_effort_slack_s"])]
        return dataclasses.replace(spec, flags=(*flags, *spec.flags))

    def _step_log(self, name: str) -> Path:
        return self.folder / "steps" / name


def _row(row: WorkerRow, engine: Engine) -> WorkerRow:
    """The cluster file's row under the engine policy of the comparison."""
    return msgspec.structs.replace(
        row, schedule_policy=engine.schedule_policy, ordering=engine.ordering or None
    )


def totals_between(before: Reading, after: Reading) -> EngineTotals:
    """What all engines counted between two readings."""
    return EngineTotals(
        **{
            field: sum(getattr(after.totals[name], field) for name in after.totals)
            - sum(getattr(before.totals[name], field) for name in before.totals)
            for field in _COUNTERS.values()
        }
    )


def emulation_between(before: Reading, after: Reading) -> dict[str, dict[str, float]]:
    """What the emulated accelerators did between two readings, by worker.

    `busy_s`: emulated seconds of steps; `overhead_frac`, `drift_frac`: standstill caused by
    the host's CPU, and unexplained time, both relative to `busy_s`; 0 for an idle worker.
    """
    rows: dict[str, dict[str, float]] = {}
    for name, end in after.emulation.items():
        start = before.emulation[name]
        busy_s = sum(end["predicted_s"].values()) - sum(start["predicted_s"].values())
        share = 1 / busy_s if busy_s > 0 else 0.0
        rows[name] = {
            "busy_s": busy_s,
            "steps": sum(end["num_steps"].values()) - sum(start["num_steps"].values()),
            "overhead_s": end["overhead_s"] - start["overhead_s"],
            "overhead_frac": (end["overhead_s"] - start["overhead_s"]) * share,
            "drift_frac": (end["drift_s"] - start["drift_s"]) * share,
        }
    return rows


def prefixes_between(before: Reading, after: Reading) -> dict[str, float]:
    """What became of prefixes between two readings; names that are not there before count as 0."""
    return {name: end - before.prefixes.get(name, 0.0) for name, end in after.prefixes.items()}


def _metrics(name: str, url: str) -> str:
    """A worker's metrics."""
    try:
        with _direct.open(f"{url}/metrics", timeout=30.0) as answer:
            return str(answer.read().decode("utf-8"))
    except OSError as error:
        raise ProcessError(f"{name}: its metrics cannot be read: {error}") from error


def _prefixes(texts: Iterable[str]) -> dict[str, float]:
    """Our plugin's counts, as kind_outcome; {} where it keeps and prewarms nothing."""
    sums: dict[str, float] = {}
    for found in (match for text in texts for match in _PREFIX_COUNTER.finditer(text)):
        name = f"{found['kind']}_{found['outcome']}"
        sums[name] = sums.get(name, 0.0) + float(found["value"])
    return sums


def _totals(text: str) -> EngineTotals:
    """SGLang's own counters, summed over their labels; 0 before the first request."""
    sums = dict.fromkeys(_COUNTERS.values(), 0)
    for line in text.splitlines():
        metric, _, value = line.rpartition(" ")
        field = _COUNTERS.get(metric.partition("{")[0])
        if field is not None:
            sums[field] += round(float(value))
    return EngineTotals(**sums)


def _posted(url: str) -> bool:
    """Whether an empty POST is answered with 200."""
    try:
        with _direct.open(urllib.request.Request(url, method="POST"), timeout=30.0) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return False
    except OSError as error:
        raise ProcessError(f"{url}: {error}") from error
