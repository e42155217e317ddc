"""Checks of policy settings: one wording for "name=value: must be ..."."""

from __future__ import annotations

import math

from hexgen_sglang.core.errors import ConfigError


def at_least(name: str, value: float, lowest: float) -> float:
    """`value` when it is finite and at least `lowest`.

    Raises:
        ConfigError: names setting, value and range.
    """
    if not math.isfinite(value) or value < lowest:
        raise ConfigError(f"{name}={value}: must be a finite number >= {lowest:g}")
    return float(value)


def positive(name: str, value: float) -> float:
    """`value` when it is finite and above 0.

    Raises:
        ConfigError: names setting, value and range.
    """
    if not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{name}={value}: must be a finite number > 0")
    return float(value)


def within(name: str, value: float, lowest: float, highest: float) -> float:
    """`value` when it lies in [lowest, highest].

    Raises:
        ConfigError: names setting, value and range.
    """
    if not (lowest <= value <= highest):
        raise ConfigError(f"{name}={value}: must be between {lowest:g} and {highest:g}")
    return float(value)
