"""What stands in front of the engines in one run: nothing, sglang-router, or our coordinator.

A fresh process for every run, so that no run profits from what another has learned. Runs in
the process that owns it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hexgen_sglang.bench.engines import Engines
from hexgen_sglang.bench.scaling import scaled_settings
from hexgen_sglang.bench.systems import Place, System
from hexgen_sglang.bench.targets import OneUrl, Target, WorkersInTurn
from hexgen_sglang.cluster import coordinator
from hexgen_sglang.cluster.coordinator import CoordinatorSpec
from hexgen_sglang.cluster.ports import answers, fetch_json, free_port
from hexgen_sglang.cluster.process import ChildProcess, wait_ready
from hexgen_sglang.coordinator.config import CoordinatorConfig, WorkerConfig
from hexgen_sglang.policies.dispatch import DISPATCH
from hexgen_sglang.policies.ordering import ORDERING

_ROUTER_READY_S = 120.0
# In front of an emulated cluster nothing may time out that a real one would answer.
_PATIENCE_S = 36_000.0
# A health check runs a token through the engine; often would be a load of its own.
_HEALTH_INTERVAL_S = 60.0
_HEARTBEAT_MS = 1_000
_SHORTEST_HEARTBEAT_MS = 50


@contextmanager
def dispatching(
    system: System, engines: Engines, base: CoordinatorConfig, time_scale: float, folder: Path
) -> Iterator[tuple[Target, str]]:
    """The target of one run, its dispatcher started before and stopped after.

    Yields the target and the coordinator's base address, "" where there is none.

    Args:
        system: what stands in front.
        engines: running.
        base: coordinator settings of the cluster file; policies and limits are replaced.
        time_scale: emulated seconds in a real one.
        folder: for its log and configuration.

    Raises:
        ProcessError: the dispatcher did not get ready.
    """
    if system.place is Place.DRIVER:
        yield WorkersInTurn(engines.urls), ""
        return
    if system.place is Place.SGLANG_ROUTER:
        with _router(system, engines, folder) as url:
            yield OneUrl(url), ""
        return
    with _coordinator(system, engines, base, time_scale, folder) as url:
        yield OneUrl(url), url


@contextmanager
def _router(system: System, engines: Engines, folder: Path) -> Iterator[str]:
    """The sglang-router program with its defaults; it routes token ids as it routes text."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        *(sys.executable, "-P", "-m", "hexgen_sglang.bench.router_process"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--worker-urls", *engines.urls.values()),
        *("--policy", system.dispatch),
        *("--prometheus-port", str(free_port()), "--log-level", "warn"),
        *("--worker-startup-check-interval", "1"),
        *("--request-timeout-secs", str(int(_PATIENCE_S))),
    ]
    process = ChildProcess(
        "sglang-router", command, env=dict(os.environ), log_path=folder / "router.log"
    )

    def is_ready() -> bool:
        listing = fetch_json(f"{url}/workers")
        known = listing.get("workers", []) if isinstance(listing, dict) else []
        return answers(f"{url}/health") and len(known) == len(engines.urls)

    with process:
        wait_ready([(process, is_ready)], timeout_s=_ROUTER_READY_S)
        yield url


@contextmanager
def _coordinator(
    system: System, engines: Engines, base: CoordinatorConfig, time_scale: float, folder: Path
) -> Iterator[str]:
    """Our coordinator under the system's policies, knowing every worker."""
    link = engines.link if system.linked else ""
    config = coordinator_config(system, link, base, time_scale)
    listed = [
        WorkerConfig(url=spec.url, worker_id=name, hardware=spec.hardware)
        for name, spec in engines.specs.items()
        if not link
    ]
    spec = CoordinatorSpec.with_ports(config, listed)
    with spec.process(folder) as process:
        names = set(engines.urls)
        wait_ready(
            [(process, lambda: names <= spec.ready_workers())],
            timeout_s=coordinator.READY_TIMEOUT_S,
            poll_s=0.2,
        )
        yield spec.url


def coordinator_config(
    system: System, link: str, base: CoordinatorConfig, time_scale: float
) -> CoordinatorConfig:
    """The cluster file's coordinator under a system's policies, patient and time-scaled."""
    ordering = system.central_ordering
    return msgspec.structs.replace(
        base,
        port=0,
        link=link,
        dispatch=system.dispatch,
        dispatch_settings=scaled_settings(DISPATCH, system.dispatch, system.settings, time_scale),
        binding=system.binding.value,
        working_set=base.working_set if system.working_set is None else system.working_set,
        ordering=ordering,
        ordering_settings=scaled_settings(
            ORDERING, ordering, dict(system.engine.ordering_settings), time_scale
        ),
        # The driver's limits are the true lengths; no policy may learn them.
        trust_output_limits=False,
        max_queued=1_000_000,
        max_workflows=1_000_000,
        max_body_bytes=1_073_741_824,
        queue_timeout_s=_PATIENCE_S,
        first_byte_timeout_s=_PATIENCE_S,
        stream_gap_timeout_s=_PATIENCE_S,
        request_timeout_s=_PATIENCE_S,
        workflow_idle_s=_PATIENCE_S,
        health_interval_s=_HEALTH_INTERVAL_S,
        accelerators_time_scale=time_scale,
        heartbeat_ms=max(_SHORTEST_HEARTBEAT_MS, round(_HEARTBEAT_MS / time_scale)),
    )


@dataclass(frozen=True, slots=True)
class Told:
    """What a coordinator tells of the workflows of a run, in real seconds.

    Attributes:
        budgets_s: by workflow id, from its first request on; None for one it does not know.
        waits_s: of each request, from its acceptance until it went to a worker.
    """

    budgets_s: dict[str, float | None]
    waits_s: list[float]


def ask(url: str, workflow_ids: Sequence[str]) -> Told:
    """Read every workflow of a run from its coordinator."""
    told = Told({}, [])
    for workflow_id in workflow_ids:
        workflow = fetch_json(f"{url}/workflows/{workflow_id}")
        told.budgets_s[workflow_id] = workflow["budget_s"] if workflow else None
        for request in workflow["requests"] if workflow else ():
            if request["dispatched_s"] is not None:
                told.waits_s.append(request["dispatched_s"] - request["accepted_s"])
    return told
