"""What may run beside a simulated coordinator: it makes the dispatch policy and sees every end.

So a tuner, which knows the simulator, can be simulated without the simulator knowing it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.coordinator.tuned_settings import AdjustablePolicy, TunedSettings
from hexgen_sglang.coordinator.workflows import Workflow
from hexgen_sglang.policies.dispatch import DISPATCH, DispatchPolicy
from hexgen_sglang.sim.clock import EventQueue

# A dispatcher whose policy is adjustable, with what else can be changed beside it.
SettingsOf = Callable[[AdjustablePolicy], TunedSettings]


class Beside(Protocol):
    """One object for one run."""

    def begin(self, config: CoordinatorConfig, events: EventQueue) -> DispatchPolicy:
        """The run begins: the policy that its dispatcher asks."""
        ...

    def serving(self, settings_of: SettingsOf) -> None:
        """The coordinator is built, right after `begin`: all that may be changed in it."""
        ...

    def ended(self, workflow: Workflow) -> None:
        """A workflow is over."""
        ...


class Nobody:
    """The policy of the configuration, and nothing else."""

    def begin(self, config: CoordinatorConfig, events: EventQueue) -> DispatchPolicy:
        """As configured."""
        return DISPATCH.create(config.dispatch, **config.dispatch_settings)

    def serving(self, settings_of: SettingsOf) -> None:
        """Nothing."""

    def ended(self, workflow: Workflow) -> None:
        """Nothing."""
