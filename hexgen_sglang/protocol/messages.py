"""Messages of the ZMQ link between a worker's plugin and the coordinator, version 1.

Every field is bounded; unknown fields and types are errors. Durations travel, instants do
not. The codec beside this file turns them into msgpack and back.

Who is alive: a worker says `Hello` until it hears `Welcome`, then sends a `Load` at least
every `heartbeat_ms`; the coordinator sends a `Heartbeat` as often. Whoever hears nothing for
several of them takes the other for gone: the worker says `Hello` again, the coordinator
forgets the worker. A coordinator that gets anything else from a worker it does not know
answers `HelloWanted`. Delivery is at most once: a message on its way when a connection
breaks is lost.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from hexgen_sglang.protocol.tag import BudgetMs, Name, WorkflowId

LINK_VERSION = 1

Text = Annotated[str, Meta(max_length=512)]
RequestId = Annotated[str, Meta(min_length=1, max_length=128)]
Count = Annotated[int, Meta(ge=0, le=2**40)]
DurationMs = Annotated[float, Meta(ge=0, le=604_800_000)]
StepSeconds = Annotated[float, Meta(ge=0, le=60)]
TokenSeconds = Annotated[float, Meta(ge=0, le=1)]
OrderingSettings = Annotated[dict[Name, float], Meta(max_length=64)]
# Of a prefix that is computed ahead, in all and in one message.
MAX_PREWARMED_TOKENS = 131_072
TOKENS_IN_A_PART = 3_072


class LinkMessage(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of everything on the link; the class name in snake case is the wire type."""


class Hello(LinkMessage, frozen=True, forbid_unknown_fields=True, tag="hello"):
    """Worker -> coordinator: first message of a connection, repeated until welcomed.

    `worker_id` is stable over reconnects; `incarnation` is new for each start of the worker
    process, so that a restart is told from a reconnect. `max_running_requests` and
    `kv_capacity_tokens` are the engine's own limits.
    """

    link_version: Annotated[int, Meta(ge=1, le=1_000)]
    worker_id: Name
    incarnation: RequestId
    url: Annotated[str, Meta(min_length=8, max_length=512, pattern=r"^https?://")]
    model: Text
    hardware: Annotated[str, Meta(max_length=64)]
    sglang_version: Annotated[str, Meta(max_length=64)]
    plugin_version: Annotated[str, Meta(max_length=64)]
    max_running_requests: Count
    kv_capacity_tokens: Count
    ordering: Name


class Load(LinkMessage, frozen=True, forbid_unknown_fields=True, tag="load"):
    """Worker -> coordinator: load on change and as a heartbeat. Counts, as in `WorkerLoad`."""

    num_running: Count
    num_waiting: Count
    num_waiting_tokens: Count
    num_kv_tokens_used: Count


class RequestFinished(LinkMessage, frozen=True, forbid_unknown_fields=True, tag="request_finished"):
    """Worker -> coordinator: one request ended in the engine.

    `queue_ms`: arrival in the scheduler to first admission; `ttft_ms`: arrival to first
    token; `e2e_ms`: arrival to last token. `ttft_ms` is 0 when no token was produced.
    """

    request_id: RequestId
    workflow_id: WorkflowId | None
    stage: Name | None
    prompt_tokens: Count
    cached_tokens: Count
    output_tokens: Count
    queue_ms: DurationMs
    ttft_ms: DurationMs
    e2e_ms: DurationMs
    aborted: bool


class StageFinished(LinkMessage, frozen=True, forbid_unknown_fields=True, tag="stage_finished"):
    """Worker -> coordinator: all siblings of a stage that ran on this worker have ended.

    With siblings on several workers each worker tells of its own share
    (`num_requests` of `siblings`).
    """

    workflow_id: WorkflowId
    stage: Name
    num_requests: Count
    siblings: Count
    e2e_ms: DurationMs


class StepTimes(LinkMessage, frozen=True, forbid_unknown_fields=True, tag="step_times"):
    """Worker -> coordinator: what its steps cost, as fitted to all steps so far.

    Terms as in `core.worker.StepCosts`; `num_prefills` and `num_decodes`: steps they rest on.
    The share that a repeated context token costs is stated, not fitted.
    """

    prefill_base_s: StepSeconds
    prefill_token_s: TokenSeconds
    prefill_context_s: TokenSeconds
    decode_base_s: StepSeconds
    decode_request_s: StepSeconds
    decode_context_s: TokenSeconds
    num_prefills: Count
    num_decodes: Count
    decode_repeated_frac: Annotated[float, Meta(ge=0, le=1)] = 1.0


class Features(LinkMessage, frozen=True, forbid_unknown_fields=True, tag="features"):
    """Worker -> coordinator, after each `Welcome`: what it does beyond version 1.

    `keeps_prefixes`: it acts on `Retain` and `Release`. `prewarms`: on `Prewarm` and `Release`.
    Workers that do nothing of the kind do not send it; a coordinator that does not know it skips
    it.
    """

    keeps_prefixes: bool
    prewarms: bool = False


