"""Deadlines: split what a workflow has left over its stages. Pure arithmetic."""

from hexgen_sglang.policies.deadlines.proportional import stage_budget_s

__all__ = ["stage_budget_s"]
