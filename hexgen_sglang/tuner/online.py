"""The tuner beside a simulated coordinator: the live window, search and rule on the virtual clock.

What runs beside a real one (`shadow`) is fed by the simulated coordinator and changes its policy
as `coordinator.tuning` does. A search takes the virtual time that is stated for it, since a real
one goes on while requests come and go.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.coordinator.tuned_settings import AdjustablePolicy, TunedSettings
from hexgen_sglang.coordinator.tuning import observed_workflow
from hexgen_sglang.coordinator.tuning_config import TuningConfig
from hexgen_sglang.coordinator.tuning_messages import Crew, CrewMember, Said, Start
from hexgen_sglang.coordinator.workflows import Workflow
from hexgen_sglang.policies.dispatch import DispatchPolicy
from hexgen_sglang.sim.beside import SettingsOf
from hexgen_sglang.sim.clock import MESSAGE, EventQueue
from hexgen_sglang.tuner.shadow import Shadow


@dataclass(slots=True)
class SimulatedTuner:
    """One run's tuner; `simulate` takes it as `SimSettings.beside`.

    Attributes:
        tuning: as of `[coordinator.tuning]`; in mode "off" nothing is searched.
        hardware: of every worker.
        num_workflows: of the run; after the last one no search is begun.
        search_s: virtual seconds from the start of a search to its answer; at least 0.
        said: what it said, with the instant.
    """

    tuning: TuningConfig
    hardware: tuple[str, ...]
    num_workflows: int
    search_s: float = 10.0
    said: list[tuple[float, Said]] = field(default_factory=list)
    _shadow: Shadow | None = field(default=None, init=False)
    _config: CoordinatorConfig | None = field(default=None, init=False)
    _policy: AdjustablePolicy | None = field(default=None, init=False)
    _tuned: TunedSettings | None = field(default=None, init=False)
    _events: EventQueue | None = field(default=None, init=False)
    _num_ended: int = field(default=0, init=False)

    @property
    def num_changes(self) -> int:
        """Settings put into force, returns included."""
        return sum(said.kind in ("apply", "return") for _, said in self.said)

    def begin(self, config: CoordinatorConfig, events: EventQueue) -> DispatchPolicy:
        """A policy whose settings can change."""
        self._config, self._events = config, events
        self._policy = AdjustablePolicy(config.dispatch, config.dispatch_settings)
        return self._policy

    def serving(self, settings_of: SettingsOf) -> None:
        """What is changed with the policy; the first search comes in a while."""
        if self.tuning.mode == "off":
            return
        assert self._config is not None
        assert self._policy is not None
        assert self._events is not None
        config, events = self._config, self._events
        tuned = self._tuned = settings_of(self._policy)
        self._shadow = Shadow(
            Start(self.tuning, config.dispatch, config.binding, tuned.in_force(), tuned.ordering)
        )
        self._shadow.take(Crew(tuple(CrewMember(name, 1.0) for name in self.hardware)))
        events.at(events.now_s + self.tuning.every_s, MESSAGE, self._search)

    def ended(self, workflow: Workflow) -> None:
        """The window takes it in; a change that it condemns is taken back."""
        self._num_ended += 1
        observed = observed_workflow(workflow)
        if self._shadow is not None and observed is not None:
            self._hear(self._shadow.take(observed))

    def _search(self) -> None:
        """Search on what is known now; the answer comes later."""
        assert self._shadow is not None
        assert self._events is not None
        if self._num_ended >= self.num_workflows:
            return
        events = self._events
        answer_s = events.now_s + self.search_s
        said = self._shadow.search(lambda: answer_s)
        events.at(answer_s, MESSAGE, lambda: self._hear(said))
        events.at(answer_s + self.tuning.every_s, MESSAGE, self._search)

    def _hear(self, said: Said | None) -> None:
        """Keep what was said, and do it."""
        if said is None:
            return
        assert self._tuned is not None
        assert self._events is not None
        self.said.append((self._events.now_s, said))
        if said.kind in ("apply", "return"):
            self._tuned.change(said.settings)
