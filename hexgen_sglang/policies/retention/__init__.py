"""Retention: which cached prefixes a worker keeps for workflows that will come back. Pure."""

from hexgen_sglang.policies.retention.gaps import StageGaps
from hexgen_sglang.policies.retention.prefixes import PrefixRetention, RetentionTotals

__all__ = ["PrefixRetention", "RetentionTotals", "StageGaps"]
