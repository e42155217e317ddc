"""The coordinator's estimators together: what to expect of a request, and learning from ends.

Timings come from the engine over the link where there is one, else from HTTP, which cannot
tell waiting in the engine from prefill.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hexgen_sglang.coordinator.incoming import IncomingRequest
from hexgen_sglang.coordinator.live_request import Attempt
from hexgen_sglang.coordinator.prompt import BLOCK_CHARS, BLOCK_TOKENS, PromptShape
from hexgen_sglang.coordinator.usage import Usage
from hexgen_sglang.coordinator.workflows import RequestRecord
from hexgen_sglang.core.worker import StepCosts
from hexgen_sglang.policies.estimators import (
    PrefixMemory,
    PromptLengths,
    RemainingWork,
    StageEstimates,
    WorkerCosts,
    WorkerRates,
)
from hexgen_sglang.protocol.messages import RequestFinished

# Output length of a request of which nothing is known.
UNKNOWN_OUTPUT_TOKENS = 128
# Attempts that may still be reported over the link after their answer has come.
_MAX_AWAITED = 20_000
# Of an answer without a limit of its own: a worker that tells more is wrong.
_MAX_OUTPUT_TOKENS = 2**20
# How much later than here an engine may see the same instants, and how far its own may disagree.
_CLOCKS_S = 1.0
_DISORDER_MS = 5.0
_HIGH = 0.9


@dataclass(frozen=True, slots=True)
class AwaitedReport:
    """What is kept of an attempt until its engine has reported: not the request itself.

    Attributes:
        dispatched_s: when it was.
        batch: requests in flight at the worker then.
        record: of its request.
    """

    worker_id: str
    dispatched_s: float
    batch: int
    record: RequestRecord


ExactMatch = Callable[[str, Sequence[int]], "int | None"]


class Estimates:
    """Lengths, seconds, rates and prefixes.

    Args:
        trust_output_limits: a request makes no more output than its own limit.
        remaining: as of `StageEstimates`.

    Attributes:
        stages, rates, costs, prompts, prefixes: the estimators themselves.
        exact: leading blocks of token ids that a worker holds, where its KV events tell; else None.
        num_refused_reports: of workers about requests that were not theirs, or times that
            cannot be.
    """

    def __init__(
        self, trust_output_limits: bool = True, *, remaining: RemainingWork = "means"
    ) -> None:
        self._trust_output_limits = trust_output_limits
        self.stages = StageEstimates(remaining=remaining)
        self.num_refused_reports = 0
        self.exact: ExactMatch = _unknown
        self.rates = WorkerRates()
        self.costs = WorkerCosts()
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
        """Tokens of all its answers: the caller's hint for each, else the mean of the stage's
        requests with its sibling index, else that of all of the stage's.

        Never above the request's own limit. None when there is neither hint, experience nor limit.
        """
        limit = incoming.max_output_tokens if self._trust_output_limits else None
        most = None if limit is None else limit * incoming.num_outputs
        hint = incoming.tag.expected_output_tokens if incoming.tag else None
        sibling = incoming.tag.sibling_index if incoming.tag else 0
        learned = self.stages.sibling_tokens(workflow_type, stage, sibling)
        if learned is None:
            learned = self.stages.output_tokens(workflow_type, stage)
        if hint is not None:
            expected = hint * incoming.num_outputs
        elif learned is not None:
            expected = max(1, round(learned * incoming.num_outputs))
        elif most is not None:
            expected = UNKNOWN_OUTPUT_TOKENS * incoming.num_outputs
        else:
            return None
        return expected if most is None else min(expected, most)

    def predicted_remaining_s(self, workflow_type: str, stage: str, visit: int = 1) -> float | None:
        """Seconds a workflow still needs from the start of its `visit`-th visit of the stage.

        None when unknown.
        """
        stage_s = self.predicted_stage_s(workflow_type, stage)
        if stage_s is None:
            return None
        return stage_s + (self.stages.remaining_after_s(workflow_type, stage, visit) or 0.0)

    def predicted_stage_s(self, workflow_type: str, stage: str) -> float | None:
        """Seconds of the stage; None when unknown, and for workflows without a type."""
        return self.stages.stage_s(workflow_type, stage) if workflow_type else None

    def alone_s(self, workflow_type: str, stage: str) -> float | None:
        """Seconds from the start of the stage to the workflow's end, alone on the fastest worker.

        None while nobody ended such a workflow, or no worker told what its steps cost.
        """
        fastest = self.costs.fastest
        if fastest is None or not workflow_type:
            return None
        work = self.stages.alone.work(workflow_type, stage)
        return None if work is None else work.seconds(fastest)

    def state_costs(self, costs: Mapping[str, StepCosts]) -> None:
        """What steps cost on hardware of these names, for workers that nothing is known of."""
        for hardware, stated in costs.items():
            self.costs.state(hardware, stated)

    def step_costs(self, worker_id: str, hardware: str) -> StepCosts | None:
        """What a worker's steps cost: as it measured them, else as stated for its hardware.

        None when neither is known, and once ended requests have shown how fast a worker is that
        measures no steps: its rates say more than a profile then.
        """
        measured = self.costs.measured(worker_id)
        if measured is not None or self.rates.is_measured(worker_id):
            return measured
        return self.costs.of(worker_id, hardware)

    def num_cached_tokens(self, worker_id: str, shape: PromptShape, num_prompt_tokens: int) -> int:
        """Prompt tokens believed to be in the worker's prefix cache."""
        matched = self.prefixes.num_matched(worker_id, shape.blocks)
        if shape.num_token_ids:
            exact = self.exact(worker_id, shape.blocks)
            matched = matched if exact is None else exact
        return tokens_of_blocks(shape, matched, num_prompt_tokens)

    def note_sent(self, attempt: Attempt) -> None:
        """An attempt went out: its prefix will be at that worker, and a report may come."""
        worker, request = attempt.worker, attempt.request
        self.prefixes.note_sent(worker.worker_id, request.incoming.shape.blocks)
        if not worker.linked:
            return
        self._awaited[attempt.rid] = AwaitedReport(
            worker.worker_id, attempt.dispatched_s, attempt.batch, request.record
        )
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
        self._note_lengths(attempt, usage)
        self.stages.note_request(
            worker.worker_id,
            request.view.workflow_type,
            request.view.stage,
            _output_tokens(request.incoming, usage) / request.incoming.num_outputs,
            seconds,
            sibling=request.record.sibling_index,
        )
        self.rates.note_throughput(
            worker.worker_id, usage.prompt_tokens + usage.output_tokens, busy_s
        )
        shape = request.incoming.shape
        if shape.num_chars and not shape.num_token_ids:
            self.prompts.note(request.lane, shape.num_chars, usage.prompt_tokens)
        if not worker.linked:
            self._note_http_timing(attempt, usage, now_s)

    def note_reported(
        self, message: RequestFinished, worker_id: str | None = None, now_s: float | None = None
    ) -> RequestRecord | None:
        """The engine's own timings; returns the record that they belong to, if it is ours.

        A report of another worker than the request was sent to counts for nothing, and times
        that cannot be, given when it was sent and when its end was seen, teach nothing.

        Args:
            message: the report.
            worker_id: who sent it; None: whom it was sent to.
            now_s: when it came; None: without a look at how long the request really took.
        """
        awaited = self._awaited.get(message.request_id)
        if awaited is None:
            return None
        if worker_id not in (None, awaited.worker_id):
            self.num_refused_reports += 1
            return None
        del self._awaited[message.request_id]
        if message.aborted:
            return None
        if message.output_tokens < 1:
            return awaited.record
        if not _is_possible(message, awaited, now_s):
            self.num_refused_reports += 1
            return awaited.record
        uncached = message.prompt_tokens - message.cached_tokens
        prefill_s = (message.ttft_ms - message.queue_ms) / 1000
        decode_s = (message.e2e_ms - message.ttft_ms) / 1000
        record = awaited.record
        record.engine_queue_s = message.queue_ms / 1000
        record.prefill_s, record.decode_s = prefill_s, decode_s
        self.rates.note_prefill(awaited.worker_id, uncached, prefill_s)
        self.rates.note_decode(
            awaited.worker_id, message.output_tokens - 1, decode_s, awaited.batch
        )
        costs = self.costs.measured(awaited.worker_id)
        if costs is not None and message.output_tokens > 1:
            context = awaited.batch * (message.prompt_tokens + message.output_tokens / 2)
            alone_s = (message.output_tokens - 1) * costs.decode_s(awaited.batch, context)
            self.rates.note_stall(awaited.worker_id, decode_s, alone_s)
        return awaited.record

    def _note_lengths(self, attempt: Attempt, usage: Usage) -> None:
        """How wrong the lengths were that were expected of an answer."""
        view, incoming = attempt.request.view, attempt.request.incoming
        actual = _output_tokens(incoming, usage)
        note, kind = self.stages.errors.note, view.workflow_type
        note("output_tokens", kind, view.expected_output_tokens, actual)
        note("prompt_tokens", kind, view.num_prompt_tokens, usage.prompt_tokens)
        high = self.stages.output_quantile(kind, view.stage, _HIGH)
        if high is not None:
            is_within = actual / incoming.num_outputs <= high
            note("output_p90_share", kind, _HIGH, float(is_within))

    def forget_cache(self, worker_id: str) -> None:
        """The worker process is a new one: its cache is empty, its steps may cost otherwise."""
        self.prefixes.forget(worker_id)
        self.costs.forget(worker_id)

    def rename_worker(self, old_id: str, new_id: str) -> None:
        """The same worker under another id."""
        self.rates.rename(old_id, new_id)
        self.costs.rename(old_id, new_id)
        self.prefixes.rename(old_id, new_id)
        self.stages.forget_worker(old_id)

    def forget_worker(self, worker_id: str) -> None:
        """The worker was removed."""
        self.prefixes.forget(worker_id)
        self.rates.forget(worker_id)
        self.costs.forget(worker_id)
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


