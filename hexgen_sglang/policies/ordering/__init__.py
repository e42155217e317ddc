"""Ordering policies: rank one queue. `ORDERING` is their registry."""

from hexgen_sglang.policies.ordering import arrival, least_slack, urgency  # noqa: F401  (they register)
from hexgen_sglang.policies.ordering.base import ORDERING, OrderingPolicy, total_order_key

__all__ = ["ORDERING", "OrderingPolicy", "total_order_key"]
