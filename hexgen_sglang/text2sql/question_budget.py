"""One question's budget: what there is still time for, and what was left out. No clock of its own.

The rule is in `budget.py`; here: which decisions were taken by it, for the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hexgen_sglang.text2sql import budget
from hexgen_sglang.text2sql.budget import Dropped, Knob, Phase, Plan, StageTimes
from hexgen_sglang.text2sql.settings import AgentSettings


class QuestionBudget:
    """Decides before each stage how much of it is done.

    Args:
        settings: how much to do, at most.
        remaining_s: seconds left until the deadline, None without one.
        times: what stages took so far.

    Attributes:
        model: for the requests to come; None: the usual one.
        skipped, dropped: as in `Answer`.
    """

    def __init__(
        self,
        settings: AgentSettings,
        remaining_s: Callable[[], float | None],
        times: StageTimes,
    ) -> None:
        self._fallback_model = settings.fallback_model
        self._wanted = budget.configured(settings)
        self._remaining_s = remaining_s
        self._times = times
        self._dropped: dict[Knob, Dropped] = {}
        self.skipped: list[str] = []
        self.model: str | None = None

    @property
    def dropped(self) -> tuple[Dropped, ...]:
        """The last decision on each knob that was taken down."""
        return tuple(self._dropped.values())

    def allows_linking(self) -> bool:
        """Whether the deadline has not passed before the first request."""
        plan = self._plan(Phase.LINK)
        is_late = plan.remaining_s is not None and plan.remaining_s <= 0
        if is_late:
            self.skipped.append(budget.LINK_SCHEMA)
        return not is_late

    def num_candidates(self) -> int:
        """How many parallel attempts, at least 1."""
        plan = self._plan(Phase.CANDIDATES)
        self._note(Knob.CANDIDATES, self._wanted.num_candidates, plan.knobs.num_candidates, plan)
        return plan.knobs.num_candidates

    def allows_round(self, num_made: int) -> bool:
        """Whether another round of correction, which is needed, is made."""
        num_left = self._wanted.num_rounds - num_made
        if num_left <= 0:
            return False
        plan = self._plan(Phase.REVISE, num_left)
        if plan.knobs.num_rounds > 0:
            return True
        self._note(Knob.ROUNDS, self._wanted.num_rounds, num_made, plan)
        self.skipped.append(budget.REVISE)
        return False

    def num_checks(self, stage: str) -> int:
        """How many unit tests are written (`GENERATE_UNIT_TEST`) or judged (`EVALUATE`)."""
        phase = Phase.TEST if stage == budget.GENERATE_UNIT_TEST else Phase.EVALUATE
        plan = self._plan(phase)
        number = plan.knobs.num_checks
        self._note(Knob.EVALUATIONS, self._wanted.num_checks, number, plan)
        if number < self._wanted.num_checks and number == 0:
            self.skipped.append(stage)
        return number

    def _plan(self, phase: Phase, num_rounds: int | None = None) -> Plan:
        wanted = self._wanted
        if num_rounds is not None:
            wanted = replace(wanted, num_rounds=num_rounds)
        plan = budget.plan(wanted, phase, self._remaining_s(), self._times, self._fallback_model)
        self.model = self._fallback_model if plan.knobs.uses_fallback else None
        if self.model is not None:
            self._note(Knob.MODEL, "the usual one", self.model, plan)
        return plan

    def _note(self, knob: Knob, configured: int | str, used: int | str, plan: Plan) -> None:
        if configured != used and plan.remaining_s is not None and plan.expected_s is not None:
            times = plan.remaining_s, plan.expected_s
            self._dropped[knob] = Dropped(knob, str(configured), str(used), *times)
