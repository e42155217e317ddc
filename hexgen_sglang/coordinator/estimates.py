"""The coordinator's estimators together: what to expect of a request, and learning from ends.

Timings come from the engine over the link where there is one, else from HTTP, which cannot
tell waiting in the engine from prefill.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from hexgen_sglang.coordinator.incoming import IncomingRequest
from hexgen_sglang.coordinator.live_request import Attempt
from hexgen_sglang.coordinator.prompt import BLOCK_CHARS, BLOCK_TOKENS, PromptShape
from hexgen_sglang.coordinator.usage import Usage
from hexgen_sglang.coordinator.workflows import RequestRecord
from hexgen_sglang.policies.estimators import (
    PrefixMemory,
    PromptLengths,
    StageEstimates,
    WorkerRates,
)
from hexgen_sglang.protocol.messages import RequestFinished

# Output length of a request of which nothing is known but its limit.
_UNKNOWN_OUTPUT_TOKENS = 128
# Attempts that may still be reported over the link after their answer has come.
_MAX_AWAITED = 20_000


@dataclass(frozen=True, slots=True)
class AwaitedReport:
    """What is kept of an attempt until its engine has reported: not the request itself.

    Attributes:
        batch: requests in flight at the worker when it was dispatched.
        record: of its request.
    """

    worker_id: str
    batch: int
    record: RequestRecord


class Estimates:
    """Lengths, seconds, rates and prefixes.

    Args:
        trust_output_limits: a request makes no more output than its own limit.

    Attributes:
        stages, rates, prompts, prefixes: the estimators themselves.
    """

    def __init__(self, trust_output_limits: bool = True) -> None:
        self._trust_output_limits = trust_output_limits
        self.stages = StageEstimates()
        self.rates = WorkerRates()
        self.prompts = PromptLengths()
        self.prefixes = PrefixMemory()
        self._awaited: OrderedDict[str, AwaitedReport] = OrderedDict()

    def num_prompt_tokens(self, lane: str, shape: PromptShape) -> int:
        """Estimated prompt tokens; exact for token ids. At least 1."""
        from_text = self.prompts.num_tokens(lane, shape.num_chars) if shape.num_chars else 0
        return max(1, from_text + shape.num_token_ids)

    def expected_output_tokens(
        self, workflow_type: str, stage: str, incoming: IncomingRequest
    ) -> int | None:
        """Tokens of all its answers: the caller's hint for each, else the stage's mean.

        Never above the request's own limit. None when there is neither hint, experience nor limit.
        """
        limit = incoming.max_output_tokens if self._trust_output_limits else None
        most = None if limit is None else limit * incoming.num_outputs
        hint = incoming.tag.expected_output_tokens if incoming.tag else None
        learned = self.stages.output_tokens(workflow_type, stage)
        if hint is not None:
            expected = hint * incoming.num_outputs
        elif learned is not None:
            expected = max(1, round(learned * incoming.num_outputs))
        elif most is not None:
            expected = _UNKNOWN_OUTPUT_TOKENS * incoming.num_outputs
        else:
            return None
        return expected if most is None else min(expected, most)

    def predicted_remaining_s(self, workflow_type: str, stage: str) -> float | None:
        """Seconds a workflow still needs from the start of this stage; None when unknown."""
        stage_s = self.predicted_stage_s(workflow_type, stage)
        if stage_s is None:
            return None
        return stage_s + (self.stages.remaining_after_s(workflow_type, stage) or 0.0)

    def predicted_stage_s(self, workflow_type: str, stage: str) -> float | None:
        """Seconds of the stage; None when unknown, and for workflows without a type."""
        return self.stages.stage_s(workflow_type, stage) if workflow_type else None

    def num_cached_tokens(self, worker_id: str, shape: PromptShape, num_prompt_tokens: int) -> int:
        """Prompt tokens believed to be in the worker's prefix cache."""
        matched = self.prefixes.num_matched(worker_id, shape.blocks)
        if not matched:
            return 0
        units = shape.num_token_ids or shape.num_chars
        block = BLOCK_TOKENS if shape.num_token_ids else BLOCK_CHARS
        return min(num_prompt_tokens, num_prompt_tokens * matched * block // units)

    def note_sent(self, attempt: Attempt) -> None:
        """An attempt went out: its prefix will be at that worker, and a report may come."""
        worker, request = attempt.worker, attempt.request
        self.prefixes.note_sent(worker.worker_id, request.incoming.shape.blocks)
        if not worker.linked:
            return
        self._awaited[attempt.rid] = AwaitedReport(worker.worker_id, attempt.batch, request.record)
        while len(self._awaited) > _MAX_AWAITED:
            self._awaited.popitem(last=False)

    def note_answered(
        self, attempt: Attempt, usage: Usage | None, busy_s: float, now_s: float
    ) -> None:
        """A whole answer came; `busy_s`: as `Worker.release` returned it."""
        if usage is None:
            return
        request, worker = attempt.request, attempt.worker
        seconds = now_s - attempt.dispatched_s
        self.stages.note_request(
            worker.worker_id,
            request.view.workflow_type,
            request.view.stage,
            usage.output_tokens / request.incoming.num_outputs,
            seconds,
        )
        self.rates.note_throughput(
            worker.worker_id, usage.prompt_tokens + usage.output_tokens, busy_s
        )
        shape = request.incoming.shape
        if shape.num_chars and not shape.num_token_ids:
            self.prompts.note(request.lane, shape.num_chars, usage.prompt_tokens)
        if not worker.linked:
            self._note_http_timing(attempt, usage, now_s)

    def note_reported(self, message: RequestFinished) -> RequestRecord | None:
        """The engine's own timings; returns the record that they belong to, if it is ours."""
        awaited = self._awaited.pop(message.request_id, None)
        if awaited is None or message.aborted:
            return None
        if message.output_tokens < 1:
            return awaited.record
        uncached = message.prompt_tokens - message.cached_tokens
        prefill_s = (message.ttft_ms - message.queue_ms) / 1000
        decode_s = (message.e2e_ms - message.ttft_ms) / 1000
        self.rates.note_prefill(awaited.worker_id, uncached, prefill_s)
        self.rates.note_decode(
            awaited.worker_id, message.output_tokens - 1, decode_s, awaited.batch
        )
        return awaited.record

    def forget_cache(self, worker_id: str) -> None:
        """The worker process is a new one: its cache is empty."""
        self.prefixes.forget(worker_id)

    def rename_worker(self, old_id: str, new_id: str) -> None:
        """The same worker under another id."""
        self.rates.rename(old_id, new_id)
        self.prefixes.rename(old_id, new_id)
        self.stages.forget_worker(old_id)

    def forget_worker(self, worker_id: str) -> None:
        """The worker was removed."""
        self.prefixes.forget(worker_id)
        self.rates.forget(worker_id)
        self.stages.forget_worker(worker_id)

    def _note_http_timing(self, attempt: Attempt, usage: Usage, now_s: float) -> None:
        """Rates as seen from here: a first byte ends the prefill, where there is one."""
        worker_id = attempt.worker.worker_id
        uncached = attempt.num_uncached_tokens
        if usage.cached_tokens is not None:
            uncached = usage.prompt_tokens - usage.cached_tokens
        if attempt.first_byte_s is not None:
            prefill_s = attempt.first_byte_s - attempt.dispatched_s
            self.rates.note_prefill(worker_id, uncached, prefill_s)
            num_decoded = usage.output_tokens - 1
        else:
            rate = self.rates.of(worker_id).prefill_tokens_per_s
            prefill_s = uncached / rate if rate is not None else 0.0
            num_decoded = usage.output_tokens
        decode_s = now_s - attempt.dispatched_s - prefill_s
        self.rates.note_decode(worker_id, num_decoded, decode_s, attempt.batch)