def tokens_of_blocks(shape: PromptShape, num_blocks: int, num_prompt_tokens: int) -> int:
    """Tokens of a prompt's first so many blocks, of text as estimated."""
    if not num_blocks:
        return 0
    units = shape.num_token_ids or shape.num_chars
    block = BLOCK_TOKENS if shape.num_token_ids else BLOCK_CHARS
    return min(num_prompt_tokens, num_prompt_tokens * num_blocks * block // units)


def _output_tokens(incoming: IncomingRequest, usage: Usage) -> int:
    """Of all answers of a request, as told, but no more than it could have."""
    limit = incoming.max_output_tokens
    most = (_MAX_OUTPUT_TOKENS if limit is None else limit) * incoming.num_outputs
    return min(usage.output_tokens, most)


def _unknown(worker_id: str, blocks: Sequence[int]) -> int | None:
    """No worker tells."""
    return None


def _is_possible(message: RequestFinished, awaited: AwaitedReport, now_s: float | None) -> bool:
    """Whether an engine's times are in order, and within what was seen of the request here."""
    if not message.queue_ms <= message.ttft_ms + _DISORDER_MS <= message.e2e_ms + 2 * _DISORDER_MS:
        return False
    if message.cached_tokens > message.prompt_tokens:
        return False
    if now_s is None:
        return True
    ended_s = now_s if awaited.record.finished_s is None else awaited.record.finished_s
    return message.e2e_ms / 1000 <= ended_s - awaited.dispatched_s + _CLOCKS_S
