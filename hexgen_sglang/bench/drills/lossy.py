"""The drill of a bad network: coordinator and workers in two network namespaces.

All that goes between them, HTTP and the ZMQ link, crosses a link that loses 30 % of the packets
and delays the others by 200 ms, in each direction.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial

import msgspec

from hexgen_sglang.bench.drills.drill import Drill, DrillReport, under_load
from hexgen_sglang.bench.drills.forwarder import Forwarder, LinkState
from hexgen_sglang.bench.drills.namespaces import LossyNamespace, why_not_here
from hexgen_sglang.bench.drills.stage import Stage
from hexgen_sglang.cluster.coordinator import CoordinatorSpec
from hexgen_sglang.cluster.ports import free_port
from hexgen_sglang.cluster.process import stop_all

_LOSS, _DELAY_S, _SEED = 0.3, 0.2, 0
_NAME = "30 % loss, 200 ms delay"
# What is slow there is the network: the coordinator must not take that for a dead worker at once.
_PATIENT = {"health_timeout_s": 25.0, "stream_gap_timeout_s": 60.0}


async def lossy_network(stage: Stage) -> DrillReport:
    """Requests over the bad link; recovery: the longest pause of a stream."""
    why = why_not_here()
    if why:
        return DrillReport(_NAME, skipped=why)
    async with _apart(stage) as namespace:
        for name in stage.workers:
            await stage.until_ready(name)
        load = partial(Drill.burst, number=10, count=40)
        async with under_load(stage, _NAME, load, may_fail=True, timeout_s=300.0) as drill:
            pass  # the fault has been there from the start
        drill.report.facts["packets_lost"] = namespace.num_lost
        drill.report.facts["packets_passed"] = namespace.num_passed
    for name in stage.workers:
        await stage.until_ready(name)
    return drill.report


@contextlib.asynccontextmanager
async def _apart(stage: Stage) -> AsyncIterator[LossyNamespace]:
    """The coordinator inside a namespace of its own, the workers outside; undone at the end."""
    before = stage.coordinator
    patient = msgspec.structs.replace(before.config, **_PATIENT)
    targets = {name: forwarder.target for name, forwarder in stage.link.items()}
    await asyncio.to_thread(stage.processes["coordinator"].kill)
    async with LossyNamespace(_LOSS, _DELAY_S, _SEED) as namespace:
        pairs, outside = _ways(stage, namespace)
        inside = namespace.forwarder(pairs, stage.folder / "forwarder.log")
        inside.start()
        for forwarder in outside:
            await forwarder.start()
        stage.coordinator = CoordinatorSpec(patient, before.workers)
        try:
            await stage.start_coordinator(namespace.inside)
            yield namespace
        finally:
            children = [stage.processes["coordinator"], inside]
            await asyncio.to_thread(stop_all, children, 0.0)
            for forwarder in outside:
                await forwarder.stop()
            for name, target in targets.items():
                stage.link[name].target = target
                stage.link[name].set(LinkState.CUT)
                stage.link[name].set(LinkState.OPEN)
            stage.coordinator = before
    await stage.start_coordinator()


def _ways(stage: Stage, namespace: LossyNamespace) -> tuple[list[tuple[str, str]], list[Forwarder]]:
    """What to forward inside the namespace, and forwarders to start outside.

    Inside, everything is where it was: the coordinator's ports and the workers' addresses are on
    its loopback. Callers come over the clean link.
    """
    port = stage.coordinator.config.port
    link = stage.coordinator.config.link.rpartition("//")[2]
    inner_link = free_port()
    pairs = [
        (f"{namespace.clean_address}:{port}", f"127.0.0.1:{port}"),
        (f"{namespace.inner_address}:{inner_link}", link),
    ]
    outside = [Forwarder(("127.0.0.1", port), (namespace.clean_address, port))]
    for name, spec in stage.workers.items():
        stage.link[name].target = (namespace.inner_address, inner_link)
        near = free_port()
        outside.append(Forwarder((namespace.outer_address, near), ("127.0.0.1", spec.port)))
        advertised = f"127.0.0.1:{stage.http[name].port}"
        pairs.append((advertised, f"{namespace.outer_address}:{near}"))
    return pairs, outside
