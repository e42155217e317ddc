"""The coordinator's side over a memory link and a clock that the test turns."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from hexgen_sglang.coordinator.link import CoordinatorLink
from hexgen_sglang.protocol.messages import (
    Cancel,
    Goodbye,
    Heartbeat,
    HelloWanted,
    Load,
    Rejected,
    RequestFinished,
    StageFinished,
    Welcome,
)
from hexgen_sglang.transport.memory import MemoryLink

WELCOME = Welcome(link_version=1, coordinator_id="c1", heartbeat_ms=1000)
LOAD = Load(num_running=1, num_waiting=2, num_waiting_tokens=3, num_kv_tokens_used=4)
STAGE = StageFinished(workflow_id="flow", stage="draft", num_requests=1, siblings=1, e2e_ms=1.0)
FINISHED = RequestFinished("r1", "flow", "draft", 1, 0, 1, 0.0, 1.0, 2.0, False)


class Recorder:
    """An observer that writes down what it is told, and answers hellos as it is set to."""

    def __init__(self):
        self.events = []
        self.answer = WELCOME

    def on_hello(self, hello):
        self.events.append(("hello", hello.worker_id, hello.incarnation))
        return self.answer

    def on_restart(self, worker_id):
        self.events.append(("restart", worker_id))

    def on_load(self, worker_id, load):
        self.events.append(("load", worker_id, load))

    def on_request_finished(self, worker_id, message):
        self.events.append(("request", worker_id, message))

    def on_step_times(self, worker_id, message):
        self.events.append(("steps", worker_id, message))

    def on_stage_finished(self, worker_id, message):
        self.events.append(("stage", worker_id, message))

    def on_features(self, worker_id, message):
        self.events.append(("features", worker_id, message))

    def on_ordering_set(self, worker_id, message):
        self.events.append(("ordering", worker_id, message))

    def on_goodbye(self, worker_id, reason):
        self.events.append(("goodbye", worker_id, reason))

    def on_lost(self, worker_id):
        self.events.append(("lost", worker_id))


class Room:
    """A link with its observer, its clock and the workers' ends."""

    def __init__(self):
        self.memory = MemoryLink()
        self.end = self.memory.coordinator_end()
        self.observer = Recorder()
        self.now_s = 0.0
        self.link = CoordinatorLink(
            self.end, self.observer, clock=lambda: self.now_s, missed_heartbeats=3, tick_s=0.1
        )

    def worker(self):
        return self.memory.worker_end()

    async def say(self, worker, *messages):
        """The worker sends; the link acts on it; the worker's answers come back."""
        for message in messages:
            assert worker.send(message)
            await self.link.handle(*await self.end.receive())
        return self.heard(worker)

    def heard(self, worker):
        return list(iter(lambda: worker.receive(0.0), None))

    async def pass_time(self, seconds, worker=None):
        """Ticks as in life; `worker` sends a load once a second."""
        for step in range(round(seconds * 10)):
            self.now_s += 0.1
            if worker is not None and step % 10 == 9:
                assert worker.send(LOAD)
                await self.link.handle(*await self.end.receive())
            await self.link.tick()

    def told(self):
        events, self.observer.events = self.observer.events, []
        return events


@pytest.fixture
async def room():
    room = Room()
    yield room
    room.end.close()


async def test_a_worker_registers_and_everything_it_says_is_told(room, hello):
    worker = room.worker()
    assert await room.say(worker, hello) == [WELCOME]
    assert await room.say(worker, LOAD, FINISHED, STAGE, Goodbye(reason="bye")) == []
    assert room.told() == [
        ("hello", "w1", "first"),
        ("load", "w1", LOAD),
        ("request", "w1", FINISHED),
        ("stage", "w1", STAGE),
        ("goodbye", "w1", "bye"),
    ]
    assert room.link.worker_ids == ()


async def test_an_unknown_worker_is_asked_for_its_hello(room, hello):
    worker = room.worker()
    assert await room.say(worker, LOAD) == [HelloWanted()]
    assert await room.say(worker, Goodbye(reason="bye")) == []
    assert room.told() == []
    assert await room.say(worker, hello, LOAD) == [WELCOME]


async def test_a_rejected_worker_is_not_registered(room, hello):
    room.observer.answer = Rejected(reason="another model")
    worker = room.worker()
    assert await room.say(worker, hello) == [Rejected(reason="another model")]
    assert await room.say(worker, LOAD) == [HelloWanted()]
    assert not await room.link.send_to("w1", Heartbeat())
    assert room.told() == [("hello", "w1", "first")]


async def test_a_repeated_hello_is_answered_and_keeps_the_worker(room, hello):
    worker = room.worker()
    assert await room.say(worker, hello, hello) == [WELCOME, WELCOME]
    assert room.link.worker_ids == ("w1",)
    assert await room.link.send_to("w1", Heartbeat())


