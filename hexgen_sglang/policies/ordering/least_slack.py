"""Least slack of the whole workflow first.

Rule: rank by the instant at which a workflow can no longer meet its deadline (deadline minus
predicted remaining seconds). A request without a deadline ranks as if its slack at arrival
had been `best_effort_slack_s`, so best-effort requests keep their order of arrival. Siblings of
one stage have one rank, to within `_SAME_S`: the one with the longest prompt goes first, since
the stage ends with its slowest, and templates that are longer ask for longer answers.
When to choose it: deadlines differ, or workflows are at different distances from their end.
Reads (and how fresh): the tag's deadline (fixed at arrival) and the predicted remaining time
(as of the last estimate sent with the request).
Cost: constant for each request; keys do not change while a request waits.
Trade-offs: under lasting overload hopeless workflows stay in front of feasible ones. Nobody
starves: every request, tagged or not, ranks by an absolute instant that comes nearer.
"""

from __future__ import annotations

import math

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.policies.ordering.base import ORDERING

# Deadlines of siblings differ by the time that it takes to send them.
_SAME_S = 0.05


@ORDERING.register("least_slack")
class LeastSlack:
    """Rank by latest start instant.

    Args:
        best_effort_slack_s: slack at arrival assumed for requests without a deadline;
            at least 0, finite.

    Raises:
        ConfigError: the setting is out of range.
    """

    def __init__(self, best_effort_slack_s: float = 30.0) -> None:
        if not math.isfinite(best_effort_slack_s) or best_effort_slack_s < 0:
            raise ConfigError(
                f"best_effort_slack_s={best_effort_slack_s}: must be a finite number >= 0"
            )
        self.best_effort_slack_s = best_effort_slack_s

    def sort_key(self, request: RequestView) -> tuple[float, ...]:
        """Latest start instant, in twentieths of a second, and the prompt's length."""
        latest_start_s = request.latest_start_s
        if latest_start_s is None:
            return (request.arrival_s + self.best_effort_slack_s, 0.0)
        return (round(latest_start_s / _SAME_S) * _SAME_S, -float(request.num_prompt_tokens))
