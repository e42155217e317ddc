"""Kept prefixes on one rank: requests and commands in, marks out."""

from __future__ import annotations

import pickle
from array import array
from types import SimpleNamespace
from typing import Any

import pytest

from hexgen_sglang.plugin.config import PluginConfig
from hexgen_sglang.plugin.request_view import ARRIVAL_FIELD
from hexgen_sglang.plugin.retained_prefixes import (
    MarkPrefixes,
    Prompt,
    ReleasePrefixes,
    RetainedPrefixes,
    RetainPrefixes,
    retention_command,
)
from hexgen_sglang.plugin.scheduler_process import SchedulerProcess
from hexgen_sglang.protocol.messages import Release, Retain


def request(workflow_id: str | None, first: int, num_tokens: int = 1_000, **more: Any) -> Any:
    params: dict[str, Any] = {ARRIVAL_FIELD: 1.0}
    if workflow_id is not None:
        params["hexgen"] = {"workflow_id": workflow_id, "stage": "draft", "workflow_type": "sql"}
    fields = {"extra_key": None, "lora_id": None, "mm_inputs": None, "cache_salt": None} | more
    return SimpleNamespace(
        rid="r",
        sampling_params=SimpleNamespace(custom_params=params),
        input_ids=array("q", range(first, first + num_tokens)),
        **fields,
    )


class Rank:
    """Kept prefixes whose marks are written down."""

    def __init__(self) -> None:
        self.marked: list[tuple[Prompt, int]] = []
        self.told: list[int] = []
        self.prefixes = RetainedPrefixes(
            0.5, 10_000, lambda *mark: self.marked.append(mark), self._count
        )

    def _count(self, totals: Any) -> None:
        self.told.append(totals.kept)


@pytest.mark.parametrize("message", [Retain("w", 1_500.0), Release("w")])
def test_commands_survive_the_way_between_ranks(message: Retain | Release) -> None:
    command = retention_command(message, 2.0)
    assert pickle.loads(pickle.dumps(command)) == command


def test_a_prompt_is_marked_with_its_keys_while_its_workflow_lasts() -> None:
    rank = Rank()
    rank.prefixes.arrived(request("w", 0, extra_key="tenant", cache_salt="salt"))
    rank.prefixes.apply(RetainPrefixes("w", 5.0, 2.0))
    assert rank.prefixes.is_due(2.0)
    rank.prefixes.apply(MarkPrefixes(2.0))
    ((prompt, num_tokens),) = rank.marked
    assert (prompt.extra_key, prompt.cache_salt, num_tokens) == ("tenant", "salt", 1_000)
    assert list(prompt.token_ids) == list(range(1_000))
    assert rank.told == [1_000]
    rank.marked.clear()
    rank.prefixes.apply(ReleasePrefixes("w"))
    rank.prefixes.apply(MarkPrefixes(3.0))
    assert rank.marked == []


def test_only_plain_prompts_of_workflows_are_kept() -> None:
    rank = Rank()
    for unfit in (
        request(None, 0),
        request("lora", 0, lora_id="adapter"),
        request("image", 0, mm_inputs=object()),
        request("short", 0, num_tokens=60),
    ):
        rank.prefixes.arrived(unfit)
    rank.prefixes.apply(MarkPrefixes(2.0))
    assert rank.marked == []


def test_every_rank_follows_requests_and_commands_and_leaves_sglang_its_own() -> None:
    process = SchedulerProcess(PluginConfig())
    rank = Rank()
    process.prefixes = rank.prefixes
    arrived, other = request("w", 0), object()
    messages = [arrived, RetainPrefixes("w", 5.0, 1.5), other, MarkPrefixes(2.0)]
    scheduler = SimpleNamespace()
    assert process.before_input(scheduler, messages) == [arrived, other]
    assert [tokens for _, tokens in rank.marked] == [1_000]
    assert len(messages) == 4  # with pipeline parallelism SGLang passes the list on
