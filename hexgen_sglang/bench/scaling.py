"""Settings in real seconds from settings in emulated ones.

A time scale of N makes an emulated worker N times as fast, so every duration that a policy
is given shrinks and every rate grows. Which settings are durations or rates is told by their
names, as everywhere in this project: `_s`, `_per_s`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hexgen_sglang.policies.registry import PolicyRegistry


def scaled_settings(
    registry: PolicyRegistry[Any], name: str, given: Mapping[str, float], time_scale: float
) -> dict[str, float]:
    """All settings of a policy, defaults included, for a run at `time_scale`.

    Raises:
        ConfigError: the policy is unknown.
    """
    settings = {**registry.defaults(name), **given}
    return {setting: _scaled(setting, value, time_scale) for setting, value in settings.items()}


def _scaled(setting: str, value: float, time_scale: float) -> float:
    if setting.endswith("_per_s"):
        return value * time_scale
    if setting.endswith("_s"):
        return value / time_scale
    return value
