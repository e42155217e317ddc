"""Decode steps of one batch taken together: how long they last, and where they can stop.

A step costs base + per request + per context token, and every context grows by one a step, so
n steps cost a polynomial of second degree in n.
"""

from __future__ import annotations

import math

from hexgen_sglang.core.accelerator import AcceleratorProfile, tokens_read
from hexgen_sglang.sim.engine_request import EngineRequest
from hexgen_sglang.sim.prefix_cache import repeated_tokens


class DecodeRun:
    """One or more decode steps of the same requests.

    Attributes:
        requests: in the batch.
        num_steps: taken together.
        num_repeated: context tokens that another request holds as well, where that matters.
        start_s, end_s: of all of them, once they run.
    """

    __slots__ = (
        "_context",
        "_first_s",
        "_growth_s",
        "end_s",
        "num_repeated",
        "num_steps",
        "requests",
        "start_s",
    )

    def __init__(self, requests: list[EngineRequest]) -> None:
        self.requests = requests
        self.num_steps = 1
        self.num_repeated = 0
        self.start_s = self.end_s = 0.0
        self._first_s = self._growth_s = 0.0
        self._context = 0

    def start(self, now_s: float, profile: AcceleratorProfile, overhead_s: float) -> None:
        """The first step starts; all results of the steps before are known."""
        num_requests = len(self.requests)
        context = 0
        for request in self.requests:
            context += request.num_prompt_tokens + request.num_made_tokens
        self._context = context
        cost = profile.decode
        num_read: float = context
        if cost.repeated_read_frac is not None:
            self.num_repeated = repeated_tokens([request.node for request in self.requests])
            num_read = tokens_read(profile, context, self.num_repeated)
        per_token_s = cost.per_1k_context_tokens_s.value / 1_000
        self._growth_s = per_token_s * num_requests
        self._first_s = (
            cost.base_s.value
            + cost.per_request_s.value * num_requests
            + per_token_s * num_read
            + overhead_s
        )
        self.start_s = now_s

    @property
    def mean_context(self) -> float:
        """Context tokens of the batch, on average over the steps."""
        return self._context + len(self.requests) * (self.num_steps - 1) / 2

    def seconds(self, num_steps: int) -> float:
        """Of the first so many steps."""
        return num_steps * self._first_s + self._growth_s * (num_steps * (num_steps - 1) / 2)

    def take(self, num_steps: int) -> None:
        """Take so many steps together."""
        self.num_steps = num_steps
        self.end_s = self.start_s + self.seconds(num_steps)

    def num_ended(self, instant_s: float) -> int:
        """Steps that have ended by an instant."""
        count = min(self.num_steps, self._steps_until(instant_s))
        while count and self.start_s + self.seconds(count) > instant_s:
            count -= 1
        return count

    def stop_after(self, instant_s: float) -> None:
        """End with the first step that ends at or after an instant, if not earlier."""
        count = max(1, self._steps_until(instant_s) - 1)
        while count < self.num_steps and self.start_s + self.seconds(count) < instant_s:
            count += 1
        if count < self.num_steps:
            self.take(count)

    def _steps_until(self, instant_s: float) -> int:
        """About the number of steps until an instant, not too few."""
        elapsed_s = instant_s - self.start_s
        a, b = self._growth_s / 2, self._first_s - self._growth_s / 2
        # The root of a x n^2 + b x n = elapsed, in the form that also holds for a = 0.
        return math.ceil(2 * elapsed_s / (math.sqrt(b * b + 4 * a * elapsed_s) + b)) + 1
