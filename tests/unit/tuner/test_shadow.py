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
from hexgen_sglang.coordinator.tuning_messages import (
    Crew,
    CrewMember,
    Said,
    Start,
    from_tuner,
    line,
)
from hexgen_sglang.core.accelerator import decode_s
from hexgen_sglang.core.accelerator_toml import profile_from_toml
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.protocol.observed import ObservedRequest, ObservedWorkflow
from hexgen_sglang.results.records import RequestRecord
from hexgen_sglang.sim.run import simulate
from hexgen_sglang.tuner.shadow import Shadow, crew_profiles, serve
from hexgen_sglang.workload.capacity import capacity_per_s
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.plan import WorkloadSettings, build_workload

CONFIGS = Path(__file__).parents[3] / "launch/configs"
HARDWARE = ("a100", "a100", "a6000", "l40s")
CREW = tuple(CrewMember(name, 1.0) for name in HARDWARE)
PROFILES = {name: str(CONFIGS / f"accelerators/{name}.toml") for name in set(HARDWARE)}


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


def fed(
    begin: Start, traffic: list[ObservedWorkflow], crew: tuple[CrewMember, ...] = CREW
) -> Shadow:
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
    strange = fed(start(), traffic, (CREW[0], CrewMember("b200", 1.0))).search()
    assert strange is not None
    assert (strange.kind, "'b200' has no profile" in strange.reason) == ("failed", True)
    silent = fed(start(), traffic, (CREW[0], CrewMember("a6000", None))).search()
    assert silent is not None
    assert (silent.kind, "'a6000' has not told" in silent.reason) == ("failed", True)
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


def test_profiles_are_those_of_the_seconds_that_the_coordinator_lives_in() -> None:
    stated = {name: profile_from_toml(Path(PROFILES[name]).read_text(), name) for name in PROFILES}
    crew = (CrewMember("a100", 1.0), CrewMember("a100", 5.0), CrewMember("l40s", 0.5))
    usual, fast, slow = crew_profiles(crew, stated)
    assert usual == stated["a100"]
    assert decode_s(fast, 9, 20_000) == pytest.approx(decode_s(usual, 9, 20_000) / 5)
    assert decode_s(slow, 9, 20_000) == pytest.approx(decode_s(stated["l40s"], 9, 20_000) * 2)
    assert fast.capacity == usual.capacity


def searched(**changes: object) -> set[str]:
    """Names that are searched beside a coordinator under `marginal_cost`."""
    settings = {"caution": 1.0, "working_set": 1.5, "ordering.best_effort_slack_s": 30.0}
    begin = Start(start().tuning, "marginal_cost", "late", settings, "least_slack")
    begin = msgspec.structs.replace(begin, **changes)
    return set(Shadow(begin).searched)


def test_only_what_the_coordinator_can_change_is_searched(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hexgen = msgspec.structs.replace(start().tuning, engine="hexgen")
    assert searched(tuning=hexgen) == {"caution", "working_set", "ordering.best_effort_slack_s"}
    assert searched(tuning=hexgen, settings={"caution": 1.0}) == {"caution"}
    assert searched(tuning=hexgen, settings={"caution": 1.0, "working_set": 0.0}) == {"caution"}
    assert caplog.text == ""
    for engine in ("lpm", "hexgen[best_effort_slack_s=6]", "hexgen[ordering=urgency]"):
        caplog.clear()
        other = msgspec.structs.replace(hexgen, engine=engine)
        assert searched(tuning=other) == {"caution", "working_set"}
        assert caplog.text.count("ordering settings are not searched") == 1
    # Once they were told, engines stand where the central queue does, however they were started.
    told = msgspec.structs.replace(hexgen, engine="hexgen[best_effort_slack_s=6]")
    assert "ordering.best_effort_slack_s" in searched(tuning=told, engines_told=True)
