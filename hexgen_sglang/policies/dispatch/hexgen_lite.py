"""The marginal-cost score for stock SGLang workers: decided at arrival, by our own books alone.

Rule: as `marginal_cost`, over every worker, at the instant a request comes: urgency x (predicted
end there) + the delay it imposes on what is in flight there. It never waits for a worker.
When to choose it: workers without our plugin, behind a coordinator with `binding = "early"`;
their own queue orders what they have not started. `hexgen-lite` in the bench.
Reads (and how fresh): requests in flight (counted here); first tokens of streamed answers as
they pass, of others as predicted; rates of ended requests as seen over HTTP; limits from
`/server_info`, read once; prefixes by the coordinator's record; output lengths as learned;
deadlines. No load reports and no step times.
Cost: as `marginal_cost`.
Trade-offs: a wrong prediction stays, since nothing that was sent is placed again, and a deadline
that becomes tight later overtakes nobody in a stock engine. With workers that run the plugin
`marginal_cost` is better; below 90 % load the difference is small.
"""

from __future__ import annotations

from hexgen_sglang.policies.dispatch.base import DISPATCH
from hexgen_sglang.policies.dispatch.marginal_cost import MarginalCost


@DISPATCH.register("hexgen_lite")
class HexgenLite(MarginalCost):
    """The rule above.

    Args:
        prefix_trust, imposed_weight, sibling_cost_frac, early_sibling_weight, least_urgency,
        caution, default_output_tokens: as of `marginal_cost`, with its ranges.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        prefix_trust: float = 1.0,
        imposed_weight: float = 1.0,
        sibling_cost_frac: float = 0.05,
        early_sibling_weight: float = 0.6,
        least_urgency: float = 0.02,
        caution: float = 1.0,
        default_output_tokens: float = 128.0,
    ) -> None:
        super().__init__(
            prefix_trust,
            imposed_weight,
            sibling_cost_frac,
            early_sibling_weight,
            least_urgency,
            caution,
            default_output_tokens,
            may_wait=0.0,
        )
