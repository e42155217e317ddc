"""Whose a workflow is among several coordinators, and what they know of each other."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from hexgen_sglang.coordinator.config import CoordinatorFile, PeerConfig, as_toml, convert
from hexgen_sglang.coordinator.http_errors import ApiError
from hexgen_sglang.coordinator.limits import Limiter, TenantLimits, Used
from hexgen_sglang.coordinator.live_request import Attempt, LiveRequest
from hexgen_sglang.coordinator.peer_client import PeerLost
from hexgen_sglang.coordinator.peers import Beat, Peers, first_of
from hexgen_sglang.coordinator.tenant_shares import TenantShares
from hexgen_sglang.coordinator.worker import Elsewhere, RoomRules, Worker
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.policies.estimators import Rates
from hexgen_sglang.policies.fairness import AttainedService

IDS = ("a", "b", "c")
WORKFLOWS = [f"workflow-{number}" for number in range(3_000)]
RULES = RoomRules(0, 8_192, 4, 3.0)


def test_a_newer_coordinator_may_tell_more_and_an_older_one_less() -> None:
    newer = {"coordinator_id": "b", "used": {"acme": [1, 2, 3, 4]}, "mood": "good"}
    assert convert(newer, Beat, "body") == Beat("b", used={"acme": Used(1, 2, 3)})
    older = {"coordinator_id": "b", "used": {"acme": [1, 2]}}
    assert convert(older, Beat, "body") == Beat("b", used={"acme": Used(1, 2)})
    with pytest.raises(ConfigError, match="number"):
        convert({"coordinator_id": "b", "number": -1}, Beat, "body")


class Network:
    """Peers that answer what they are told to, or not at all."""

    def __init__(self) -> None:
        self.answers: dict[str, Beat | PeerLost] = {}

    async def beat(self, url: str, told: Beat, patience_s: float, kind: type[Beat]) -> Beat:
        answer = self.answers.get(url, PeerLost("down", is_refused=True))
        if isinstance(answer, PeerLost):
            raise answer
        return answer


class Bench:
    """Coordinator "a" and its view of "b" and "c"."""

    def __init__(self, workers: dict[str, Worker] | None = None) -> None:
        self.now_s = 0.0
        self.is_draining = False
        self.lasting: dict[str, Any] = {}
        self.network = Network()
        each = TenantLimits(max_concurrent=4, requests_per_s=1.0, burst=10, tokens_per_min=600)
        self.limiter = Limiter(each, {}, lambda: self.now_s)
        self.shares = TenantShares(AttainedService(), lambda: self.now_s)
        rows = [PeerConfig(coordinator_id=name, url=f"http://{name}:8000") for name in IDS[1:]]
        self.peers = Peers(
            "a",
            rows,
            SimpleNamespace(get=self.lasting.get),  # type: ignore[arg-type]
            SimpleNamespace(workers=workers or {}),  # type: ignore[arg-type]
            self.network,  # type: ignore[arg-type]
            limiter=self.limiter,
            shares=self.shares,
            interval_s=0.25,
            is_draining=lambda: self.is_draining,
            on_change=lambda: None,
            clock=lambda: self.now_s,
        )

    async def with_all(self, **changes: Any) -> None:
        for name in IDS[1:]:
            self.network.answers[f"http://{name}:8000"] = Beat(name, **changes)
        await self.peers.exchange()

    def owners(self) -> list[str]:
        found = (self.peers.owner(one) for one in WORKFLOWS)
        return ["a" if peer is None else peer.coordinator_id for peer in found]


def test_workflows_are_spread_evenly_and_a_death_moves_only_the_dead_ones() -> None:
    before = [first_of(IDS, one) for one in WORKFLOWS]
    for name in IDS:
        assert 0.28 < before.count(name) / len(WORKFLOWS) < 0.39
    after = [first_of(("c", "a"), one) for one in WORKFLOWS]
    moved = [was for was, now in zip(before, after, strict=True) if was != now]
    assert set(moved) == {"b"}


async def test_only_those_that_answer_get_workflows() -> None:
    bench = Bench()
    assert set(bench.owners()) == {"a"}
    await bench.peers.exchange()
    assert set(bench.owners()) == {"a"}
    await bench.with_all()
    everywhere = bench.owners()
    assert everywhere == [first_of(IDS, one) for one in WORKFLOWS]
    bench.network.answers["http://b:8000"] = PeerLost("b: refused", is_refused=True)
    await bench.peers.exchange()
    assert bench.owners() == [first_of(("a", "c"), one) for one in WORKFLOWS]
    await bench.with_all()
    assert bench.owners() == everywhere


async def test_a_slow_peer_is_lost_after_its_patience_only() -> None:
    bench = Bench()
    await bench.with_all()
    peer = bench.peers.peers[0]
    bench.network.answers[peer.url] = PeerLost("timeout")
    bench.now_s = 0.9
    await bench.peers.exchange()
    assert peer.is_alive
    assert not peer.lost.is_set()
    bench.now_s = 1.1
    await bench.peers.exchange()
    assert not peer.is_alive
    assert peer.lost.is_set()


async def test_a_peer_under_another_name_is_none() -> None:
    bench = Bench()
    bench.network.answers["http://b:8000"] = Beat("somebody")
    await bench.peers.exchange()
    assert not bench.peers.peers[0].is_alive
    with pytest.raises(ApiError, match="coordinator_id='somebody': must be one of b, c"):
        bench.peers.heard(Beat("somebody"))


async def test_who_took_a_workflow_over_keeps_it_until_it_ends() -> None:
    bench = Bench()
    theirs = next(one for one in WORKFLOWS if first_of(IDS, one) == "b")
    bench.lasting[theirs] = SimpleNamespace(ended_s=None)
    bench.peers.note_served(theirs)  # b was dead
    assert bench.peers.beat().holds == (theirs,)
    await bench.with_all()
    assert bench.peers.owner(theirs) is None
    bench.lasting[theirs].ended_s = 1.0
    assert bench.peers.beat().holds == ()
    owner = bench.peers.owner(theirs)
    assert owner is not None
    assert owner.coordinator_id == "b"


async def test_what_a_peer_holds_is_sent_there_whoever_owns_it() -> None:
    bench = Bench()
    await bench.with_all()
    ours = next(one for one in WORKFLOWS if first_of(IDS, one) == "a")
    answer = bench.peers.heard(Beat("c", holds=(ours,)))
    assert answer.coordinator_id == "a"
    owner = bench.peers.owner(ours)
    assert owner is not None
    assert owner.coordinator_id == "c"
    bench.peers.lose(owner, "test")
    assert bench.peers.owner(ours) is None


async def test_of_two_that_hold_a_workflow_one_gives_way() -> None:
    bench = Bench()
    await bench.with_all()
    theirs = next(one for one in WORKFLOWS if first_of(IDS, one) == "b")
    own = next(one for one in WORKFLOWS if first_of(IDS, one) == "a")
    for one in (theirs, own):
        bench.lasting[one] = SimpleNamespace(ended_s=None)
        bench.peers.note_served(one)
    bench.peers.heard(Beat("c", holds=(theirs, own)))
    assert bench.peers.owner(theirs) is None  # both took it over
    owner = bench.peers.owner(own)  # this one hung meanwhile
    assert owner is not None
    assert owner.coordinator_id == "c"


async def test_a_draining_coordinator_gives_and_gets_nothing_new() -> None:
    bench = Bench()
    await bench.with_all(is_draining=True)
    assert set(bench.owners()) == {"a"}
    await bench.with_all()
    bench.is_draining = True
    assert bench.peers.beat().is_draining
    assert set(bench.owners()) == {"b", "c"}
    bench.network.answers.clear()
    await bench.peers.exchange()
    assert set(bench.owners()) == {"a"}  # nobody else is there to refuse it


async def test_what_peers_have_in_flight_counts_at_the_workers(
    make_worker: Callable[..., Worker],
    make_request: Callable[..., LiveRequest],
    make_attempt: Callable[..., Attempt],
) -> None:
    request = make_request("own", num_prompt_tokens=100, expected_output_tokens=50)
    worker = make_worker("w", max_running_requests=4, kv_capacity_tokens=1_000)
    bench = Bench({"w": worker})
    await bench.with_all()
    worker.start(make_attempt(worker, request, "own"))
    assert bench.peers.beat().in_flight == {"w": (1, 100, 50)}
    version = worker.version
    bench.peers.heard(Beat("b", in_flight={"w": (3, 300, 60), "unknown": (1, 1, 1)}))
    assert worker.version > version
    assert not worker.is_open(0.0, RULES)  # 4 at once, and 4 are there
    assert not worker.has_kv_room(500, 0.0, RULES)
    assert worker.has_kv_room(490, 0.0, RULES)
    view = worker.view(0.0, Rates(), RULES)
    assert (view.num_in_flight, view.num_in_flight_tokens) == (4, 510)
    assert [one.num_prompt_tokens for one in view.in_flight] == [100, 100, 100, 100]
    assert bench.peers.beat().in_flight == {"w": (1, 100, 50)}  # its own, never others'
    bench.peers.lose(bench.peers.peers[0], "test")
    assert worker.is_open(0.0, RULES)
    assert worker.view(0.0, Rates(), RULES).num_in_flight == 1


def accepted(limiter: Limiter, tenant: str = "acme") -> int:
    """How many requests the tenant may send now; they stay open."""
    for count in range(100):
        try:
            limiter.take(tenant, 1)
        except ApiError:
            return count
    raise AssertionError("there is no limit")


async def test_what_tenants_have_at_peers_counts_until_the_peer_is_lost() -> None:
    bench = Bench()
    await bench.with_all(run="1")
    told = {"acme": Used(num_open=3, num_requests=3, num_tokens=3)}
    bench.peers.heard(Beat("b", run="1", number=2, used=told))
    bench.peers.heard(Beat("b", run="1", number=1))  # overtaken on its way
    assert bench.peers.beat().used == {"acme": Used()}  # its own, never others'
    assert accepted(bench.limiter) == 1
    assert accepted(bench.limiter, "other") == 4
    assert bench.peers.beat().used["acme"] == Used(1, 1, 1)
    assert bench.peers.beat().number < bench.peers.beat().number
    bench.peers.lose(bench.peers.peers[0], "test")
    assert accepted(bench.limiter) == 3


async def test_a_peer_that_begins_anew_counts_anew() -> None:
    bench = Bench()
    await bench.with_all(run="1", used={"acme": Used(0, 1_000, 1_000)})  # before this one began
    bench.peers.heard(Beat("b", run="1", number=1, used={"acme": Used(2, 1_008, 1_002)}))
    bench.peers.heard(Beat("b", run="2"))  # what was open there is lost with it
    assert accepted(bench.limiter) == 2  # of the burst of 10
    bench.now_s += 2.0
    bench.peers.heard(Beat("b", run="2", number=1, used={"acme": Used(0, 1, 1)}))
    assert accepted(bench.limiter) == 1


async def test_what_tenants_attained_at_peers_counts_here_and_is_not_told_on() -> None:
    bench = Bench()
    await bench.with_all(run="1", attained={"busy": 500.0})
    assert bench.shares.levels(["busy", "calm"]) == {"busy": 14, "calm": 0}
    assert bench.peers.beat().attained == {}
    bench.now_s = 60.0  # a half-life; and b and c say so
    await bench.with_all(run="1", number=1, attained={"busy": 250.0, "calm": 250.0})
    assert bench.shares.levels(["busy", "calm"]) == {"busy": 0, "calm": 0}
    assert bench.peers.beat().attained == {}


def test_sums_of_another_coordinator_become_alike_requests() -> None:
    seen = Elsewhere.of(3, 300, 60, 5.0)
    assert seen.num_tokens == 360
    assert len(seen.seen) == 3
    assert (seen.seen[0].num_prompt_tokens, seen.seen[0].expected_output_tokens) == (100, 10)
    assert seen.seen[0].first_token_s == 5.0


def test_configuration_of_peers_is_checked_and_printed() -> None:
    peer = {"coordinator_id": "b", "url": "http://b:8000"}
    good = {"coordinator": {"coordinator_id": "a"}, "peers": [peer]}
    file = convert(good, CoordinatorFile, "test")
    assert 'coordinator_id = "b"' in as_toml(file).replace('"coordinator_id"', "coordinator_id")
    for wrong, told in (
        ({"coordinator": {"coordinator_id": "b"}}, "'b' is there twice"),
        ({"coordinator": {"coordinator_id": "a", "direct": True}}, "must be false with peers"),
        ({"coordinator": {"coordinator_id": "a", "peer_key": "x"}}, "peer_key: must be given"),
        ({"peers": [{**peer, "url": "ftp://b"}]}, "must be http"),
    ):
        with pytest.raises(ConfigError, match=told):
            convert({**good, **wrong}, CoordinatorFile, "test")


def test_beats_are_bounded() -> None:
    for wrong in (
        {"coordinator_id": "b", "in_flight": {"w": [-1, 0, 0]}},
        {"coordinator_id": "b", "holds": ["x"] * 5_000},
        {"coordinator_id": "b", "used": {"acme": [-1, 0, 0]}},
        {"coordinator_id": "b", "used": {"a" * 65: [0, 0, 0]}},
        {"coordinator_id": "b", "attained": {"acme": -1.0}},
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, Beat)
