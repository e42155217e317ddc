"""`retain=SHARE` and `prewarm=SHARE` of a system's engine: what they become, what is refused."""

from __future__ import annotations

import pytest

from hexgen_sglang.bench.systems import parse_system
from hexgen_sglang.core.errors import ConfigError


def test_a_share_of_the_memory_is_set_aside_for_kept_prefixes() -> None:
    plain = parse_system("coordinator:marginal_cost+hexgen").engine
    asked = parse_system("coordinator:marginal_cost+hexgen[retain=0.5]").engine
    assert (plain.retained_share, asked.retained_share) == (0.0, 0.5)
    assert plain.name != asked.name  # or they would share running workers


def test_both_shares_are_settings_of_their_own() -> None:
    names = ("retain=0.5", "prewarm=0.5", "retain=0.5;prewarm=0.2", "prewarm=0.2")
    engines = [parse_system(f"coordinator:marginal_cost+hexgen[{name}]").engine for name in names]
    assert [(one.retained_share, one.prewarm_share) for one in engines] == [
        (0.5, 0.0),
        (0.0, 0.5),
        (0.5, 0.2),
        (0.0, 0.2),
    ]
    assert len({one.name for one in engines}) == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coordinator:marginal_cost+hexgen[retain=2]", "retain=2: must be a number from 0 to 1"),
        ("coordinator:marginal_cost+hexgen[retain=on]", "retain=on: must be a number from 0 to 1"),
        ("coordinator:marginal_cost[link=off]+hexgen[retain=0.5]", "needs link=on"),
        ("hexgen[retain=0.5]+round_robin", "retain=0.5: needs a coordinator"),
        ("coordinator:marginal_cost+lpm[retain=0.5]", "has no retain"),
        ("coordinator:marginal_cost+hexgen[prewarm=2]", "prewarm=2: must be a number from 0 to 1"),
        ("coordinator:marginal_cost[link=off]+hexgen[prewarm=0.5]", "prewarm=0.5: needs link=on"),
        ("hexgen[prewarm=0.5]+round_robin", "prewarm=0.5: needs a coordinator"),
    ],
)
def test_a_share_that_nobody_would_use_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_system(name)
