"""Dispatch policies: which worker takes a request. `DISPATCH` is their registry."""

from hexgen_sglang.policies.dispatch import (  # noqa: F401  (they register)
    earliest_completion,
    hexgen_lite,
    least_load,
    least_requests,
    least_tokens,
    marginal_cost,
    paper,
    round_robin,
)
from hexgen_sglang.policies.dispatch.base import DISPATCH, Candidate, DispatchPolicy, Price

__all__ = ["DISPATCH", "Candidate", "DispatchPolicy", "Price"]
