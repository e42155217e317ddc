"""Estimators: predict seconds and lengths from what was observed. Online, pure, bounded.

They are told of ends and ask no clock; the coordinator feeds them and puts their answers into
request and worker views, so that policies need not know where a number came from.
"""

from hexgen_sglang.policies.estimators.alone import AlonePaths, PathWork
from hexgen_sglang.policies.estimators.averages import BoundedTable, DecayedRate, RunningMean
from hexgen_sglang.policies.estimators.chain import Remaining, StageChains, Step
from hexgen_sglang.policies.estimators.errors import EstimateError, EstimateErrors
from hexgen_sglang.policies.estimators.prefixes import PrefixMemory
from hexgen_sglang.policies.estimators.prompt_length import PromptLengths
from hexgen_sglang.policies.estimators.quantiles import Quantiles
from hexgen_sglang.policies.estimators.stages import RemainingWork, StageEstimates, StageVisit
from hexgen_sglang.policies.estimators.step_costs import StepCostFit
from hexgen_sglang.policies.estimators.worker_costs import WorkerCosts, profile_costs
from hexgen_sglang.policies.estimators.worker_rates import Rates, WorkerRates

__all__ = [
    "AlonePaths",
    "BoundedTable",
    "DecayedRate",
    "EstimateError",
    "EstimateErrors",
    "PathWork",
    "PrefixMemory",
    "PromptLengths",
    "Quantiles",
    "Rates",
    "Remaining",
    "RemainingWork",
    "RunningMean",
    "StageChains",
    "StageEstimates",
    "StageVisit",
    "Step",
    "StepCostFit",
    "WorkerCosts",
    "WorkerRates",
    "profile_costs",
]
