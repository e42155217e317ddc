"""Estimators: predict seconds and lengths from what was observed. Online, pure, bounded.

They are told of ends and ask no clock; the coordinator feeds them and puts their answers into
request and worker views, so that policies need not know where a number came from.
"""

from hexgen_sglang.policies.estimators.averages import BoundedTable, DecayedRate, RunningMean
from hexgen_sglang.policies.estimators.prefixes import PrefixMemory
from hexgen_sglang.policies.estimators.prompt_length import PromptLengths
from hexgen_sglang.policies.estimators.stages import StageEstimates, StageVisit
from hexgen_sglang.policies.estimators.worker_rates import Rates, WorkerRates

__all__ = [
    "BoundedTable",
    "DecayedRate",
    "PrefixMemory",
    "PromptLengths",
    "Rates",
    "RunningMean",
    "StageEstimates",
    "StageVisit",
    "WorkerRates",
]
