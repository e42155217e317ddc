"""What may run beside a simulated coordinator: it makes the dispatch policy and sees every end.

So a tuner, which knows the simulator, can be simulated without the simulator knowing it.
"""

from __future__ import annotations

from typing import Protocol

from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.coordinator.workflows import Workflow
from hexgen_sglang.policies.dispatch import DISPATCH, DispatchPolicy
from hexgen_sglang.sim.clock import EventQueue


class Beside(Protocol):
    """One object for one run."""

    def begin(self, config: CoordinatorConfig, events: EventQueue) -> DispatchPolicy:
        """The run begins: the policy that its dispatcher asks."""
        ...

    def ended(self, workflow: Workflow) -> None:
        """A workflow is over."""
        ...


class Nobody:
    """The policy of the configuration, and nothing else."""

    def begin(self, config: CoordinatorConfig, events: EventQueue) -> DispatchPolicy:
        """As configured."""
        return DISPATCH.create(config.dispatch, **config.dispatch_settings)

    def ended(self, workflow: Workflow) -> None:
        """Nothing."""
