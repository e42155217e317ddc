"""Prefixes computed ahead on one rank: messages in, a request for SGLang out."""

from __future__ import annotations

import pickle
from array import array
from types import SimpleNamespace
from typing import Any

import pytest

from hexgen_sglang.plugin.config import PluginConfig
from hexgen_sglang.plugin.prefixes_ahead import AheadOnRank, Parts, PrewarmPrefix
from hexgen_sglang.plugin.retained_prefixes import Prompt, ReleasePrefixes
from hexgen_sglang.plugin.scheduler_process import SchedulerProcess
from hexgen_sglang.protocol.messages import TOKENS_IN_A_PART, Prewarm

IDS = array("i", [(number * 7) % 1_000 for number in range(4_000)])


def messages(ids: array[int] = IDS, workflow_id: str = "w") -> list[Prewarm]:
    return [
        Prewarm(
            workflow_id, "revise", 2_000.0, len(ids), at, ids[at : at + TOKENS_IN_A_PART].tobytes()
        )
        for at in range(0, len(ids), TOKENS_IN_A_PART)
    ]


def command(token_ids: array[int] | None = None) -> PrewarmPrefix:
    ids = array("q", IDS) if token_ids is None else token_ids
    return PrewarmPrefix("w", "revise", 30.0, 5.0, ids, "hexgen-ahead-1")


def request(workflow_id: str = "w", ids: array[int] | None = None, **more: Any) -> Any:
    tag = {"workflow_id": workflow_id, "stage": "draft"}
    params = SimpleNamespace(
        custom_params={"hexgen": tag}, max_new_tokens=99, min_new_tokens=9, regex="x"
    )
    fields = {"lora_id": None, "mm_inputs": None, "extra_key": None, "cache_salt": "s"} | more
    return SimpleNamespace(
        rid="client-1",
        input_text="text",
        input_ids=array("q", range(500)) if ids is None else ids,
        stream=True,
        time_stats=object(),
        sampling_params=params,
        **fields,
    )


class Rank:
    """A rank whose cache has `num_cached` tokens of every prompt."""

    def __init__(self, num_cached: int = 0) -> None:
        self.known: tuple[Prompt, int] | None = None
        self.told: list[int] = []
        self.ahead = AheadOnRank(
            0.5, 20_000, 8_000, lambda *_: num_cached, lambda *_: self.known, self._count
        )
        self.ahead.arrived(request("first"))

    def _count(self, totals: Any) -> None:
        self.told.append(totals.computed)


def test_a_prefix_is_put_together_from_its_messages() -> None:
    parts = Parts()
    first, second = messages()
    assert parts.add(first, 1.0) is None
    whole = parts.add(second, 2.0)
    assert whole is not None
    assert whole.token_ids == array("q", IDS)
    assert (whole.workflow_id, whole.stage, whole.ttl_s, whole.now_s) == ("w", "revise", 2.0, 2.0)
    assert pickle.loads(pickle.dumps(whole)) == whole  # on its way between ranks
    again = parts.add(messages(IDS[:200])[0], 3.0)
    assert again is not None
    assert again.request_id != whole.request_id


@pytest.mark.parametrize("kept", [(1,), (0, 0), (1, 0)])
def test_a_lost_or_repeated_message_makes_no_prefix(kept: tuple[int, ...]) -> None:
    parts, all_of_it = Parts(), messages()
    assert [parts.add(all_of_it[at], 1.0) for at in kept] == [None] * len(kept)
    # A new beginning is whole again.
    assert [parts.add(one, 1.0) is None for one in all_of_it] == [True, False]


def test_messages_of_several_workflows_do_not_mix() -> None:
    parts = Parts()
    other = array("i", [5] * 4_000)
    (a1, a2), (b1, b2) = messages(), messages(other, "other")
    assert parts.add(a1, 1.0) is parts.add(b1, 1.0) is None
    first, second = parts.add(a2, 1.0), parts.add(b2, 1.0)
    assert first is not None
    assert second is not None
    assert (first.token_ids, second.token_ids) == (array("q", IDS), array("q", other))


