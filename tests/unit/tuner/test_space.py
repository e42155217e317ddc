"""What is searched: from the registry, within what the policies accept, evenly spread."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hexgen_sglang.bench.systems import Binding, parse_system
from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.policies.dispatch import DISPATCH
from hexgen_sglang.tuner.space import (
    RANGES,
    Range,
    candidates,
    default_settings,
    known_settings,
    search_space,
    with_settings,
)

PAPER = parse_system("paper")
HEXGEN = parse_system("hexgen")
SEARCHABLE = [name for name in DISPATCH if DISPATCH.defaults(name)]


@pytest.mark.parametrize("dispatch", SEARCHABLE)
def test_every_policy_with_settings_can_be_searched(dispatch: str) -> None:
    system = parse_system(f"coordinator:{dispatch}+fcfs")
    space = search_space(system, [])
    default = default_settings(system, space)
    known = {**DISPATCH.defaults(dispatch), "working_set": CoordinatorConfig().working_set}
    assert default == {name: known[name] for name in space}
    assert ("working_set" in space) == (system.binding is Binding.LATE)
    points = candidates(space, default, 9)
    assert points[0] == default
    assert len(points) == 9
    for point in points:
        with_settings(system, point)


def test_declared_ranges_belong_to_settings_and_hold_their_defaults() -> None:
    for (dispatch, name), values in RANGES.items():
        assert values.low <= DISPATCH.defaults(dispatch)[name] <= values.high


def test_one_setting_is_laid_out_in_an_even_grid_with_its_ends() -> None:
    space = search_space(PAPER, ["alpha=0.1:0.9"])
    points = candidates(space, {"alpha": 0.4}, 6)
    assert [point["alpha"] for point in points] == [0.4, 0.1, 0.3, 0.5, 0.7, 0.9]


def test_default_on_the_grid_is_not_tried_twice() -> None:
    points = candidates({"alpha": Range(0.0, 1.0)}, {"alpha": 0.5}, 6)
    assert [point["alpha"] for point in points] == [0.5, 0.0, 0.2, 0.4, 0.6, 0.8]


def test_log_range_has_equal_factors() -> None:
    points = candidates({"tie_s": Range(0.01, 1.0, is_log=True)}, {"tie_s": 7.0}, 4)
    assert [point["tie_s"] for point in points] == [7.0, 0.01, 0.1, 1.0]


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(6, 50))
def test_points_of_several_settings_fill_the_space(dimensions: int, count: int) -> None:
    names = [f"s{number}" for number in range(dimensions)]
    points = candidates(dict.fromkeys(names, Range(0.0, 1.0)), dict.fromkeys(names, 0.5), count)
    assert len(points) == count
    for name in names:
        tried = [point[name] for point in points[1:]]
        assert len(set(tried)) == count - 1
        # Even, but for the points between the number wanted and the next prime.
        assert abs(sum(value < 0.5 for value in tried) - (count - 1) / 2) <= 4
    quarters = {tuple(point[name] < 0.5 for name in names[:2]) for point in points[1:]}
    assert len(quarters) == 4


@given(st.floats(1e-6, 1e6), st.floats(1.001, 1e4), st.floats(0, 1), st.booleans())
def test_values_stay_within_their_range(
    low: float, factor: float, share: float, is_log: bool
) -> None:
    values = Range(low, low * factor, is_log)
    assert values.low <= values.at(share) <= values.high


def test_system_under_new_settings_has_a_name_that_says_them() -> None:
    system = with_settings(parse_system("coordinator:paper[alpha=0.2]+lpm"), {"alpha": 0.35})
    assert system.settings == {"alpha": 0.35}
    again = parse_system(system.name)
    assert (again.settings, again.engine, again.binding, again.dispatch) == (
        system.settings,
        system.engine,
        system.binding,
        system.dispatch,
    )
    paper = with_settings(PAPER, {"alpha": 0.7})
    assert parse_system(paper.name) == paper


def test_settings_of_coordinator_and_engines_go_where_their_names_say() -> None:
    changes = {"caution": 2.0, "working_set": 2.5, "ordering.best_effort_slack_s": 12.0}
    system = with_settings(HEXGEN, changes)
    assert system.settings == {"caution": 2.0}
    assert system.working_set == 2.5
    assert system.engine.ordering_settings == (("best_effort_slack_s", 12.0),)
    assert system.name.endswith("working_set=2.5]+hexgen[best_effort_slack_s=12]")
    again = parse_system(system.name)
    assert again == system
    assert {name: known_settings(again)[name] for name in changes} == changes
    back = with_settings(again, {"ordering.best_effort_slack_s": 30.0})
    assert back.engine == HEXGEN.engine


@pytest.mark.parametrize(
    "name",
    [
        "hexgen",
        "coordinator:marginal_cost+hexgen[ordering=urgency;hold=off;retain=0.5;prewarm=0.25]",
        "coordinator:paper+hexgen[best_effort_slack_s=6;hold=off]",
        "coordinator:earliest_completion[working_set=0]+lpm",
    ],
)
def test_every_point_of_a_space_has_a_name_that_is_read_back(name: str) -> None:
    system = parse_system(name)
    space = search_space(system, [])
    for point in candidates(space, default_settings(system, space), 5):
        tried = with_settings(system, point)
        assert parse_system(tried.name) == tried


def test_every_setting_of_hexgen_is_searched() -> None:
    space = search_space(HEXGEN, [])
    known = set(known_settings(HEXGEN))
    assert known - set(space) == {"may_wait"} | {
        name for name in known if name.startswith("default_")
    }
    assert {"working_set", "ordering.best_effort_slack_s"} < set(space)
    assert search_space(HEXGEN, ["ordering.best_effort_slack_s=5:50:log", "working_set"]) == {
        "ordering.best_effort_slack_s": Range(5.0, 50.0, is_log=True),
        "working_set": Range(0.5, 4.0, is_log=True),
    }


def test_a_setting_in_seconds_is_searched_around_what_the_system_has() -> None:
    system = parse_system("coordinator:marginal_cost+hexgen[best_effort_slack_s=6]")
    space = search_space(system, ["ordering.best_effort_slack_s"])
    assert space == {"ordering.best_effort_slack_s": Range(1.5, 24.0, is_log=True)}


def test_no_limit_and_no_slack_are_left_as_they_are() -> None:
    system = parse_system("coordinator:marginal_cost[working_set=0]+hexgen[best_effort_slack_s=0]")
    assert not {"working_set", "ordering.best_effort_slack_s"} & set(search_space(system, []))
    with pytest.raises(ConfigError, match="its value 0 suggests no range"):
        search_space(system, ["ordering.best_effort_slack_s"])


def test_settings_of_the_system_are_its_default() -> None:
    system = parse_system("coordinator:paper[alpha=0.2]+fcfs")
    assert default_settings(system, search_space(system, [])) == {"alpha": 0.2}


def test_setting_without_a_declared_range_is_searched_around_its_default() -> None:
    space = search_space(PAPER, ["default_output_tokens"])
    assert space == {"default_output_tokens": Range(32.0, 512.0, is_log=True)}


@pytest.mark.parametrize(
    ("system", "wanted", "message"),
    [
        ("paper", ["beta"], "'beta'.*alpha"),
        ("paper", ["alpha=0.1"], "name=low:high"),
        ("paper", ["alpha=x:1"], "name=low:high"),
        ("paper", ["alpha=0.9:0.1"], "smaller first"),
        ("paper", ["alpha=0:0.5:log"], "above 0"),
        ("paper", ["alpha=0:0.5:lin"], "name=low:high"),
        ("paper", ["alpha=0:nan"], "smaller first"),
        ("paper", ["alpha=0.1:1.5"], r"alpha=1.5: must be between 0 and 1"),
        ("paper", ["alpha", "alpha=0.1:0.2"], "twice"),
        ("coordinator:round_robin+fcfs", [], "nothing to search"),
        ("paper", ["working_set"], "'working_set'.*alpha"),
        ("coordinator:marginal_cost+lpm", ["ordering.best_effort_slack_s"], "has the settings"),
        ("hexgen", ["ordering.best_effort_slack_s=-1:5"], "best_effort_slack_s=-1"),
        ("hexgen", ["working_set=0.5:2000"], "0 to 1000"),
        ("lpm+round_robin", [], "only a coordinator"),
        ("sglang-router:cache_aware+lpm", [], "only a coordinator"),
    ],
)
def test_what_cannot_be_searched_is_refused(system: str, wanted: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search_space(parse_system(system), wanted)


def test_one_candidate_is_no_search() -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        candidates({"alpha": Range(0.0, 1.0)}, {"alpha": 0.4}, 1)


def test_range_is_finite() -> None:
    with pytest.raises(ConfigError, match="finite"):
        Range(0.0, math.inf)
