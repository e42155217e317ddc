"""A request inside a simulated engine: what was asked, and how far it is."""

from __future__ import annotations

from hexgen_sglang.core.request import RequestView
from hexgen_sglang.sim.prefix_cache import Node

OrderKey = tuple[tuple[float, ...], float, str]


class EngineRequest:
    """One request from its arrival in the engine to its last token.

    Attributes:
        view: what the plugin's ordering policies see; its request id is the engine's.
        segments: the prompt, as streams and lengths.
        num_prompt_tokens: its length.
        num_output_tokens: true output length; only the engine may ask.
        max_new_tokens: limit that the engine reserves memory for; at least the true length.
        ignores_eos: the limit is known to be reached, so that all of it is reserved.
        priority: SGLang's own; smaller is more urgent.
        arrival_s: when the engine got it; the order of arrival is `number`.
        queued_s: when its scheduler looked at it first, between two steps.
        node, num_cached_tokens: its prefix in the cache, locked while it runs.
        num_computed_tokens: prompt tokens with KV, cached ones included.
        num_private_tokens: KV slots of its own, not in the cache.
        num_made_tokens: output tokens whose step has ended.
        admitted_s, first_token_s: None before; `ended_s`: 0 before.
        num_retractions: times its running state was thrown away.
        order_key: by the plugin's policy; None until it was asked.
        is_ahead: nobody's request: a prefix that is computed ahead.
        processed_at_arrival: the engine's count of prefilled tokens when it came (for hrrn).
    """

    __slots__ = (
        "admitted_s",
        "arrival_s",
        "ended_s",
        "first_token_s",
        "ignores_eos",
        "is_ahead",
        "max_new_tokens",
        "node",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_made_tokens",
        "num_output_tokens",
        "num_private_tokens",
        "num_prompt_tokens",
        "num_retractions",
        "number",
        "order_key",
        "priority",
        "processed_at_arrival",
        "queued_s",
        "segments",
        "view",
    )

    def __init__(
        self,
        view: RequestView,
        segments: tuple[tuple[str, int], ...],
        num_output_tokens: int,
        *,
        max_new_tokens: int | None = None,
        priority: int = 0,
    ) -> None:
        self.view = view
        self.segments = segments
        self.num_prompt_tokens = sum(length for _, length in segments)
        self.num_output_tokens = num_output_tokens
        self.max_new_tokens = max_new_tokens or num_output_tokens
        self.ignores_eos = max_new_tokens is None
        self.priority = priority
        self.arrival_s = self.queued_s = self.ended_s = 0.0
        self.number = 0
        self.node: Node | None = None
        self.num_cached_tokens = 0
        self.num_computed_tokens = 0
        self.num_private_tokens = 0
        self.num_made_tokens = 0
        self.admitted_s: float | None = None
        self.first_token_s: float | None = None
        self.num_retractions = 0
        self.order_key: OrderKey | None = None
        self.processed_at_arrival = 0
        self.is_ahead = False

    @property
    def num_fill_tokens(self) -> int:
        """What a prefill has to cover: the prompt, and after a retraction what was made."""
        return self.num_prompt_tokens + self.num_made_tokens

    @property
    def fill(self) -> tuple[tuple[str, int], ...]:
        """The same as segments: output tokens are a stream of the request's own."""
        if not self.num_made_tokens:
            return self.segments
        return (*self.segments, (self.output_stream, self.num_made_tokens))

    @property
    def output_stream(self) -> str:
        """Name of the stream of its output tokens."""
        return f"output/{self.view.request_id}"

    @property
    def num_left(self) -> int:
        """Output tokens whose step has not ended."""
        return self.num_output_tokens - self.num_made_tokens
