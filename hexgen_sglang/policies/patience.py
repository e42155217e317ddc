"""When a prefill waits for decodes that it would stall.

SGLang takes a prefill as soon as it fits, and everything that decodes there stands still
meanwhile; a prompt that has begun goes on in the next step, so that smaller chunks spare nobody
anything. What can be held back is a prompt that has not begun.

Rule: a prompt waits, for at most `patience` times its own prefill, while for some decode that
ends before that, in e seconds,

    own prefill s x (tightness of the decodes that end within e s) > own tightness x e

that is, while waiting for them costs its workflow less than stalling them costs theirs. A tail
of many decodes therefore goes first, and relaxed prompts wait for tight decodes, not the other
way round.
  tightness: predicted remaining work / time left until the deadline, from 0.02 to 10; a half for
    best effort. 1: the workflow has to be served without any wait from now on.
Reads (and how fresh): deadlines and predictions of the tags, step costs as measured. Cost: one
decode step's requests, for each waiting prompt. Pure; the plugin asks in SGLang's scheduler, the
simulator for its engines.
"""

from __future__ import annotations

from collections.abc import Iterable

from hexgen_sglang.core.request import RequestView

BEST_EFFORT_TIGHTNESS = 0.5
LEAST_TIGHTNESS, MOST_TIGHTNESS = 0.02, 10.0
# Output length of which nothing is known.
UNKNOWN_TOKENS = 128
MOST_PATIENCE = 1_000.0


def tightness(view: RequestView, now_s: float) -> float:
    """Share of the time left that the request's workflow has to be at work."""
    if view.deadline_s is None:
        return BEST_EFFORT_TIGHTNESS
    left_s = view.deadline_s - now_s
    if left_s <= 0:
        return MOST_TIGHTNESS
    return min(MOST_TIGHTNESS, max(LEAST_TIGHTNESS, view.predicted_remaining_s / left_s))


def decode_left_s(view: RequestView, num_made_tokens: int, step_s: float) -> float:
    """Seconds until a decode is expected to end, in steps of `step_s`; at least one step."""
    return step_s * max(1, (view.expected_output_tokens or UNKNOWN_TOKENS) - num_made_tokens)


def should_wait(
    own_s: float,
    own_tightness: float,
    waited_s: float,
    decodes: Iterable[tuple[float, float]],
    patience: float,
) -> bool:
    """Whether a prompt stays behind in this step.

    Args:
        own_s: seconds of its prefill.
        own_tightness: of its workflow.
        waited_s: seconds that it has waited in the engine.
        decodes: (seconds until it is expected to end, tightness) of everything that decodes.
        patience: the longest wait, in prefills of its own.
    """
    limit_s = patience * own_s - waited_s
    spared = 0.0
    for left_s, weight in sorted(decodes):
        if left_s > limit_s:
            return False
        spared += weight
        if own_s * spared > own_tightness * left_s:
            return True
    return False
