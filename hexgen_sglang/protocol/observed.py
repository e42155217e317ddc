"""What the coordinator tells its tuner of a workflow that ended: lengths and times, no text.

Strict and bounded. It travels over a pipe between two processes of one machine, which share
the monotonic clock.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from hexgen_sglang.protocol.tag import FanOut, FanOutIndex, Name, NumTokens

MAX_REQUESTS = 2_048
# As `NumTokens` allows.
MAX_TOKENS = 1_048_576

Seconds = Annotated[float, Meta(ge=0, le=604_800)]


class ObservedRequest(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One completed LLM call.

    Attributes:
        stage: of its tag; None when it had none.
        start_s: acceptance, seconds after the workflow's first.
        end_s: end of its answer, seconds after the workflow's first acceptance.
        input_tokens, output_tokens: as the worker counted them.
        cached_tokens: of the input, found in the worker's prefix cache; None when not told.
        siblings, sibling_index: of its tag.
    """

    stage: Name | None
    start_s: Seconds
    end_s: Seconds
    input_tokens: NumTokens
    output_tokens: NumTokens
    cached_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    siblings: FanOut = 1
    sibling_index: FanOutIndex = 0

    def __post_init__(self) -> None:
        if self.end_s < self.start_s:
            raise ValueError(f"end_s={self.end_s}: must be at least start_s={self.start_s}")


class ObservedWorkflow(
    Struct,
    frozen=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    tag_field="type",
    tag="workflow",
):
    """One workflow that ended with every request completed.

    Attributes:
        workflow_type: of its tag; None when it had none.
        arrival_s: first request accepted, on the machine's monotonic clock.
        requests: at least 1.
        budget_s: deadline as a duration from the arrival; None: best effort.
        met: whether it was met; None without one.
    """

    workflow_type: Name | None
    arrival_s: Annotated[float, Meta(ge=0)]
    requests: Annotated[tuple[ObservedRequest, ...], Meta(min_length=1, max_length=MAX_REQUESTS)]
    budget_s: Annotated[float, Meta(gt=0, le=604_800)] | None = None
    met: bool | None = None

    @property
    def end_s(self) -> float:
        """End of its last request, on the same clock."""
        return self.arrival_s + max(request.end_s for request in self.requests)
