"""What the machine that emulates adds to a run, from its records. Pure.

An emulated accelerator keeps its own time, but HTTP, tokens, the dispatcher and SGLang's loop
take the host's, and every real millisecond is as many emulated ones as the time scale says. The
simulator can be given these terms, so that both mean the same run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from hexgen_sglang.results.records import RequestRecord, RunRecord
from hexgen_sglang.results.schema import HostCosts, RunFacts


def host_costs(facts: Sequence[RunFacts]) -> HostCosts | None:
    """Of runs of one system at one time scale; None without emulated workers.

    What a worker does not tell counts as 0.
    """
    workers = sorted({name for one in facts for name in one.emulation})
    if not workers:
        return None
    requests = [request for one in facts for request in one.run.requests]
    to_engine_s = _mean(request.to_engine_s for request in requests)
    waited_s = _mean(wait for one in facts for wait in one.dispatch_waits_s)
    return HostCosts(
        time_scale=facts[0].run.time_scale,
        send_s=sibling_gap_s([one.run for one in facts]),
        to_engine_s=max(0.0, to_engine_s - waited_s),
        back_s=_mean(request.back_s for request in requests),
        step_s={name: _step_s(facts, name) for name in workers},
    )


def sibling_gap_s(runs: Sequence[RunRecord]) -> float:
    """Seconds between siblings that the driver sends together, on average."""
    span_s, gaps = 0.0, 0
    for run in runs:
        stages: dict[tuple[int, int], list[RequestRecord]] = {}
        for request in run.requests:
            stages.setdefault((request.workflow, request.stage), []).append(request)
        for siblings in stages.values():
            instants = [request.sent_s for request in siblings]
            span_s += max(instants) - min(instants)
            gaps += len(siblings) - 1
    return span_s / gaps if gaps else 0.0


def _step_s(facts: Sequence[RunFacts], worker: str) -> float:
    rows = [one.emulation[worker] for one in facts if worker in one.emulation]
    steps = math.fsum(row["steps"] for row in rows)
    return math.fsum(row["overhead_s"] for row in rows) / steps if steps else 0.0


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else 0.0
