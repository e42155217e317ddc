"""The stage budget of HexGen-Flow: a share of what is left, by expected time.

Rule: (SLO - elapsed) x t_stage / (t_stage + expected time of the stages still to come).
When to choose it: to tell how far a stage may go before it eats the time of later ones.
Reads (and how fresh): the workflow's deadline, and means learned from ended workflows.
Cost: constant.
Trade-offs: a workflow that is late already gets a budget of 0 for every stage.
"""

from __future__ import annotations


def stage_budget_s(left_s: float, stage_s: float, remaining_after_s: float) -> float:
    """Seconds granted to a stage that starts now.

    Args:
        left_s: deadline minus now; may be negative.
        stage_s: expected seconds of the stage, at least 0.
        remaining_after_s: expected seconds of what follows it, at least 0.

    Returns:
        At least 0; all that is left when neither time is known to be above 0.
    """
    left_s = max(0.0, left_s)
    expected_s = stage_s + remaining_after_s
    return left_s * stage_s / expected_s if expected_s > 0 else left_s
