"""Retention: prefixes that a worker keeps, or computes ahead, for workflows to come back. Pure."""

from hexgen_sglang.policies.retention.ahead import AheadTotals, PrefixesAhead
from hexgen_sglang.policies.retention.gaps import StageGaps
from hexgen_sglang.policies.retention.known import KnownPrefixes
from hexgen_sglang.policies.retention.next_stages import NextStages
from hexgen_sglang.policies.retention.prefixes import PrefixRetention, RetentionTotals

__all__ = [
    "AheadTotals",
    "KnownPrefixes",
    "NextStages",
    "PrefixRetention",
    "PrefixesAhead",
    "RetentionTotals",
    "StageGaps",
]
