"""The tuner beside a coordinator on simulated traffic: finds, applies, takes back."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from hexgen_sglang.bench.plan import cluster_profiles
from hexgen_sglang.bench.systems import parse_system
from hexgen_sglang.cluster.config import load_cluster
from hexgen_sglang.coordinator.tuning_config import Mode, TuningConfig
from hexgen_sglang.coordinator.tuning_messages import Crew, Said, Start, from_tuner, line
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.protocol.observed import ObservedRequest, ObservedWorkflow
from hexgen_sglang.results.records import RequestRecord
from hexgen_sglang.sim.run import simulate
from hexgen_sglang.tuner.shadow import Shadow, serve
from hexgen_sglang.workload.capacity import capacity_per_s
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import WorkloadSettings, build_workload

CONFIGS = Path(__file__).parents[3] / "launch/configs"
CREW = ("a100", "a100", "a6000", "l40s")
PROFILES = {name: str(CONFIGS / f"accelerators/{name}.toml") for name in set(CREW)}


@pytest.fixture(scope="module")
def traffic() -> list[ObservedWorkflow]:
    """What a coordinator sees of an overloaded cluster under `paper` with alpha 1."""
    profiles = cluster_profiles(load_cluster(CONFIGS / "clusters/hetero-1.toml"), None)
    trace = load_trace("synthetic:15")
    settings = WorkloadSettings(2 * capacity_per_s(trace, profiles), 15)
    workload = build_workload(trace, settings, profiles)
    run = simulate(parse_system("coordinator:paper[alpha=1.0]+fcfs"), workload, profiles).run
    requests: dict[int, list[RequestRecord]] = defaultdict(list)
    for request in run.requests:
        requests[request.workflow].append(request)
    return [
        ObservedWorkflow(
            "text2sql",
            workflow.arrival_s,
            tuple(
                ObservedRequest(
                    one.stage_name,
                    one.sent_s - workflow.arrival_s,
                    one.end_s - workflow.arrival_s,
                    one.input_tokens,
                    one.output_tokens,
                    one.cached_tokens,
                    sibling_index=one.sibling,
                )
                for one in requests[workflow.index]
            ),
            workflow.budget_s,
            workflow.e2e_s <= (workflow.budget_s or 0),
        )
        for workflow in sorted(run.workflows, key=lambda workflow: workflow.end_s)
    ]


def start(mode: Mode = "auto", **changes: object) -> Start:
    tuning = TuningConfig(
        mode=mode,
        profiles=PROFILES,
        engine="fcfs",
        candidates=2,
        seeds=2,
        workflows=10,
        min_workflows=15,
        every_s=0.05,
    )
    return Start(msgspec.structs.replace(tuning, **changes), "paper", "early", {"alpha": 1.0})


def fed(begin: Start, traffic: list[ObservedWorkflow], crew: tuple[str, ...] = CREW) -> Shadow:
    shadow = Shadow(begin)
    shadow.take(Crew(crew))
    for workflow in traffic:
        assert shadow.take(workflow) is None
    return shadow


def test_better_setting_is_applied_and_taken_back_when_attainment_falls(
    traffic: list[ObservedWorkflow],
) -> None:
    shadow = fed(start(seeds=3), [msgspec.structs.replace(one, met=True) for one in traffic])
    said = shadow.search(lambda: 1e6)
    assert said is not None
    assert (said.kind, said.num_runs) == ("apply", 6), said.reason
    assert said.settings["alpha"] < 1.0
    assert said.low is not None
    assert said.low > 1
    worse = msgspec.structs.replace(traffic[0], arrival_s=1e6 + 1, met=False)
    answers = [shadow.take(worse) for _ in range(30)]
    returns = [answer for answer in answers if answer is not None]
    assert [(one.kind, one.settings) for one in returns] == [("return", {"alpha": 1.0})]
    assert "attainment fell" in returns[0].reason


def test_advice_changes_nothing(traffic: list[ObservedWorkflow]) -> None:
    shadow = fed(start("advise", seeds=3), traffic)
    said = shadow.search(lambda: 1e6)
    assert said is not None
    assert said.kind == "advice"
    assert shadow.take(msgspec.structs.replace(traffic[0], arrival_s=1e6 + 1, met=False)) is None


def test_little_traffic_is_not_searched_and_what_is_missing_is_said(
    traffic: list[ObservedWorkflow],
) -> None:
    assert fed(start(), traffic[:10]).search() is None
    strange = fed(start(), traffic, ("a100", "b200")).search()
    assert strange is not None
    assert (strange.kind, "'b200' has no profile" in strange.reason) == ("failed", True)
    alone = fed(start(), traffic, ()).search()
    assert alone is not None
    assert (alone.kind, alone.reason) == ("failed", "no worker takes requests")


def test_unusable_start_is_refused() -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Shadow(start(profiles={"a100": "/nowhere/a100.toml"}))
    with pytest.raises(ConfigError, match="nothing to search"):
        Shadow(msgspec.structs.replace(start(), dispatch="round_robin", settings={}))
    with pytest.raises(ConfigError, match="must be Start"):
        serve([line(Crew(CREW))], lambda _: None)


def test_server_follows_its_lines_until_they_end(traffic: list[ObservedWorkflow]) -> None:
    said: queue.Queue[Said] = queue.Queue()
    heard = threading.Event()

    def write(raw: bytes) -> None:
        said.put(from_tuner(raw))
        heard.set()

    def lines() -> Iterator[bytes]:
        yield line(start("advise"))
        yield line(Crew(CREW))
        for workflow in traffic:
            yield line(workflow)
        assert heard.wait(100)

    serve(lines(), write)
    assert said.get_nowait().num_runs == 4


def test_line_that_is_no_message_ends_the_server() -> None:
    with pytest.raises(msgspec.DecodeError):
        serve([line(start()), b"{}"], lambda _: None)
