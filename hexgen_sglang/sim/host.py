"""What the host of an emulated or real cluster adds to the accelerators' own time.

A simulation without them is of a host that takes no time. Measured ones are in the JSON of a
bench, as `results.schema.HostCosts`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.plugin.step_timer import INTERVAL_S as STEP_TIMES_INTERVAL_S
from hexgen_sglang.results.schema import HostCosts


@dataclass(frozen=True, slots=True)
class Delays:
    """How late news are.

    Attributes:
        report_s: from an engine to the coordinator, over the link.
        min_interval_s: between two load reports of an engine.
        costs_interval_s: between two reports of what its steps cost.
    """

    report_s: float = 0.002
    min_interval_s: float = 0.05
    costs_interval_s: float = STEP_TIMES_INTERVAL_S


@dataclass(frozen=True, slots=True)
class HostTimes:
    """Seconds of the host; all finite and at least 0.

    Attributes:
        to_engine_s: of a request from the driver to the engine's queue, a coordinator's queue
            apart (HTTP, tokens).
        back_s: of an answer from the end of its step to the driver.
        send_s: of the driver for each request; siblings leave it one after the other.
        step_s: of each step, which the accelerator has to wait for, by worker name; a worker
            that is not named has none.
        delays: of reports to the coordinator.

    Raises:
        ConfigError: a value is out of range.
    """

    to_engine_s: float = 0.0
    back_s: float = 0.0
    send_s: float = 0.0
    step_s: Mapping[str, float] = field(default_factory=dict)
    delays: Delays = field(default_factory=Delays)

    def __post_init__(self) -> None:
        values = {f"step_s[{name}]": value for name, value in self.step_s.items()}
        values |= {"to_engine_s": self.to_engine_s, "back_s": self.back_s, "send_s": self.send_s}
        for name, value in values.items():
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name}={value}: must be finite and at least 0")

    @classmethod
    def measured(cls, costs: HostCosts) -> HostTimes:
        """As a bench measured them; its reports were late by real time, too."""
        usual, scale = Delays(), costs.time_scale
        return cls(
            to_engine_s=costs.to_engine_s,
            back_s=costs.back_s,
            send_s=costs.send_s,
            step_s=costs.step_s,
            delays=Delays(
                usual.report_s * scale,
                usual.min_interval_s * scale,
                usual.costs_interval_s * scale,
            ),
        )
