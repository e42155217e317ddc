"""Names, settings and the errors that tell which of them is wrong."""

from __future__ import annotations

import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.policies.registry import PolicyRegistry


@pytest.fixture
def registry():
    registry = PolicyRegistry("ordering")

    @registry.register("second")
    class Second:
        def __init__(self, weight: float = 2.0) -> None:
            if weight < 0:
                raise ConfigError(f"weight={weight}: must be at least 0")
            self.weight = weight

    @registry.register("first")
    class First:
        pass

    return registry


def test_policies_are_made_by_name_with_defaults_or_settings(registry):
    assert registry.create("second").weight == 2.0
    assert registry.create("second", weight=3.5).weight == 3.5
    assert registry.create("second") is not registry.create("second")


def test_names_are_listed_in_order(registry):
    assert list(registry) == ["first", "second"]
    assert "first" in registry
    assert "third" not in registry


def test_an_unknown_name_is_told_with_the_known_ones(registry):
    with pytest.raises(ConfigError, match=r"ordering policy 'third' is unknown; known: first, se"):
        registry.create("third")


def test_an_unknown_setting_is_told_with_its_name(registry):
    with pytest.raises(ConfigError, match=r"ordering policy 'second'.*'colour'"):
        registry.create("second", colour=1)
    with pytest.raises(ConfigError, match=r"ordering policy 'first'"):
        registry.create("first", weight=1)


def test_a_policy_rejects_its_own_settings(registry):
    with pytest.raises(ConfigError, match="weight=-1: must be at least 0"):
        registry.create("second", weight=-1)


def test_a_name_is_given_once(registry):
    with pytest.raises(ConfigError, match="'first' is registered twice"):
        registry.register("first")(object)
