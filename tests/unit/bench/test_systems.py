"""Names of systems: every documented form, and errors that say what is known."""

from __future__ import annotations

import pytest

from hexgen_sglang.bench.systems import (
    ENGINE_FLAGS,
    ROUTER_POLICIES,
    SHORT_NAMES,
    Binding,
    Engine,
    Place,
    parse_system,
    parse_systems,
)
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.policies.dispatch import DISPATCH


@pytest.mark.parametrize("engine", ENGINE_FLAGS)
def test_every_engine_goes_with_round_robin(engine: str) -> None:
    system = parse_system(f"{engine}+round_robin")
    assert system.place is Place.DRIVER
    assert system.engine.policy == engine


@pytest.mark.parametrize("policy", ROUTER_POLICIES)
def test_every_router_policy_is_known(policy: str) -> None:
    system = parse_system(f"sglang-router:{policy}+lpm")
    assert (system.place, system.dispatch) == (Place.SGLANG_ROUTER, policy)
    assert system.engine == Engine("lpm")


@pytest.mark.parametrize("policy", list(DISPATCH))
def test_every_registered_dispatch_is_known(policy: str) -> None:
    system = parse_system(f"coordinator:{policy}+fcfs")
    assert (system.place, system.dispatch) == (Place.COORDINATOR, policy)
    assert system.central_ordering == "fcfs"


@pytest.mark.parametrize("name", SHORT_NAMES)
def test_short_names_stand_for_a_long_one(name: str) -> None:
    system = parse_system(name)
    assert system.name == name
    assert (system.engine.policy == "hexgen") == system.linked
    assert system.central_ordering == (system.engine.ordering or "fcfs")


def test_the_lite_system_needs_nothing_of_ours_in_the_workers() -> None:
    lite = parse_system("hexgen-lite")
    assert lite.engine.policy != "hexgen"
    assert (lite.binding, lite.linked) == (Binding.EARLY, False)
    assert parse_system("coordinator:hexgen_lite[link=on;binding=late]+fcfs").linked
    assert not parse_system("coordinator:least_load[link=off]+fcfs").linked


def test_published_policies_bind_early_and_ours_late() -> None:
    assert parse_system("coordinator:least_load+lpm").binding is Binding.EARLY
    assert parse_system("hexgen").binding is Binding.LATE
    late = parse_system("coordinator:least_load[binding=late;barrier_s=2]+lpm")
    assert late.binding is Binding.LATE
    assert late.settings == {"barrier_s": 2.0}


def test_priority_is_sglangs_own_with_fcfs() -> None:
    engine = parse_system("priority+round_robin").engine
    assert engine.schedule_policy == "fcfs"
    assert "--enable-priority-scheduling" in engine.flags


def test_orderings_of_the_plugin_are_different_engines() -> None:
    first = parse_system("hexgen[ordering=fcfs]+round_robin").engine
    second = parse_system("hexgen+round_robin").engine
    assert first != second
    assert first.name == "hexgen-fcfs"


def test_settings_of_the_ordering_are_the_engines() -> None:
    eager = parse_system("coordinator:paper+hexgen[best_effort_slack_s=12.5;hold=off]").engine
    assert eager.ordering_settings == (("best_effort_slack_s", 12.5),)
    assert eager.name == "hexgen-least_slack-best_effort_slack_s-12.5-no-hold"
    usual = parse_system("hexgen[best_effort_slack_s=30]+round_robin").engine
    assert usual == parse_system("hexgen+round_robin").engine  # which can share running workers


@pytest.mark.parametrize(
    "text",
    [
        "fcfs",
        "hexgen",
        "hexgen[ordering=fcfs]",
        "hexgen[ordering=urgency;best_effort_slack_s=6.25;hold=off;retain=0.5;prewarm=0.25]",
    ],
)
def test_an_engine_is_read_back_from_its_text(text: str) -> None:
    engine = parse_system(f"coordinator:paper+{text}").engine
    assert engine.text == text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fcfs", "ENGINE+round_robin"),
        ("quick+round_robin", "'quick'"),
        ("fcfs+least_load", "need a place"),
        ("sglang-router:random+fcfs", "cache_aware"),
        ("coordinator:best+fcfs", "least_tokens"),
        ("proxy:best+fcfs", "sglang-router or coordinator"),
        ("coordinator:least_load[barrier_s=x]+fcfs", "barrier_s='x'"),
        ("coordinator:least_load[colour=1]+fcfs", "colour"),
        ("coordinator:least_load[barrier_s=-1]+fcfs", "barrier_s=-1"),
        ("coordinator:least_load[binding=never]+fcfs", "early or late"),
        ("fcfs[a=1]+round_robin", "has no a"),
        ("hexgen[ordering=sideways]+round_robin", "least_slack"),
        ("coordinator:least_load[link=maybe]+fcfs", "on or off"),
        ("coordinator:least_load[x]+fcfs", "key=value"),
        ("hexgen[best_effort_slack_s=soon]+round_robin", "best_effort_slack_s='soon'"),
        ("hexgen[best_effort_slack_s=-1]+round_robin", "best_effort_slack_s=-1"),
        ("hexgen[ordering=fcfs;best_effort_slack_s=1]+round_robin", "has no best_effort_slack_s"),
        ("lpm[best_effort_slack_s=1]+round_robin", "has no best_effort_slack_s"),
        ("coordinator:marginal_cost[working_set=-1]+fcfs", "working_set=-1.0: must be 0 to 1000"),
        ("coordinator:+fcfs", "must be a name"),
    ],
)
def test_bad_names_are_refused_with_what_is_known(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"^system ") as caught:
        parse_system(name)
    assert repr(name) in str(caught.value)
    assert message in str(caught.value)


def test_list_keeps_the_order_and_refuses_repeats() -> None:
    systems = parse_systems("lpm+round_robin, fcfs+round_robin")
    assert [system.name for system in systems] == ["lpm+round_robin", "fcfs+round_robin"]
    with pytest.raises(ConfigError, match="twice"):
        parse_systems("fcfs+round_robin,fcfs+round_robin")
    with pytest.raises(ConfigError, match="at least one"):
        parse_systems(" , ")
