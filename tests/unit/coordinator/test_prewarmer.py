"""What the coordinator sends ahead, and to which worker: its own parts over two workers."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from hexgen_sglang.coordinator.admission import request_view
from hexgen_sglang.coordinator.dispatcher import Dispatcher
from hexgen_sglang.coordinator.estimates import Estimates
from hexgen_sglang.coordinator.incoming import GENERATE, read_request
from hexgen_sglang.coordinator.live_request import Attempt, QueuedRequest
from hexgen_sglang.coordinator.metrics import Metrics
from hexgen_sglang.coordinator.prefix_keeper import PrefixKeeper
from hexgen_sglang.coordinator.prewarmer import Prewarmer, messages_of, token_ids_of
from hexgen_sglang.coordinator.worker import RoomRules, Worker
from hexgen_sglang.coordinator.workflows import Outcome, WorkflowTracker
from hexgen_sglang.policies.dispatch import DISPATCH
from hexgen_sglang.protocol.codec import decode_coordinator_message, encode
from hexgen_sglang.protocol.messages import Release

CONTEXT = [number % 997 for number in range(1_280)]


class Placed(QueuedRequest):
    """A request that the test has placed itself."""

    @property
    def is_placed(self) -> bool:
        return True

    def place(self, attempt: Attempt) -> None:
        raise AssertionError


class Scene:
    """Workflows of the stages plan -> revise -> revise ..., 2 s apart."""

    def __init__(
        self,
        make_worker: Callable[..., Worker],
        policy: str = "marginal_cost",
        prewarming: tuple[str, ...] = ("a", "b"),
    ) -> None:
        self.now_s = 0.0
        self.sent: list[tuple[Any, ...]] = []
        self.released: list[str] = []
        self.workers = [make_worker("a"), make_worker("b")]
        self.estimates = Estimates()
        dispatcher = Dispatcher(
            DISPATCH.create(policy),
            policy,
            lambda: self.workers,
            self.estimates,
            RoomRules(0, 10_000, 8, 3.0),
            Metrics(),
            clock=lambda: self.now_s,
        )
        self.prewarmer = Prewarmer(
            dispatcher,
            self.estimates,
            lambda *told: self.sent.append(told),
            prewarming.__contains__,
            token_ids_of,
        )
        self.keeper = PrefixKeeper(self._tell, prewarming.__contains__, self.prewarmer)
        self.tracker = WorkflowTracker(self.estimates.stages, 100, 60.0, {}, self.keeper.over)
        self.count = 0

    def _tell(self, worker_id: str, message: Any) -> None:
        if isinstance(message, Release):
            self.released.append(worker_id)

    def run(self, workflow_id: str, stage: str, at: str, prompt: list[int] | str, **tag) -> None:
        """One request of a stage at that worker: 1 s long, and 2 s of tools behind it."""
        self.count += 1
        stated = {"workflow_id": workflow_id, "workflow_type": "sql", "stage": stage} | tag
        body: dict[str, Any] = {"hexgen": stated}
        body["text" if isinstance(prompt, str) else "input_ids"] = prompt
        incoming = read_request(GENERATE, msgspec.json.encode(body), {})
        workflow, record = self.tracker.accept(incoming.tag, f"r{self.count}", self.now_s)
        view = request_view(self.estimates, incoming, workflow, record, "m")
        request = Placed(incoming=incoming, view=view, workflow=workflow, record=record, lane="m")
        self.keeper.placed(request, at, self.now_s)
        self.estimates.prefixes.note_sent(at, incoming.shape.blocks)
        self.now_s += 1.0
        self.tracker.close(workflow, record, Outcome.COMPLETED, self.now_s)
        self.keeper.ended(workflow, stage, self.now_s)
        self.now_s += 2.0

    def teach(self, at: str = "a") -> None:
        """Three workflows, so that it is known what follows what, when, and how long tails are."""
        for number in range(3):
            self.run(f"t{number}", "plan", at, [900] * 640)
            for tail in range(3):
                own = [number + 100] * 640 + [tail + 200] * 64
                self.run(f"t{number}", "revise", at, own)
            self.run(f"t{number}", "end", at, [901] * 640, final=True)
        self.sent.clear()


@pytest.fixture
def load(make_request, make_attempt) -> Callable[[Worker], None]:
    """Gives a worker long work: nothing more goes there."""

    def load(worker: Worker) -> None:
        for number in range(6):
            request = make_request(f"x{number}", num_prompt_tokens=9_000)
            lengths = {"num_prompt_tokens": 9_000, "num_uncached_tokens": 9_000}
            worker.start(make_attempt(worker, request, f"x{number}", **lengths))

    return load


def test_the_context_goes_to_the_worker_that_will_get_the_stage(make_worker, load) -> None:
    scene = Scene(make_worker)
    scene.teach()
    scene.run("w", "plan", "a", [902] * 640)
    scene.run("w", "revise", "a", CONTEXT + [1] * 64)
    scene.sent.clear()
    load(scene.workers[0])
    scene.run("w", "revise", "a", CONTEXT + [2] * 64)
    ((worker_id, workflow_id, stage, ttl_s, content, num_tokens),) = scene.sent
    assert (worker_id, workflow_id, stage, num_tokens) == ("b", "w", "revise", 1_280)
    assert list(content[:num_tokens]) == CONTEXT
    assert 1.0 <= ttl_s <= 10.0  # learned: the gap is 2 s
    # From now on it counts as cached there: of a prefix that was sent only the name is repeated.
    scene.run("w", "revise", "a", CONTEXT + [3] * 64)
    assert scene.sent[-1][4] is None
    workflow = scene.tracker.get("w")
    assert workflow is not None
    scene.tracker.end(workflow, scene.now_s)
    assert set(scene.released[-2:]) == {"a", "b"}  # b, too, may forget what it computed


def test_a_worker_that_had_the_prefix_is_asked_by_name(make_worker, load) -> None:
    scene = Scene(make_worker)
    scene.teach()
    scene.run("w", "revise", "a", CONTEXT + [1] * 64)
    load(scene.workers[1])
    scene.sent.clear()
    scene.run("w", "revise", "a", CONTEXT + [2] * 64)
    ((worker_id, _, stage, _, content, _),) = scene.sent
    assert (worker_id, stage, content) == ("a", "revise", None)


def test_the_content_of_a_text_is_not_known_here(make_worker, load) -> None:
    scene = Scene(make_worker)
    scene.teach()
    text = "SELECT name FROM artists; " * 100
    scene.run("w", "revise", "a", text + "1" * 300)
    load(scene.workers[0])
    scene.sent.clear()
    scene.run("w", "revise", "a", text + "2" * 300)
    assert scene.sent == []  # b has never had it
    for attempt in list(scene.workers[0].in_flight.values()):
        scene.workers[0].release(attempt, scene.now_s)
    load(scene.workers[1])
    scene.run("w", "revise", "a", text + "3" * 300)
    assert [(told[0], told[4]) for told in scene.sent] == [("a", None)]


def test_nothing_is_sent_where_tools_take_no_time(make_worker) -> None:
    scene = Scene(make_worker)
    for number in range(6):
        for tail in range(2):
            scene.run(f"t{number}", "revise", "a", [number] * 640 + [tail + 200] * 64)
            scene.now_s -= 1.99  # 10 ms between the stages
    assert scene.sent == []


@pytest.mark.parametrize("changed", [{"policy": "round_robin"}, {"prewarming": ()}])
def test_nothing_is_sent_where_nobody_can_use_it(make_worker, changed: dict[str, Any]) -> None:
    scene = Scene(make_worker, **changed)
    scene.teach()
    scene.run("w", "revise", "a", CONTEXT + [1] * 64)
    scene.run("w", "revise", "a", CONTEXT + [2] * 64)
    assert scene.sent == []


def test_a_long_prefix_travels_in_parts_that_fit_the_link() -> None:
    ids = array("i", range(10_000))
    parts = list(messages_of("w", "revise", 2.5, ids, 9_000))
    assert all(decode_coordinator_message(encode(part)) == part for part in parts)
    joined = array("i")
    for part in parts:
        assert (part.offset, part.num_tokens, part.ttl_ms) == (len(joined), 9_000, 2_500.0)
        joined.frombytes(part.token_ids)
    assert joined == ids[:9_000]
    (named,) = messages_of("w", "revise", 2.5, None, 9_000)
    assert (named.num_tokens, named.token_ids) == (0, b"")


@pytest.mark.parametrize(
    "body",
    [
        {"text": "hello"},
        {"input_ids": [[1, 2], [3]]},
        {"input_ids": [2**40]},
        {"input_ids": [1, 2], "extra_key": "mine"},
        {"input_ids": [1, 2], "cache_salt": "mine"},
    ],
)
def test_prompts_that_only_their_engine_knows_are_not_sent(make_request, body) -> None:
    request = make_request("r")
    request.incoming.body.clear()
    request.incoming.body.update(body)
    assert token_ids_of(request) is None
