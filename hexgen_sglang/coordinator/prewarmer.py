"""Sends the prefix of a workflow's next stage ahead, to the worker that will get the stage.

Between two stages the tools of a workflow run: time in which a worker can compute what the next
prompt will begin with. Knows what workers cannot: which stage is likely to come, where it would
be placed now, and what another worker had of the workflow. Whether it is worth a step there is the
worker's own decision (`policies.retention`). Runs in the coordinator and in the simulator.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from hexgen_sglang.coordinator.admission import request_view
from hexgen_sglang.coordinator.dispatcher import Dispatcher
from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.incoming import GENERATE, IncomingRequest
from hexgen_sglang.coordinator.live_request import Attempt, QueuedRequest
from hexgen_sglang.coordinator.prompt import PromptShape
from hexgen_sglang.coordinator.workflows import RequestRecord, Workflow
from hexgen_sglang.policies.retention import KnownPrefixes, NextStages
from hexgen_sglang.protocol.messages import MAX_PREWARMED_TOKENS, TOKENS_IN_A_PART, Prewarm

# A shorter pause is not worth a message: the next stage would be there before it.
_SHORTEST_GAP_S = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class KnownPrompt:
    """A prompt that was sent.

    Attributes:
        shape: its size and prefix.
        num_tokens: its length, estimated for text.
        content: the tokens themselves, where they may be sent to another worker.
    """

    shape: PromptShape
    num_tokens: int
    content: Any | None

    def in_common(self, other: KnownPrompt) -> int:
        """Tokens that both begin with, in whole blocks of the shape."""
        shared = 0
        for mine, theirs in zip(self.shape.blocks, other.shape.blocks, strict=False):
            if mine != theirs:
                break
            shared += 1
        return min(self.num_tokens, round(shared * self._tokens_in_a_block))

    def beginning(self, num_tokens: int) -> PromptShape:
        """The shape of its first so many tokens."""
        whole, size = self.shape, num_tokens / max(1, self.num_tokens)
        blocks = int(num_tokens / self._tokens_in_a_block) if whole.blocks else 0
        num_ids = num_tokens if whole.num_token_ids else 0
        num_chars = 0 if whole.num_token_ids else max(1, round(whole.num_chars * size))
        return PromptShape(1, num_chars, num_ids, whole.blocks[:blocks])

    @property
    def _tokens_in_a_block(self) -> float:
        units = self.shape.num_token_ids or self.shape.num_chars
        block = self.shape.units_in_a_block
        return self.num_tokens * block / max(1, units)


class _Next(QueuedRequest):
    """A request that is expected; it is never placed."""

    @property
    def is_placed(self) -> bool:
        return False

    def place(self, attempt: Attempt) -> None:
        raise AssertionError("an expected request was placed")


class Send(Protocol):
    """How a worker is told."""

    def __call__(
        self,
        worker_id: str,
        workflow_id: str,
        stage: str,
        ttl_s: float,
        content: Any | None,
        num_tokens: int,
    ) -> None:
        """Have the worker compute `num_tokens` of `content`; None: of what it knows itself."""
        ...


class Prewarmer:
    """Follows the prompts of workflows whose workers prewarm.

    Args:
        send: tells a worker; must not wait.
        prewarms: whether the worker with that id does; others are not told anything.
        content_of: the tokens of a request's prompt, or None.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        estimates: Estimates,
        send: Send,
        prewarms: Callable[[str], bool],
        content_of: Callable[[QueuedRequest], Any | None],
    ) -> None:
        self._dispatcher = dispatcher
        self._estimates = estimates
        self._send = send
        self._prewarms = prewarms
        self._content_of = content_of
        self._next = NextStages()
        self._known: KnownPrefixes[KnownPrompt] = KnownPrefixes(
            KnownPrompt.in_common, lambda prompt: prompt.num_tokens
        )

    def placed(self, request: QueuedRequest, worker_id: str, left_stage: str | None) -> None:
        """A request goes to a worker; `left_stage`: its workflow comes from there just now."""
        if not self._prewarms(worker_id):
            return
        workflow, stage = request.workflow, request.record.stage
        if left_stage is not None:
            self._next.note(workflow.workflow_type, left_stage, stage)
        shape = request.incoming.shape
        if shape.num_prompts == 1 and shape.blocks:
            prompt = KnownPrompt(shape, request.view.num_prompt_tokens, self._content_of(request))
            self._known.note(workflow.workflow_id, workflow.workflow_type, stage, prompt)

    def left(
        self, workflow: Workflow, stage: str, lane: str, gap_s: float | None, ttl_s: float
    ) -> str | None:
        """A stage has ended and the workflow will be back, usually after `gap_s`.

        Returns the id of the worker that was told.
        """
        following = self._next.after(workflow.workflow_type, stage)
        if following is None or gap_s is None or gap_s < _SHORTEST_GAP_S:
            return None
        kind = workflow.workflow_type
        expected = self._known.expected(workflow.workflow_id, kind, following)
        if expected is None:
            return None
        prompt, num_tokens = expected
        num_tokens = min(num_tokens, MAX_PREWARMED_TOKENS)
        request = self._request(workflow, following, lane, prompt, num_tokens)
        worker_id = self._dispatcher.foresee(request)
        if worker_id is None or not self._prewarms(worker_id):
            return None
        shape = request.incoming.shape
        believed = self._estimates.num_cached_tokens(worker_id, shape, num_tokens)
        content = prompt.content
        if believed >= num_tokens - shape.units_in_a_block:
            content = None  # it has had it: should it have lost it, it knows itself what it was
        elif content is None:
            return None
        self._send(worker_id, workflow.workflow_id, following, ttl_s, content, num_tokens)
        self._estimates.prefixes.note_sent(worker_id, shape.blocks)
        return worker_id

    def over(self, workflow: Workflow) -> None:
        """The workflow has ended."""
        self._known.release(workflow.workflow_id)

    def _request(
        self, workflow: Workflow, stage: str, lane: str, prompt: KnownPrompt, num_tokens: int
    ) -> QueuedRequest:
        """The request that is expected, with as much of its prompt as is known."""
        shape = prompt.beginning(num_tokens)
        incoming = IncomingRequest(GENERATE, {}, None, None, True, False, shape, 1, None, 0)
        record = RequestRecord("expected", stage, 1, 0, workflow.last_active_s)
        view = request_view(self._estimates, incoming, workflow, record, lane)
        return _Next(incoming=incoming, view=view, workflow=workflow, record=record, lane=lane)


def token_ids_of(request: QueuedRequest) -> array[int] | None:
    """The prompt of a /generate request that states token ids and no key of its own for the cache.

    None for other prompts: only their engine knows their tokens.
    """
    body = request.incoming.body
    ids = body.get("input_ids")
    has_key = any(body.get(name) for name in ("extra_key", "cache_salt", "lora_path"))
    if request.incoming.route != GENERATE or has_key or not isinstance(ids, list):
        return None
    try:
        return array("i", ids[:MAX_PREWARMED_TOKENS])
    except (TypeError, OverflowError):
        return None  # several prompts, or ids that no vocabulary has


def messages_of(
    workflow_id: str, stage: str, ttl_s: float, token_ids: array[int] | None, num_tokens: int
) -> Iterator[Prewarm]:
    """What a worker is told over the link, in order."""
    ttl_ms = ttl_s * 1_000
    if token_ids is None:
        yield Prewarm(workflow_id, stage, ttl_ms)
        return
    ids = token_ids[:num_tokens]
    for offset in range(0, len(ids), TOKENS_IN_A_PART):
        part = ids[offset : offset + TOKENS_IN_A_PART].tobytes()
        yield Prewarm(workflow_id, stage, ttl_ms, len(ids), offset, part)
