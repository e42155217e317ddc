"""Urgency, as HexGen-Flow orders the queue of each instance.

Rule: urgency = t + waited - stage budget, the most urgent first, where t is the expected
time of the stage and the stage budget is the share t / (t + expected time of the stages
still to come) of what was left until the deadline when the request arrived. `waited` grows
alike for all, so the key is arrival + stage budget - t. Without a deadline the stage budget
is taken as `best_effort_slack_s` + t.
When to choose it: to compare with the published system (it is half of `paper`).
Reads (and how fresh): the tag's deadline; stage and remaining times as predicted when the
request was sent. While nothing is known of a stage its budget is all that is left.
Cost: constant for each request; keys do not change while a request waits.
Trade-offs: orders by the stage's own budget, so a workflow that lost time early gets smaller
budgets later and moves forward; a long stage goes before a short one of equal slack. Nobody
starves: keys are absolute instants.
"""

from __future__ import annotations

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.policies.deadlines import stage_budget_s
from hexgen_sglang.policies.ordering.base import ORDERING
from hexgen_sglang.policies.settings import at_least


@ORDERING.register("urgency")
class Urgency:
    """Rank by the instant at which urgency reaches zero.

    Args:
        best_effort_slack_s: slack at arrival assumed for requests without a deadline;
            at least 0, finite.

    Raises:
        ConfigError: the setting is out of range.
    """

    def __init__(self, best_effort_slack_s: float = 30.0) -> None:
        self.best_effort_slack_s = at_least("best_effort_slack_s", best_effort_slack_s, 0.0)

    def sort_key(self, request: RequestView) -> tuple[float, ...]:
        """Arrival + stage budget - expected seconds of the stage."""
        if request.deadline_s is None:
            return (request.arrival_s + self.best_effort_slack_s,)
        stage_s = request.predicted_stage_s
        later_s = max(0.0, request.predicted_remaining_s - stage_s)
        budget_s = stage_budget_s(request.deadline_s - request.arrival_s, stage_s, later_s)
        return (request.arrival_s + budget_s - stage_s,)
