"""One worker: SGLang's scheduler as it batches, on an accelerator profile.

As SGLang 0.5.23 does it with the overlap schedule: the batch of the next step is chosen when the
present one starts, so it sees the results of the step before. Prefill goes before decode, in
chunks, and is not mixed with it; a prompt is admitted when its uncached tokens and the output
that may come fit beside those of the running requests; a finished request leaves its tokens to
the prefix cache, of which the least recently used leaves go first. Between two events in which
nothing can change, decode steps are taken together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hexgen_sglang.core.accelerator import AcceleratorProfile, decode_s, prefill_s
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.core.request import RequestView
from hexgen_sglang.policies.estimators import StepCostFit
from hexgen_sglang.policies.ordering import OrderingPolicy
from hexgen_sglang.policies.patience import decode_left_s, should_wait, tightness
from hexgen_sglang.policies.retention import PrefixesAhead, PrefixRetention
from hexgen_sglang.protocol.messages import Load
from hexgen_sglang.sim.admission import Admission, NewTokenRatio
from hexgen_sglang.sim.clock import STEP, Event, EventQueue
from hexgen_sglang.sim.decode_run import DecodeRun
from hexgen_sglang.sim.engine_request import EngineRequest
from hexgen_sglang.sim.prefix_cache import PrefixCache, Segments, beginning
from hexgen_sglang.sim.queue_order import PolicyOrder, QueueOrder, common_prefix, repeats

_TOKEN = 1  # SGLang's page size, and what it reserves for rounding


@dataclass(slots=True)
class Prefill:
    """A step that computes prompt tokens.

    Attributes:
        chunks: (uncached tokens, tokens before them) of each request.
        whole: requests whose prompt is complete with it; each gets its first token.
        num_tokens: computed by it.
    """

    chunks: list[tuple[int, int]]
    whole: list[EngineRequest]
    num_tokens: int
    start_s: float = 0.0
    end_s: float = 0.0


Step = Prefill | DecodeRun
Told = Callable[[EngineRequest, float], None]


@dataclass(slots=True)
class EngineTotals:
    """What an engine did over a run; seconds of its accelerator, tokens, requests, steps."""

    busy_s: float = 0.0
    steps: int = 0
    prefilled_tokens: int = 0
    decoded_tokens: int = 0
    retractions: int = 0
    ended: int = 0


class Engine:
    """One simulated worker.

    Args:
        name: worker id.
        profile: what steps cost and what fits.
        order: of its waiting queue.
        retained_share: of the KV memory, for prefixes kept between stages; 0: none are.
        prewarm_share: of it, for prefixes computed ahead and not used yet; 0: none are.
        events: the virtual clock.
        on_first_token, on_end: told of each request when its step has ended.
        on_change: told after each step that changed what is running or waiting.
        overhead_s: added to every step: time of the host that no step hides.
        times_steps: learn what steps cost, as the plugin does.
        step_by_step: take every decode step by itself (slow; the truth to compare with).
    """

    def __init__(
        self,
        name: str,
        profile: AcceleratorProfile,
        order: QueueOrder,
        events: EventQueue,
        *,
        on_first_token: Told,
        on_end: Told,
        on_change: Callable[[Engine], None],
        retained_share: float = 0.0,
        prewarm_share: float = 0.0,
        overhead_s: float = 0.0,
        times_steps: bool = True,
        step_by_step: bool = False,
    ) -> None:
        self.name = name
        self.profile = profile
        self.cache = PrefixCache()
        self.totals = EngineTotals()
        repeated = profile.decode.repeated_read_frac
        self.costs = StepCostFit(1.0 if repeated is None else repeated.value)
        self.waiting: list[EngineRequest] = []
        self.running: list[EngineRequest] = []
        self._order = order
        self._events = events
        self._on_first_token = on_first_token
        self._on_end = on_end
        self._on_change = on_change
        self._overhead_s = overhead_s
        self._times_steps = times_steps
        self._step_by_step = step_by_step
        self._kv_tokens = profile.capacity.kv_tokens.value
        self._max_running = profile.capacity.max_running_requests.value
        self._ratio = NewTokenRatio()
        self.retention = _retention(retained_share, self._kv_tokens)
        self.ahead = _ahead(prewarm_share, self._kv_tokens)
        self._num_private = 0
        self._is_full = False
        self._has_ended = False  # some of `running` may have ended
        self._has_patient = False  # some of `waiting` wait for decodes only
        self._chunked: EngineRequest | None = None
        self._step: Step | None = None
        self._next: Step | None = None
        self._boundary: Event | None = None
        self._num_arrived = 0
        self._touched = (0, 0)  # uses of the cache, and arrivals, when it was last done
        self._unseen: list[EngineRequest] = []  # waiting, and came since the last `_plan`

    @property
    def num_free(self) -> int:
        """KV slots that nothing uses."""
        return self._kv_tokens - self.cache.num_tokens - self._num_private

    @property
    def counts(self) -> tuple[int, int]:
        """Requests that run (their prefill included) and that wait."""
        prefilling = len(self._next.whole) if isinstance(self._next, Prefill) else 0
        running = len(self.running) + prefilling + (self._chunked is not None)
        return running, len(self.waiting)

    @property
    def is_idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return self._step is None and not self.waiting

    def submit(self, request: EngineRequest) -> None:
        """A request arrives now.

        Raises:
            ConfigError: it can never fit.
        """
        most = self._kv_tokens - _TOKEN
        wanted = request.num_prompt_tokens + request.max_new_tokens + _TOKEN
        if wanted > most:
            raise ConfigError(
                f"request {request.view.request_id}: {wanted} tokens of KV cache: must be at most "
                f"{most} on {self.name}"
            )
        self._num_arrived += 1
        request.number = self._num_arrived
        request.arrival_s = self._events.now_s
        request.processed_at_arrival = self.totals.prefilled_tokens
        self.waiting.append(request)
        self._unseen.append(request)
        if self.ahead is not None and not request.is_ahead:
            self.ahead.arrived(request.view.workflow_id, request.segments)
        if self.retention is not None and not request.is_ahead:
            view = request.view
            self.retention.arrived(
                view.workflow_id,
                view.workflow_type,
                view.stage,
                request.segments,
                self._events.now_s,
            )
        if self._step is None:
            self._launch()
        elif isinstance(self._step, DecodeRun) and self._step.num_steps > 1:
            self._step.stop_after(self._events.now_s)
            self._await(self._step.end_s)
        self._on_change(self)

    def prewarm(
        self, workflow_id: str, stage: str, ttl_s: float, content: Segments | None, num_tokens: int
    ) -> None:
        """Compute what the workflow's next prompt begins with, by the rule of `PrefixesAhead`.

        The first `num_tokens` of `content`; None: of what the engine has had of the workflow.
        """
        if content is None:
            known = self.retention.known(workflow_id, stage) if self.retention is not None else None
            if known is None:
                return
            content, num_tokens = known
        now_s, prefix = self._events.now_s, beginning(content, num_tokens)
        if self.ahead is None or num_tokens + 2 * _TOKEN > self._kv_tokens - _TOKEN:
            return
        _, num_cached = self.cache.match(prefix, num_tokens)
        is_busy = bool(self.waiting) or self._chunked is not None
        if self.ahead.begin(
            workflow_id, prefix, num_tokens, num_cached, is_busy=is_busy, now_s=now_s, ttl_s=ttl_s
        ):
            request = EngineRequest(
                RequestView(f"ahead/{workflow_id}/{now_s}", workflow_id, arrival_s=now_s), prefix, 1
            )
            request.is_ahead = True
            self.submit(request)

    def withdraw(self, request: EngineRequest) -> bool:
        """Take a request back that waits here and has not begun; False when it has."""
        if request not in self.waiting or request.admitted_s is not None:
            return False
        self.waiting.remove(request)
        if request in self._unseen:
            self._unseen.remove(request)
        self._on_change(self)
        return True

    def use_ordering(self, policy: OrderingPolicy) -> None:
        """Order the queue by another policy from the next step on, where the plugin orders it."""
        if not isinstance(self._order, PolicyOrder):
            return
        self._order.policy = policy
        chunked = () if self._chunked is None else (self._chunked,)
        steps = [one for one in (self._step, self._next) if one is not None]
        begun = [request for step in steps for request in self._live(step)]
        for request in (*self.waiting, *self.running, *chunked, *begun):
            request.order_key = None

    def load(self) -> Load:
        """What the worker's plugin would report now."""
        waiting_tokens = 0
        for request in self.waiting:
            fill = request.num_fill_tokens
            waiting_tokens += fill - self.cache.num_matched(request.fill, fill - 1)
        if self._chunked is not None:
            waiting_tokens += self._chunked.num_fill_tokens - self._chunked.num_computed_tokens
        num_running, num_waiting = self.counts
        made = 0  # slots that the steps taken together have used so far
        if isinstance(self._step, DecodeRun):
            made = self._step.num_ended(self._events.now_s) * len(self._step.requests)
        return Load(
            num_running=num_running,
            num_waiting=num_waiting,
            num_waiting_tokens=waiting_tokens,
            num_kv_tokens_used=self._kv_tokens - self.num_free - self.cache.num_evictable + made,
        )

    def _launch(self) -> None:
        """Start what there is to do, and choose what comes after it."""
        if self._step is None:
            self._step = self._plan()
            if self._step is None:
                return
        self._next = self._plan()
        now_s = self._events.now_s
        step = self._step
        if isinstance(step, Prefill):
            step.start_s = now_s
            step.end_s = now_s + prefill_s(self.profile, step.chunks) + self._overhead_s
        else:
            step.start(now_s, self.profile, self._overhead_s)
            step.take(self._steps_ahead(step))
        self._await(step.end_s)

    def _await(self, end_s: float) -> None:
        if self._boundary is not None:
            self._boundary.cancel()
        self._boundary = self._events.at(end_s, STEP, self._ended)

    def _ended(self) -> None:
        """A step (or a run of decode steps) has ended: take its results, go on."""
        step = self._step
        assert step is not None
        self._boundary = None
        seconds = step.end_s - step.start_s
        self.totals.busy_s += seconds
        if self._times_steps:
            self._time(step, seconds)
        if isinstance(step, Prefill):
            self._take_prefill(step)
        else:
            self._take_decode(step)
        self._step, self._next = self._next, None
        self._launch()
        self._on_change(self)

    def _time(self, step: Step, seconds: float) -> None:
        """Learn what steps cost."""
        if isinstance(step, Prefill):
            attended = sum([tokens * (before + tokens / 2) for tokens, before in step.chunks])
            self.costs.add_prefill(step.num_tokens, attended, seconds)
        else:
            self.costs.add_decode(
                len(step.requests),
                step.mean_context,
                seconds / step.num_steps,
                step.num_steps,
                step.num_repeated,
            )

    def _take_prefill(self, step: Prefill) -> None:
        self.totals.steps += 1
        self.totals.prefilled_tokens += step.num_tokens
        now_s = self._events.now_s
        for request in step.whole:
            self._keep_prompt(request)
            request.num_made_tokens += 1
            if request.first_token_s is None:
                request.first_token_s = now_s
                if not request.is_ahead:
                    self._on_first_token(request, now_s)
            if request.num_left == 0:
                self._end(request)

    def _take_decode(self, run: DecodeRun) -> None:
        count = run.num_steps
        self.totals.steps += count
        more = count * len(run.requests)
        if count > 1:
            # The first step's slots were taken when it was chosen, and so were those of the next.
            self._take_slots(more - len(run.requests))
            self._ratio.decay(count - 1)
        for request in run.requests:
            request.num_private_tokens += count - 1
            made = request.num_made_tokens + count
            if made > request.num_output_tokens:
                continue  # it met its end-of-sequence token while this step was chosen already
            request.num_made_tokens = made
            self.totals.decoded_tokens += count
            if made == request.num_output_tokens:
                self._end(request)

    def _keep_prompt(self, request: EngineRequest) -> None:
        """Give what was computed of the prompt to the cache; copies of what it has go."""
        assert request.node is not None
        node, _ = self.cache.insert(request.fill, request.num_computed_tokens)
        self.cache.lock(node)
        self.cache.unlock(request.node)
        request.node = node
        self._num_private -= request.num_private_tokens
        request.num_private_tokens = 0

    def _end(self, request: EngineRequest) -> None:
        """The last token was made: its KV stays in the cache until somebody needs the room."""
        node = request.node
        assert node is not None
        start = request.num_computed_tokens - request.num_prompt_tokens
        made = request.num_made_tokens - 1 - start
        if made > 0:
            self.cache.append(node, ((request.output_stream, start, made),))
        self.cache.unlock(node)
        self._num_private -= request.num_private_tokens
        request.num_private_tokens = 0
        self.totals.ended += 1
        self._has_ended = True
        request.ended_s = self._events.now_s
        if not request.is_ahead:
            self._on_end(request, self._events.now_s)

    def _plan(self) -> Step | None:
        """SGLang's choice of the next batch, as of now."""
        if self._unseen:
            for request in self._unseen:
                request.queued_s = self._events.now_s
            self._unseen.clear()
        if self.retention is not None and self.retention.is_due(self._events.now_s):
            for prompt, num_tokens in self.retention.refresh(self._events.now_s):
                self.cache.match(prompt, num_tokens)
        if self._chunked is not None:
            self._keep_prompt(self._chunked)
        step = self._step
        if isinstance(step, Prefill):
            self.running += step.whole
        if self._has_ended:
            self._has_ended = False
            before = len(self.running)
            self.running = [request for request in self.running if request.num_left]
            if len(self.running) < before:
                self._is_full = False
        if not self.running:
            self._is_full = False
        return self._plan_prefill() or self._plan_decode()

    def _plan_prefill(self) -> Prefill | None:
        if (self._is_full or not self.waiting) and self._chunked is None:
            return None
        room = self._max_running - len(self.running)
        if room <= 0 and self._chunked is None:
            self._is_full = True
            return None
        self._order.sort(self.waiting, self.cache, self.totals.prefilled_tokens)
        admission = Admission(self.profile, self.cache, self.num_free, self.running, self._ratio)
        if self._chunked is not None and admission.go_on(self._chunked):
            self._chunked = None
        in_progress = self._in_progress() if self._order.holds_prefixes else []
        decodes = self._decodes()
        held: list[EngineRequest] = []
        admitted = 0
        for request in self.waiting:
            if admission.is_spent:
                break
            if len(admission.chosen) >= room:
                self._is_full = True
            if self._is_full:
                break
            if self._is_held(request, in_progress, decodes):
                held.append(request)
                continue
            in_progress.append(request)
            if not admission.admit(request):
                self._is_full = admission.is_short and bool(admission.chosen or self.running)
                break
            admitted += 1
            if admission.is_short:
                self._is_full = True
                break
        if not admission.chosen:
            return None
        self.waiting = held + self.waiting[admitted + len(held) :]
        self._chunked = admission.chunked or self._chunked
        return self._prefill_of(admission)

    def _is_held(
        self,
        request: EngineRequest,
        in_progress: Sequence[EngineRequest],
        decodes: Sequence[tuple[float, float]],
    ) -> bool:
        """Whether a waiting request stays behind in this step, whatever room there is."""
        if self._order.holds_prefixes and repeats(request, in_progress, self.cache):
            return True
        if not decodes:
            return False
        now_s, num_fill = self._events.now_s, request.num_fill_tokens
        cached = self.cache.num_matched(request.fill, num_fill - 1)
        waits = should_wait(
            prefill_s(self.profile, [(num_fill - cached, cached)]),
            tightness(request.view, now_s),
            now_s - request.arrival_s,
            decodes,
            self._order.patience,
        )
        self._has_patient = self._has_patient or waits
        return waits

    def _decodes(self) -> list[tuple[float, float]]:
        """(seconds left, tightness) of what decodes, if prompts wait for that.

        While chunks of a prompt follow each other none does: they stall the decodes anyway.
        """
        self._has_patient = False
        if not self._order.patience or not self.running or self._chunked is not None:
            return []
        now_s = self._events.now_s
        context = sum(x.num_prompt_tokens + x.num_made_tokens for x in self.running)
        step_s = decode_s(self.profile, len(self.running), context)
        return [
            (decode_left_s(x.view, x.num_made_tokens, step_s), tightness(x.view, now_s))
            for x in self.running
        ]

    def _in_progress(self) -> list[EngineRequest]:
        """Requests whose prompts are being computed, and not in the cache yet."""
        requests = list(self._step.whole) if isinstance(self._step, Prefill) else []
        if self._chunked is not None:
            requests.append(self._chunked)
        return requests

    def _prefill_of(self, admission: Admission) -> Prefill:
        """The chosen batch, with slots for its tokens."""
        chunks, whole = [], []
        for request, extend in admission.chosen:
            chunks.append((extend, request.num_computed_tokens))
            if request.admitted_s is None:
                request.admitted_s = self._events.now_s
            request.num_computed_tokens += extend
            request.num_private_tokens += extend
            if request is not self._chunked:
                whole.append(request)
        num_tokens = sum(extend for extend, _ in chunks)
        self._take_slots(num_tokens)
        return Prefill(chunks, whole, num_tokens)

    def _plan_decode(self) -> DecodeRun | None:
        """Everything that runs and does not get its last token in the present step."""
        step = self._step
        if step is not None:
            in_step = set(self._live(step))
            going = [
                request
                for request in self.running
                if not (
                    request in in_step and request.num_made_tokens + 1 >= request.max_new_tokens
                )
            ]
            if len(going) < len(self.running):
                self._is_full = False
                self.running = going
        if not self.running:
            self._is_full = False
            return None
        if self.num_free + self.cache.num_evictable < len(self.running):
            if step is not None and len(self._live(step)) > len(self.running):
                return None  # the present step frees memory
            self._retract()
        else:
            self._ratio.decay(1)
        for request in self.running:
            request.num_private_tokens += 1
        self._take_slots(len(self.running))
        return DecodeRun(list(self.running))

    @staticmethod
    def _live(step: Step) -> list[EngineRequest]:
        return step.whole if isinstance(step, Prefill) else step.requests

    def _retract(self) -> None:
        """Throw running requests back, those with the fewest tokens made first."""
        keep = sorted(
            self.running,
            key=lambda request: (request.num_made_tokens, -request.num_prompt_tokens),
            reverse=True,
        )
        while len(keep) > 1:
            request = keep.pop()
            assert request.node is not None
            self.cache.unlock(request.node)
            self._num_private -= request.num_private_tokens
            request.node, request.num_private_tokens = None, 0
            request.num_computed_tokens = 0
            request.num_retractions += 1
            self.totals.retractions += 1
            self.waiting.append(request)
            if self.num_free + self.cache.num_evictable >= len(keep):
                break
        kept = set(keep)
        self.running = [request for request in self.running if request in kept]
        self._is_full = False
        self._ratio.after_retraction(self.running)

    def _steps_ahead(self, run: DecodeRun) -> int:
        """How many decode steps may be taken together: until something can change."""
        following = self._next
        if (
            self._step_by_step
            or not isinstance(following, DecodeRun)
            or len(following.requests) != len(run.requests)
            or following.requests != run.requests
        ):
            return 1
        steps = min(
            [
                request.num_output_tokens
                - request.num_made_tokens
                - (request.num_output_tokens == request.max_new_tokens)
                for request in run.requests
            ]
        )
        if self._has_patient:
            steps = min(2, steps)
        room = (self.num_free + self.cache.num_evictable) // len(run.requests)
        return max(1, min(steps, room + 1))

    def _take_slots(self, num_tokens: int) -> None:
        """Use KV slots, evicting cached prefixes when too few are free."""
        short = num_tokens - self.num_free
        if short > 0:
            self._touch_waiting()
            self.cache.evict(short)
        self._num_private += num_tokens

    def _touch_waiting(self) -> None:
        """Mark what waiting requests will need as used, as SGLang does at every step.

        Only before an eviction, and when anything was used or came since: it changes nothing else.
        """
        if self._touched == (self.cache.num_uses, self._num_arrived):
            return
        for request in reversed(self.waiting):
            self.cache.match(request.fill, request.num_fill_tokens - 1)
        self._touched = (self.cache.num_uses, self._num_arrived)


def _retention(share: float, kv_tokens: int) -> PrefixRetention[Segments] | None:
    if not share:
        return None
    return PrefixRetention(share, kv_tokens, common_prefix, _num_tokens)


def _ahead(share: float, kv_tokens: int) -> PrefixesAhead[Segments] | None:
    return PrefixesAhead(share, kv_tokens, common_prefix) if share else None


def _num_tokens(prompt: Segments) -> int:
    return sum(length for _, length in prompt)