@pytest.mark.parametrize(
    "bad",
    [
        Prewarm("w", "s", 1.0, 10, 0, b""),
        Prewarm("w", "s", 1.0, 1, 0, b"\1\0\0\0\2\0\0\0"),
        Prewarm("w", "s", 1.0, 1, 0, b"\xff\xff\xff\xff"),
    ],
)
def test_what_is_not_a_prefix_is_dropped(bad: Prewarm) -> None:
    assert Parts().add(bad, 1.0) is None


def test_the_request_is_like_others_but_for_its_prompt_its_length_and_its_workflow() -> None:
    rank = Rank(num_cached=100)
    made = rank.ahead.request(command(), is_busy=False)
    assert list(made.input_ids) == list(IDS)
    assert (made.rid, made.input_text, made.stream) == ("hexgen-ahead-1", "", False)
    assert (made.time_stats, made.extra_key, made.cache_salt) == (None, None, None)
    params = made.sampling_params
    assert (params.max_new_tokens, params.min_new_tokens, params.regex) == (1, 0, None)
    tag = {"workflow_id": "w", "stage": "revise"}
    assert params.custom_params == {"hexgen": tag, "hexgen_arrival_s": 5.0}
    assert rank.told[-1] == 3_900
    assert rank.ahead._pattern.sampling_params.max_new_tokens == 99  # the pattern is untouched


def test_only_its_own_output_is_kept_from_sglang() -> None:
    rank = Rank()
    rank.ahead.request(command(), is_busy=False)
    other, ours = (SimpleNamespace(rid=rid) for rid in ("client-1", "hexgen-ahead-1"))
    rank.ahead.launched([other, ours])
    assert ours.finished_output is True
    assert not hasattr(other, "finished_output")


def test_no_request_is_made_when_it_is_not_worth_it() -> None:
    assert Rank(num_cached=3_950).ahead.request(command(), is_busy=False) is None
    assert Rank().ahead.request(command(), is_busy=True) is None
    assert Rank().ahead.request(command(array("q", [1]) * 8_000), is_busy=False) is None
    fresh = AheadOnRank(0.5, 20_000, 8_000, lambda *_: 0, lambda *_: None)
    fresh.arrived(request("w", lora_id="adapter"))
    assert fresh.request(command(), is_busy=False) is None  # nothing to copy has come yet


def test_without_token_ids_it_goes_by_what_the_engine_knows() -> None:
    rank = Rank()
    asked = PrewarmPrefix("w", "revise", 30.0, 5.0, None, "hexgen-ahead-1")
    assert rank.ahead.request(asked, is_busy=False) is None
    rank.known = (Prompt(array("q", range(2_000)), "tenant", "salt"), 1_500)
    made = rank.ahead.request(asked, is_busy=False)
    assert list(made.input_ids) == list(range(1_500))
    assert (made.extra_key, made.cache_salt) == ("tenant", "salt")


def test_a_prompt_in_another_namespace_does_not_use_it() -> None:
    rank = Rank()
    rank.ahead.request(command(), is_busy=False)
    rank.ahead.arrived(request("w", array("q", IDS)))  # under a salt of its own
    assert rank.ahead.rule.totals.saved == 0
    rank.ahead.arrived(request("w", array("q", IDS), cache_salt=None))
    assert rank.ahead.rule.totals.saved == 4_000


def test_every_rank_adds_the_request_behind_those_of_clients() -> None:
    process = SchedulerProcess(PluginConfig())
    process.ahead = Rank().ahead
    scheduler = SimpleNamespace(waiting_queue=[])
    sent = [command()]
    (made,) = process.before_input(scheduler, sent)
    assert made.rid == "hexgen-ahead-1"
    assert len(sent) == 1  # with pipeline parallelism SGLang passes the list on
    assert process.before_input(scheduler, [ReleasePrefixes("w")]) == []
    assert process.ahead.rule.totals.wasted == 4_000
    client = request("x")
    busy = [client, command()]
    assert process.before_input(scheduler, busy) == [client]
    scheduler.waiting_queue.append(object())
    assert process.before_input(scheduler, [command()]) == []
    assert process.ahead.rule.totals.refused == 2
