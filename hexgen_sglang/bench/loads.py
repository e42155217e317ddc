"""The loads of a bench: rates in workflows per second, or as a share of the capacity bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hexgen_sglang.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Load:
    """One arrival rate.

    Attributes:
        label: as the user wrote it, e.g. "0.2" or "60%".
        rate_per_s: workflows per emulated second, above 0.
    """

    label: str
    rate_per_s: float


def parse_loads(text: str, capacity_per_s: float) -> list[Load]:
    """Loads from a list separated by commas: `0.2` (workflows per second) or `60%`.

    Args:
        text: what the user wrote.
        capacity_per_s: what 100 % is; see `workload/capacity.py`.

    Raises:
        ConfigError: names the value and the allowed range.
    """
    loads = [_load(part.strip(), capacity_per_s) for part in text.split(",") if part.strip()]
    if not loads:
        raise ConfigError(f"rate={text!r}: must name at least one rate")
    rates = [load.rate_per_s for load in loads]
    if len(set(rates)) < len(rates):
        raise ConfigError(f"rate={text!r}: two of them are the same")
    return loads


def _load(part: str, capacity_per_s: float) -> Load:
    is_share = part.endswith("%")
    try:
        number = float(part.removesuffix("%"))
    except ValueError as error:
        raise ConfigError(f"rate={part!r}: must be a number, or a share such as 60%") from error
    if not (math.isfinite(number) and number > 0):
        raise ConfigError(f"rate={part!r}: must be finite and above 0")
    return Load(part, number / 100 * capacity_per_s if is_share else number)
