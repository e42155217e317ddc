"""What a tuner may change in a coordinator: all at once or nothing, and the engines with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from hexgen_sglang.coordinator.config import CoordinatorConfig
from hexgen_sglang.coordinator.engine_ordering import EngineOrdering, Standing
from hexgen_sglang.coordinator.live_request import LiveRequest
from hexgen_sglang.coordinator.queue import CentralQueue
from hexgen_sglang.coordinator.tuned_settings import AdjustablePolicy, TunedSettings
from hexgen_sglang.coordinator.worker import Worker
from hexgen_sglang.coordinator.working_set import WorkingSet
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.policies.ordering import ORDERING
from hexgen_sglang.protocol.messages import CoordinatorMessage, OrderingSet, PolicySettings

MakeRequest = Callable[..., LiveRequest]

SLACK = "ordering.best_effort_slack_s"


class Room:
    """Settings of a coordinator, with what its engines and its dispatcher were told."""

    def __init__(self, config: CoordinatorConfig, *, has_engines: bool = True) -> None:
        self.told: list[tuple[str, dict[str, float]]] = []
        self.num_kicks = 0
        self.working_set = WorkingSet(config.working_set if config.binding == "late" else 0.0)
        self.queue = CentralQueue(
            ORDERING.create(config.ordering, **config.ordering_settings), 10, 10_000, lambda: 1.0
        )
        self.policy = AdjustablePolicy(config.dispatch, config.dispatch_settings)
        self.settings = TunedSettings(
            config,
            self.policy,
            self.working_set,
            self.queue,
            (lambda *told: self.told.append(told)) if has_engines else None,
            self.kick,
        )

    def kick(self) -> None:
        self.num_kicks += 1


def test_every_kind_of_setting_is_changed_and_told() -> None:
    room = Room(CoordinatorConfig())
    before = room.settings.in_force()
    assert (before["working_set"], before[SLACK]) == (1.5, 30.0)
    room.settings.change({"caution": 2.0, "working_set": 3.0, SLACK: 12.0})
    after = room.settings.in_force()
    assert after == {**before, "caution": 2.0, "working_set": 3.0, SLACK: 12.0}
    assert room.policy.settings["caution"] == 2.0
    assert room.working_set.limit == 3.0
    assert room.told == [("least_slack", {"best_effort_slack_s": 12.0})]
    room.settings.change({SLACK: 30.0})
    assert room.settings.in_force() == {**after, SLACK: 30.0}
    assert room.told[1:] == [("least_slack", {"best_effort_slack_s": 30.0})]
    assert room.num_kicks == 2


def test_engines_hear_nothing_of_settings_that_are_not_theirs() -> None:
    room = Room(CoordinatorConfig())
    room.settings.change({"caution": 2.0, SLACK: 30.0})
    assert room.told == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caution": -1.0}, "caution"),
        ({"cautious": 1.0}, "cautious"),
        ({SLACK: -1.0}, "best_effort_slack_s=-1"),
        ({"ordering.speed": 1.0}, "speed"),
        ({"working_set": 0.0}, "working_set=0.0: must be above 0"),
        ({"working_set": 1_001.0}, "at most 1000"),
    ],
)
def test_all_or_none_are_changed(changes: dict[str, float], message: str) -> None:
    room = Room(CoordinatorConfig())
    before = room.settings.in_force()
    with pytest.raises(ConfigError, match=message):
        room.settings.change({"prefix_trust": 0.5, "working_set": 2.0, SLACK: 12.0, **changes})
    assert room.settings.in_force() == before
    assert (room.told, room.num_kicks, room.working_set.limit) == ([], 0, 1.5)


def test_what_is_not_limited_and_engines_that_are_left_alone_stay_so() -> None:
    room = Room(CoordinatorConfig(working_set=0.0), has_engines=False)
    assert SLACK not in room.settings.in_force()
    with pytest.raises(ConfigError, match="there must be a limit"):
        room.settings.change({"working_set": 1.0})
    with pytest.raises(ConfigError, match="left alone"):
        room.settings.change({SLACK: 12.0})
    early = Room(CoordinatorConfig(dispatch="paper", binding="early"))
    assert "working_set" not in early.settings.in_force()


def test_what_waits_is_ranked_by_the_new_settings(make_request: MakeRequest) -> None:
    room = Room(CoordinatorConfig())
    hurried = make_request("hurried", arrival_s=0.0, deadline_s=20.0)
    patient = make_request("patient", arrival_s=0.0, deadline_s=None)
    for request in (patient, hurried):
        room.queue.push(request)
    assert [one.view.request_id for one in room.queue.in_order(set())] == ["hurried", "patient"]
    room.settings.change({SLACK: 1.0})
    assert [one.view.request_id for one in room.queue.in_order(set())] == ["patient", "hurried"]
    assert len(room.queue) == 2


class Crew:
    """Workers whose link takes what is sent, but for those that are out of reach."""

    def __init__(self, *workers: Worker) -> None:
        self.workers = {worker.worker_id: worker for worker in workers}
        self.sent: list[tuple[str, CoordinatorMessage]] = []
        self.out_of_reach: set[str] = set()
        self.engines = EngineOrdering(self.workers.values, self.send)

    async def send(self, worker_id: str, message: CoordinatorMessage) -> bool:
        self.sent.append((worker_id, message))
        return worker_id not in self.out_of_reach

    def standings(self) -> dict[str, Standing]:
        return {name: standing for name, (standing, _) in self.engines.standings().items()}


def worker(name: str, *, linked: bool = True, ordering: str = "least_slack") -> Worker:
    return Worker(name, f"http://{name}:1", "link", linked=linked, ordering=ordering)


async def settled() -> None:
    """What was begun is sent; nothing in these tests waits for anybody else."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_linked_engines_of_the_policy_are_told_and_the_others_counted() -> None:
    crew = Crew(
        worker("ours"), worker("old"), worker("strict"), worker("gone"), worker("lost"),
        worker("stock", linked=False, ordering=""), worker("lpm", ordering="lpm"),
    )  # fmt: skip
    crew.out_of_reach = {"gone"}
    assert crew.engines.report() == {"ordering": None, "settings": None, "workers": {}}
    wanted = PolicySettings("least_slack", {"best_effort_slack_s": 9.0})
    crew.engines.use(wanted.ordering, wanted.settings)
    crew.workers["lost"].linked = False
    await settled()
    assert {name for name, _ in crew.sent} == {"ours", "old", "strict", "gone", "lost"}
    assert {message for _, message in crew.sent if message != wanted} == set()
    crew.engines.answered("ours", OrderingSet(wanted.ordering, wanted.settings))
    crew.engines.answered("strict", OrderingSet(wanted.ordering, wanted.settings, "too small"))
    crew.engines.answered("old", OrderingSet(wanted.ordering, {"best_effort_slack_s": 30.0}))
    assert crew.standings() == {
        "ours": Standing.APPLIED,
        "old": Standing.SENT,
        "strict": Standing.REFUSED,
        "gone": Standing.UNREACHED,
        "lost": Standing.UNLINKED,
        "stock": Standing.UNLINKED,
        "lpm": Standing.OTHER,
    }
    report = crew.engines.report()
    assert (report["ordering"], report["settings"]) == (wanted.ordering, wanted.settings)
    assert report["workers"]["strict"] == {"standing": "refused", "why": "too small"}
    counts = crew.engines.counts()
    assert sum(counts.values()) == len(crew.workers)
    assert (counts["applied"], counts["unlinked"]) == (1, 2)


async def test_whoever_says_hello_later_is_told_what_is_in_force() -> None:
    crew = Crew(worker("first"))
    late = worker("late")
    crew.engines.welcomed(crew.workers["first"])
    await settled()
    assert crew.sent == []  # nothing was changed yet: engines are as they were started
    for slack_s in (9.0, 20.0):
        crew.engines.use("least_slack", {"best_effort_slack_s": slack_s})
    await settled()
    crew.sent.clear()
    crew.workers["late"] = late
    crew.workers["stock"] = worker("stock", ordering="fcfs")
    for joined in (late, crew.workers["first"], crew.workers["stock"]):
        crew.engines.welcomed(joined)
    await settled()
    newest = PolicySettings("least_slack", {"best_effort_slack_s": 20.0})
    assert crew.sent == [("late", newest), ("first", newest)]
    # A restarted process is not taken to have what the one before it had.
    crew.engines.answered("first", OrderingSet("least_slack", {"best_effort_slack_s": 20.0}))
    assert crew.standings()["first"] is Standing.APPLIED
    crew.engines.welcomed(crew.workers["first"])
    assert crew.standings()["first"] is Standing.SENT
    await settled()
