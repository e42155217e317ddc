"""One worker as the coordinator knows it: identity, state, load, and what is in flight there.

Counting only; who registers workers and probes them is in `workers` and `health`.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from hexgen_sglang.coordinator.breaker import CircuitBreaker
from hexgen_sglang.coordinator.kv_index import KvIndex
from hexgen_sglang.coordinator.live_request import Attempt
from hexgen_sglang.core.worker import InFlight, StepCosts, WorkerLoad, WorkerState, WorkerView
from hexgen_sglang.policies.estimators import Rates
from hexgen_sglang.protocol.messages import Load

# A worker that fails so many requests in a row gets none for a while, see `CircuitBreaker`.
_BREAKER_FAILURES = 5
_BREAKER_FIRST_S = 1.0
_BREAKER_MOST_S = 30.0
# Of another coordinator's requests at one worker, as policies see them.
_MOST_SEEN = 1_024


@dataclass(frozen=True, slots=True)
class RoomRules:
    """When a worker can soon start another request.

    Attributes:
        look_ahead: requests beyond the batch limit.
        look_ahead_tokens: prompt tokens that may wait for prefill there.
        default_max_in_flight: batch limit of a worker that tells none.
        stale_after_s: a load report older than this counts as unknown.
        early: every worker always has room: requests wait there, not here.
    """

    look_ahead: int
    look_ahead_tokens: int
    default_max_in_flight: int
    stale_after_s: float
    early: bool = False


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What another coordinator has in flight at a worker.

    Attributes:
        count, num_tokens: requests, and their prompt and expected output tokens.
        seen: as policies see them: all alike, without deadlines, in the midst of decoding.
    """

    count: int
    num_tokens: int
    seen: tuple[InFlight, ...]

    @classmethod
    def of(cls, count: int, prompt_tokens: int, output_tokens: int, now_s: float) -> Elsewhere:
        """From sums over the requests, as of now."""
        one = InFlight(
            request_id="",
            workflow_id="",
            stage="",
            num_prompt_tokens=prompt_tokens // count,
            num_uncached_tokens=0,
            expected_output_tokens=max(1, output_tokens // count // 2),
            sent_s=now_s,
            deadline_s=None,
            budget_s=None,
            predicted_remaining_s=0.0,
            siblings=1,
            first_token_s=now_s,
        )
        return cls(count, prompt_tokens + output_tokens, (one,) * min(count, _MOST_SEEN))


@dataclass(slots=True, eq=False)
class Worker:
    """A registered worker.

    Attributes:
        worker_id: unique in the directory.
        url: base address.
        origin: "config", "api" or "link": who registered it first.
        names_itself: the id was derived from the URL; a hello over the link replaces it.
        max_in_flight: the operator's limit; None: the engine's.
        models: names it serves; empty until the first successful probe.
        model_cards: its `/v1/models` entries, by name.
        time_scale: emulated seconds in a real one, 1 for a real accelerator; None while it has
            not told.
        linked: its plugin is connected.
        keeps_prefixes, prewarms: its plugin said so over this link.
        incarnation: of the linked process; "" when never linked.
        drained: the operator wants nothing new to go there.
        said_goodbye: it is shutting down in order.
        needs_full_check: `GET /health` must succeed before it is trusted (again).
        load, load_at_s: last report and when it came.
        sent_since_load_tokens: uncached prompt tokens dispatched after that report and not ended.
        tenants: what is in flight there of each tenant: requests, and tokens of prompt and output.
        elsewhere: what other coordinators have in flight there, by their id.
        in_flight, seen: attempts by rid, and the same as policies see them.
        version: counts changes of these two.
        breaker: keeps requests from it while it fails them.
        num_prompt_tokens, num_cached_tokens: of its answers so far that told both.
        kv_index: what its prefix cache holds, where it tells by KV events.
        last_error: why it is unreachable, for people.
    """

    worker_id: str
    url: str
    origin: str
    names_itself: bool = False
    hardware: str = ""
    max_in_flight: int | None = None
    state: WorkerState = WorkerState.STARTING
    models: tuple[str, ...] = ()
    model_cards: dict[str, dict[str, object]] = field(default_factory=dict)
    sglang_version: str = ""
    ordering: str = ""
    max_running_requests: int | None = None
    kv_capacity_tokens: int | None = None
    time_scale: float | None = None
    linked: bool = False
    keeps_prefixes: bool = False
    prewarms: bool = False
    incarnation: str = ""
    drained: bool = False
    said_goodbye: bool = False
    needs_full_check: bool = True
    load: Load | None = None
    load_at_s: float = 0.0
    sent_since_load_tokens: int = 0
    last_error: str = ""
    num_failures: int = 0
    last_alive_s: float = 0.0
    in_flight: dict[str, Attempt] = field(default_factory=dict)
    seen: dict[str, InFlight] = field(default_factory=dict)
    elsewhere: dict[str, Elsewhere] = field(default_factory=dict)
    tenants: dict[str, tuple[int, int]] = field(default_factory=dict)
    version: int = 0
    breaker: CircuitBreaker = field(
        default_factory=lambda: CircuitBreaker(
            _BREAKER_FAILURES, _BREAKER_FIRST_S, _BREAKER_MOST_S, random.random
        )
    )
    kv_index: KvIndex | None = None
    num_in_flight_tokens: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    _blocks: Counter[int] = field(default_factory=Counter)  # of the prompts in flight
    _expected_output_tokens: int = 0
    _sum_dispatched_s: float = 0.0
    _busy_since_s: float = 0.0

    @property
    def host(self) -> str:
        """Host of its URL, lower case, without brackets."""
        return urlsplit(self.url).hostname or ""

    @property
    def slots(self) -> int | None:
        """Requests that run there at once; None when nobody told."""
        if self.max_in_flight is not None:
            return self.max_in_flight
        return self.max_running_requests or None

    def serves(self, lane: str) -> bool:
        """Whether it serves the model; "" means any."""
        return lane in self.models or (not lane and bool(self.models))

    def start(self, attempt: Attempt) -> None:
        """Count an attempt as in flight."""
        if not self.in_flight:
            self._busy_since_s = attempt.dispatched_s
        self.in_flight[attempt.rid] = attempt
        self.breaker.sent(attempt.rid, attempt.dispatched_s)
        self.seen[attempt.rid] = attempt.seen
        self.version += 1
        self.num_in_flight_tokens += attempt.num_prompt_tokens + attempt.expected_output_tokens
        self._count_tenant(attempt, 1)
        self._expected_output_tokens += attempt.expected_output_tokens
        self._sum_dispatched_s += attempt.dispatched_s
        self._blocks.update(attempt.request.incoming.shape.blocks)
        self.sent_since_load_tokens += attempt.num_uncached_tokens
        if self.kv_index is not None:
            self.kv_index.note_sent(attempt.request.incoming.shape.blocks, attempt.dispatched_s)

    def release(self, attempt: Attempt, now_s: float) -> float:
        """Stop counting an attempt; returns the busy seconds since the last release or idling."""
        if self.in_flight.pop(attempt.rid, None) is None:
            return 0.0
        self.breaker.left(attempt.rid)
        del self.seen[attempt.rid]
        self.version += 1
        self.num_in_flight_tokens -= attempt.num_prompt_tokens + attempt.expected_output_tokens
        self._count_tenant(attempt, -1)
        self._expected_output_tokens -= attempt.expected_output_tokens
        self._sum_dispatched_s -= attempt.dispatched_s
        for block in attempt.request.incoming.shape.blocks:
            self._blocks[block] -= 1
            if not self._blocks[block]:
                del self._blocks[block]
        if attempt.dispatched_s >= self.load_at_s:  # nothing of it waits there any more
            left = self.sent_since_load_tokens - attempt.num_uncached_tokens
            self.sent_since_load_tokens = max(0, left)
        busy_s = now_s - self._busy_since_s
        self._busy_since_s = now_s
        return busy_s

    def take_usage(self, num_prompt_tokens: int, num_cached_tokens: int) -> None:
        """An answer told how much of its prompt was in the prefix cache."""
        self.num_prompt_tokens += num_prompt_tokens
        self.num_cached_tokens += num_cached_tokens

    def _count_tenant(self, attempt: Attempt, sign: int) -> None:
        tenant = attempt.request.view.tenant
        count, tokens = self.tenants.get(tenant, (0, 0))
        tokens += sign * (attempt.num_prompt_tokens + attempt.expected_output_tokens)
        self.tenants[tenant] = count + sign, tokens
        if count + sign == 0:
            del self.tenants[tenant]

    def take_load(self, load: Load | None, now_s: float) -> None:
        """A report came (or, with None, what was reported counts no longer)."""
        self.load = load
        self.load_at_s = now_s
        self.sent_since_load_tokens = 0

    def is_open(self, now_s: float, rules: RoomRules) -> bool:
        """A batch slot, look-ahead included, and prefill capacity are there.

        Never while its circuit breaker is open.
        """
        if not self.breaker.may_send(now_s):
            return False
        if rules.early or not self.in_flight:
            return True
        if self.max_in_flight is not None:
            limit = self.max_in_flight
        else:
            limit = (self.max_running_requests or rules.default_max_in_flight) + rules.look_ahead
        if len(self.in_flight) + self.num_elsewhere >= limit:
            return False
        load = self.fresh_load(now_s, rules.stale_after_s)
        if load is None:
            return True
        return load.num_waiting_tokens + self.sent_since_load_tokens < rules.look_ahead_tokens

    def is_idle_since(self, instant_s: float) -> bool:
        """Whether its last report, made after that instant, says that it has no work."""
        load = self.load
        if load is None or self.load_at_s <= instant_s:
            return False
        return not load.num_running and not load.num_waiting

    def num_shared_blocks(self, blocks: Sequence[int]) -> int:
        """Leading blocks of a prompt that prompts in flight have as well: memory is theirs."""
        held = self._blocks
        # A block's hash depends on those before it, so that none is missing in between.
        return bisect_left(blocks, True, key=lambda block: block not in held)

    def has_kv_room(self, num_tokens: int, now_s: float, rules: RoomRules) -> bool:
        """`num_tokens` more fit into the KV cache; always true for an idle worker.

        A request too large for an idle worker is the engine's to refuse.
        """
        if rules.early or not self.in_flight or self.kv_capacity_tokens is None:
            return True
        load = self.fresh_load(now_s, rules.stale_after_s)
        if load is None:
            used = self.num_in_flight_tokens + self.num_elsewhere_tokens
        else:
            used = load.num_kv_tokens_used + load.num_waiting_tokens + self.sent_since_load_tokens
        return used + num_tokens <= self.kv_capacity_tokens

    def leaves_room(self, tenant: str, num_tokens: int, room_frac: float, rules: RoomRules) -> bool:
        """Whether the tenant would hold at most this part of the worker with `num_tokens` more.

        Always true for its first request here.
        """
        count, held = self.tenants.get(tenant, (0, 0))
        if not count or room_frac >= 1.0 or rules.early:
            return True
        slots = self.slots or rules.default_max_in_flight
        is_fit = self.kv_capacity_tokens is None or (
            held + num_tokens <= room_frac * self.kv_capacity_tokens
        )
        return is_fit and count + 1 <= room_frac * slots

    def view(
        self, now_s: float, rates: Rates, rules: RoomRules, costs: StepCosts | None = None
    ) -> WorkerView:
        """The snapshot that policies see; `costs`: of its steps, None when unknown."""
        load = self.load
        return WorkerView(
            worker_id=self.worker_id,
            hardware=self.hardware,
            state=self.state,
            num_in_flight=len(self.in_flight) + self.num_elsewhere,
            num_in_flight_tokens=self.num_in_flight_tokens + self.num_elsewhere_tokens,
            num_pending_prefill_tokens=self._pending_prefill_tokens(now_s, rates, rules),
            num_pending_decode_tokens=self._pending_decode_tokens(now_s, rates),
            max_running_requests=self.slots,
            kv_capacity_tokens=self.kv_capacity_tokens,
            prefill_tokens_per_s=rates.prefill_tokens_per_s,
            decode_tokens_per_s=rates.decode_tokens_per_s,
            usual_batch=rates.usual_batch,
            tokens_per_s=rates.tokens_per_s,
            version=self.version,
            now_s=now_s,
            in_flight=self._seen_by_all() if self.elsewhere else self.seen.values(),
            costs=costs,
            decode_stall=rates.decode_stall,
            load=None
            if load is None
            else WorkerLoad(
                load.num_running,
                load.num_waiting,
                load.num_waiting_tokens,
                load.num_kv_tokens_used,
                now_s - self.load_at_s,
            ),
        )

    @property
    def num_elsewhere(self) -> int:
        """Requests that other coordinators have in flight there."""
        return sum(one.count for one in self.elsewhere.values()) if self.elsewhere else 0

    @property
    def num_elsewhere_tokens(self) -> int:
        """Prompt and expected output tokens of these."""
        return sum(one.num_tokens for one in self.elsewhere.values()) if self.elsewhere else 0

    def note_elsewhere(self, coordinator_id: str, told: Elsewhere | None) -> None:
        """Another coordinator has this in flight there now; None: nothing."""
        if told is None and self.elsewhere.pop(coordinator_id, None) is None:
            return
        if told is not None:
            self.elsewhere[coordinator_id] = told
        self.version += 1

    def _seen_by_all(self) -> list[InFlight]:
        others = [one for told in self.elsewhere.values() for one in told.seen]
        return [*self.seen.values(), *others]

    def fresh_load(self, now_s: float, stale_after_s: float) -> Load | None:
        """The last report; None when it is too old to be believed."""
        return self.load if now_s - self.load_at_s <= stale_after_s else None

    def _pending_prefill_tokens(self, now_s: float, rates: Rates, rules: RoomRules) -> int:
        """Reported where fresh; else what was sent and has shown no byte in its due time."""
        load = self.fresh_load(now_s, rules.stale_after_s)
        if load is not None:
            return load.num_waiting_tokens + self.sent_since_load_tokens
        rate = rates.prefill_tokens_per_s
        pending = 0
        for attempt in self.in_flight.values():
            elapsed_s = now_s - attempt.dispatched_s
            is_due = rate is not None and elapsed_s * rate >= attempt.num_uncached_tokens
            if attempt.first_byte_s is None and not is_due:
                pending += attempt.num_uncached_tokens
        return pending

    def _pending_decode_tokens(self, now_s: float, rates: Rates) -> int:
        """Expected output not yet made, taking each to decode at the usual rate since it came."""
        count = len(self.in_flight)
        decoded = 0.0
        if rates.decode_tokens_per_s is not None:
            decoded = rates.decode_tokens_per_s * (count * now_s - self._sum_dispatched_s)
        return max(count, round(self._expected_output_tokens - decoded))
