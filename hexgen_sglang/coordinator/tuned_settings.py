"""What a tuner may change while a coordinator serves, live or simulated, as one set of settings.

The dispatch policy's settings; the working set, where there is one; and the ordering settings,
by which the central queue and the engines order alike. The working set can be changed safely:
the dispatcher compares with the limit at each look, workflows that have begun never wait for it,
and a lower one only lets fewer begin. It is left alone where there is none (0, or early binding),
since workflows are counted from their beginning and nobody counted those in progress.
Which ordering policy there is, and what engines take when they start, does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.coordinator.queue import CentralQueue
from hexgen_sglang.coordinator.tuning_messages import (
    ORDERING_PREFIX,
    WORKING_SET,
    split_ordering,
)
from hexgen_sglang.coordinator.working_set import WorkingSet
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.policies.dispatch import DISPATCH, Candidate, DispatchPolicy, Price
from hexgen_sglang.policies.ordering import ORDERING

TellEngines = Callable[[str, dict[str, float]], None]


class AdjustablePolicy:
    """A dispatch policy whose settings can change between two decisions.

    What else a dispatcher reads of a policy does not depend on settings and is passed on.
    """

    def __init__(self, name: str, settings: dict[str, float]) -> None:
        self._name = name
        self._policy: DispatchPolicy = DISPATCH.create(name, **settings)
        self.settings: dict[str, float] = {**DISPATCH.defaults(name), **settings}

    def pick(self, request: RequestView, candidates: Sequence[Candidate]) -> str | None:
        """As the policy under the settings in force."""
        return self._policy.pick(request, candidates)

    @property
    def price_terms(self) -> tuple[str, ...]:
        """As of the policy."""
        return self._policy.price_terms

    @property
    def prices(self) -> tuple[Price, ...]:
        """As of the policy under the settings in force."""
        return self._policy.prices

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._policy, name)

    def adjust(self, settings: dict[str, float]) -> None:
        """Use other values for some settings from now on; the policy's state begins anew.

        Raises:
            ConfigError: the policy refuses them; nothing changes.
        """
        merged = {**self.settings, **settings}
        self._policy = DISPATCH.create(self._name, **merged)
        self.settings = merged


class TunedSettings:
    """The settings in force, by the names that searches use.

    Args:
        config: the coordinator's.
        policy: its dispatch policy.
        working_set: of the dispatcher.
        queue: the central queue.
        tell_engines: has the engines use settings of the ordering policy; None where they must
            be left alone.
        on_change: told after each change.

    Attributes:
        ordering: the central queue's policy, the engines' too where they are told.
        ordering_settings: of the central queue.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        policy: AdjustablePolicy,
        working_set: WorkingSet,
        queue: CentralQueue,
        tell_engines: TellEngines | None,
        on_change: Callable[[], None],
    ) -> None:
        self.ordering = config.ordering
        self.ordering_settings: dict[str, float] = {
            **ORDERING.defaults(config.ordering),
            **config.ordering_settings,
        }
        self._has_working_set = config.binding == "late"
        self._policy = policy
        self._working_set = working_set
        self._queue = queue
        self._tell_engines = tell_engines
        self._on_change = on_change

    @property
    def reaches_engines(self) -> bool:
        """Whether ordering settings can be changed, which engines must follow."""
        return self._tell_engines is not None

    def in_force(self) -> dict[str, float]:
        """Every setting that a search may know of, with its value; a working set of 0 stays."""
        known = dict(self._policy.settings)
        if self._has_working_set:
            known[WORKING_SET] = self._working_set.limit
        if self.reaches_engines:
            for name, value in self.ordering_settings.items():
                known[ORDERING_PREFIX + name] = value
        return known

    def change(self, settings: dict[str, float]) -> None:
        """Use these values from now on, all or none.

        Raises:
            ConfigError: there is no such setting here, or its value is refused; nothing changes.
        """
        own, rest = split_ordering(settings)
        ordering_settings = {**self.ordering_settings, **own}
        ordering = ORDERING.create(self.ordering, **ordering_settings)
        if own and self._tell_engines is None:
            raise ConfigError(f"{', '.join(own)}: engines must be left alone here")
        limit = rest.pop(WORKING_SET, self._working_set.limit)
        if WORKING_SET in settings and not (self._working_set.limit and 0 < limit <= 1_000):
            raise ConfigError(
                f"{WORKING_SET}={limit}: must be above 0, at most 1000, and there must be a limit"
            )
        self._policy.adjust(rest)
        self._working_set.limit = limit
        if ordering_settings != self.ordering_settings and self._tell_engines is not None:
            self.ordering_settings = ordering_settings
            self._queue.use(ordering)
            self._tell_engines(self.ordering, ordering_settings)
        self._on_change()