class OrderingSet(LinkMessage, frozen=True, forbid_unknown_fields=True, tag="ordering_set"):
    """Worker -> coordinator: what became of a `PolicySettings`, with what that asked for.

    `refusal`: why the queue is ordered as before; "" where it is ordered as asked. Workers of
    before this message do not send it; a coordinator that does not know it skips it.
    """

    ordering: Name
    settings: OrderingSettings
    refusal: Text = ""


class Goodbye(LinkMessage, frozen=True, forbid_unknown_fields=True, tag="goodbye"):
    """Worker -> coordinator: the worker shuts down in order."""

    reason: Text


class Welcome(LinkMessage, frozen=True, forbid_unknown_fields=True, tag="welcome"):
    """Coordinator -> worker: registered; send `Load` at least every `heartbeat_ms`.

    The answer to every accepted `Hello`, repeated ones included.
    """

    link_version: Annotated[int, Meta(ge=1, le=1_000)]
    coordinator_id: Name
    heartbeat_ms: Annotated[int, Meta(ge=50, le=60_000)]


class Heartbeat(LinkMessage, frozen=True, forbid_unknown_fields=True, tag="heartbeat"):
    """Coordinator -> worker: I am alive; sent to every registered worker each `heartbeat_ms`."""


class HelloWanted(LinkMessage, frozen=True, forbid_unknown_fields=True, tag="hello_wanted"):
    """Coordinator -> worker: I do not know you (I restarted); say hello again."""


class Rejected(LinkMessage, frozen=True, forbid_unknown_fields=True, tag="rejected"):
    """Coordinator -> worker: this worker cannot be registered, and why.

    Its shape never changes, so that a worker of any link version can read it.
    """

    reason: Text


class Reprioritise(LinkMessage, frozen=True, forbid_unknown_fields=True, tag="reprioritise"):
    """Coordinator -> worker: a workflow's deadline or prediction changed.

    `budget_ms` None: best effort from now on.
    """

    workflow_id: WorkflowId
    budget_ms: BudgetMs | None
    predicted_remaining_ms: DurationMs


class Cancel(LinkMessage, frozen=True, forbid_unknown_fields=True, tag="cancel"):
    """Coordinator -> worker: abort the workflow's requests, or the one with `request_id`."""

    workflow_id: WorkflowId | None
    request_id: RequestId | None

    def __post_init__(self) -> None:
        if (self.workflow_id is None) == (self.request_id is None):
            raise ValueError("exactly one of workflow_id and request_id must be given")


class PolicySettings(LinkMessage, frozen=True, forbid_unknown_fields=True, tag="policy_settings"):
    """Coordinator -> worker: use this ordering policy with these settings from now on."""

    ordering: Name
    settings: OrderingSettings


class Retain(LinkMessage, frozen=True, forbid_unknown_fields=True, tag="retain"):
    """Coordinator -> worker that keeps prefixes: the workflow is between two stages.

    Keep its prompts in the prefix cache for `ttl_ms`, if memory allows.
    """

    workflow_id: WorkflowId
    ttl_ms: DurationMs


class Release(LinkMessage, frozen=True, forbid_unknown_fields=True, tag="release"):
    """Coordinator -> worker that keeps prefixes: the workflow ended, or is hopeless.

    Its prompts are the first that may leave the prefix cache.
    """

    workflow_id: WorkflowId


class Prewarm(LinkMessage, frozen=True, forbid_unknown_fields=True, tag="prewarm"):
    """Coordinator -> worker that prewarms: compute what the workflow's next prompt begins with.

    The prompt of `stage` is expected here soon; what is computed is wasted after `ttl_ms`. Its
    beginning is `num_tokens` token ids, which come in several messages when they are many:
    `token_ids` are those from `offset` on, as little-endian int32, in order and without gaps.
    With `num_tokens` 0 none come: the worker goes by the prompts that it has had of the workflow.
    """

    workflow_id: WorkflowId
    stage: Name
    ttl_ms: DurationMs
    num_tokens: Annotated[int, Meta(ge=0, le=MAX_PREWARMED_TOKENS)] = 0
    offset: Annotated[int, Meta(ge=0, le=MAX_PREWARMED_TOKENS)] = 0
    token_ids: Annotated[bytes, Meta(max_length=4 * TOKENS_IN_A_PART)] = b""


WorkerMessage = (
    Hello | Load | RequestFinished | StageFinished | StepTimes | Features | OrderingSet | Goodbye
)
CoordinatorMessage = (
    Welcome
    | Heartbeat
    | HelloWanted
    | Rejected
    | Reprioritise
    | Cancel
    | PolicySettings
    | Retain
    | Release
    | Prewarm
)