async def test_a_reconnected_worker_is_reached_over_its_new_connection(room, hello):
    before, after = room.worker(), room.worker()
    await room.say(before, hello)
    assert await room.say(after, hello) == [WELCOME]
    assert await room.link.send_to("w1", Cancel(workflow_id="flow", request_id=None))
    assert room.heard(after) == [Cancel(workflow_id="flow", request_id=None)]
    assert room.heard(before) == []
    assert await room.say(before, LOAD) == [HelloWanted()]
    assert [event[0] for event in room.told()] == ["hello", "hello"]


async def test_a_restarted_worker_takes_its_id_over_at_once(room, hello):
    before = room.worker()
    await room.say(before, hello)
    before.close()
    after = room.worker()
    assert await room.say(after, msgspec.structs.replace(hello, incarnation="second")) == [WELCOME]
    assert room.told() == [("hello", "w1", "first"), ("restart", "w1"), ("hello", "w1", "second")]


async def test_a_second_live_worker_of_one_id_is_rejected_until_the_first_is_gone(room, hello):
    first, second = room.worker(), room.worker()
    other = msgspec.structs.replace(hello, incarnation="second")
    await room.say(first, hello)
    (answer,) = await room.say(second, other)
    assert isinstance(answer, Rejected)
    assert "worker_id='w1' is in use" in answer.reason
    await room.say(first, LOAD)
    assert room.told() == [("hello", "w1", "first"), ("load", "w1", LOAD)]
    await room.pass_time(3.2)
    assert room.told() == [("lost", "w1")]
    assert WELCOME in await room.say(second, other)


async def test_a_silent_worker_is_lost_after_the_missed_heartbeats(room, hello):
    worker = room.worker()
    await room.say(worker, hello)
    await room.pass_time(2.9)
    assert room.link.worker_ids == ("w1",)
    await room.pass_time(0.3)
    assert room.told() == [("hello", "w1", "first"), ("lost", "w1")]
    assert HelloWanted() in await room.say(worker, LOAD)
    assert room.told() == []


async def test_a_worker_that_is_heard_is_kept_and_hears_a_heartbeat_as_often_as_agreed(room, hello):
    worker = room.worker()
    await room.say(worker, hello)
    beats = 0
    for _ in range(20):
        await room.pass_time(1.0, worker)
        beats += room.heard(worker).count(Heartbeat())
    assert room.link.worker_ids == ("w1",)
    assert 18 <= beats <= 21


async def test_time_in_which_the_coordinator_stood_still_is_not_held_against_workers(room, hello):
    worker = room.worker()
    await room.say(worker, hello)
    await room.pass_time(1.0)
    room.now_s += 600.0
    await room.link.tick()
    assert room.link.worker_ids == ("w1",)
    await room.pass_time(3.2)
    assert room.link.worker_ids == ()


async def test_broadcast_counts_whom_it_reached(room, hello):
    workers = [room.worker() for _ in range(3)]
    for number, worker in enumerate(workers):
        await room.say(worker, msgspec.structs.replace(hello, worker_id=f"w{number}"))
    workers[1].close()
    assert await room.link.broadcast(Heartbeat()) == 2
    assert room.heard(workers[0]) == room.heard(workers[2]) == [Heartbeat()]


async def test_a_connection_that_changes_its_worker_id_loses_the_old_one(room, hello):
    worker = room.worker()
    await room.say(worker, hello, msgspec.structs.replace(hello, worker_id="w2"))
    assert room.link.worker_ids == ("w2",)
    assert [event[:2] for event in room.told()] == [
        ("hello", "w1"),
        ("hello", "w2"),
        ("lost", "w1"),
    ]


async def test_what_a_task_made_in_on_hello_sends_comes_after_the_welcome(room, hello):
    cancel = Cancel(workflow_id="flow", request_id=None)
    sending = []

    class Eager(Recorder):
        def on_hello(self, hello):
            sending.append(asyncio.create_task(room.link.send_to(hello.worker_id, cancel)))
            return WELCOME

    room.link._observer = Eager()
    worker = room.worker()
    answers = await room.say(worker, hello)
    assert await asyncio.gather(*sending) == [True]
    assert answers + room.heard(worker) == [WELCOME, cancel]


async def test_an_observer_that_fails_once_does_not_end_the_service(room, hello, caplog):
    class Faulty(Recorder):
        def on_load(self, worker_id, load):
            raise ZeroDivisionError

    room.link._observer = faulty = Faulty()
    worker = room.worker()
    running = asyncio.create_task(room.link.run())
    for message in (hello, LOAD, STAGE):
        assert worker.send(message)
    async with asyncio.timeout(30):
        while ("stage", "w1", STAGE) not in faulty.events:  # noqa: ASYNC110  (no event to wait for)
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert room.link.num_observer_errors == 1
    assert "ZeroDivisionError" in caplog.text
