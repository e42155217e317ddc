"""KV tokens that requests of an emulated decode batch share, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from hexgen_sglang.core.accelerator import AcceleratorProfile, Sourced
from hexgen_sglang.core.accelerator_toml import profile_to_toml
from hexgen_sglang.plugin.config import PluginConfig
from hexgen_sglang.plugin.emulation.repeated import RepeatedTokens, repeated_read_frac

TEMPLATE, SCHEMA, OWN = range(1_000), range(1_000, 1_600), range(5_000, 5_100)


class Table:
    """SGLang's table of KV slots, and requests that have rows in it."""

    def __init__(self) -> None:
        self.rows = torch.zeros((8, 2_000), dtype=torch.int32)
        self.num_requests = 0
        self.places: dict[str, int] = {}

    def request(self, *parts: range) -> Any:
        slots = [slot for part in parts for slot in part]
        row = self.num_requests
        self.num_requests += 1
        self.rows[row, : len(slots)] = torch.tensor(slots, dtype=torch.int32)
        prompt = [0] * len(slots)
        req = SimpleNamespace(rid=f"r{row}", retraction_count=0, origin_input_ids=prompt)
        self.places[req.rid] = row
        return req

    def batch(self, *reqs: Any) -> Any:
        return SimpleNamespace(
            reqs=list(reqs),
            req_pool_indices=torch.tensor([self.places[req.rid] for req in reqs]),
            req_to_token_pool=SimpleNamespace(req_to_token=self.rows),
        )


def test_each_copy_of_a_slot_beyond_the_first_is_counted_on_every_level() -> None:
    table, repeated = Table(), RepeatedTokens()
    alone = table.request(range(6_000, 6_500))
    first = table.request(TEMPLATE, SCHEMA, OWN)
    second = table.request(TEMPLATE, SCHEMA, range(7_000, 7_050))
    other = table.request(TEMPLATE, range(8_000, 8_300))
    assert repeated.count(table.batch(alone)) == 0
    assert repeated.count(table.batch(alone, first, second, other)) == 2 * 1_000 + 600
    assert repeated.count(table.batch(first, other)) == 1_000  # `second` has ended
    assert repeated.count(table.batch(other)) == 0


def test_a_request_that_was_retracted_has_other_slots() -> None:
    table, repeated = Table(), RepeatedTokens()
    one, two = table.request(TEMPLATE), table.request(TEMPLATE)
    assert repeated.count(table.batch(one, two)) == 1_000
    table.rows[table.places[one.rid], :1_000] = torch.arange(9_000, 10_000, dtype=torch.int32)
    one.retraction_count = 1
    assert repeated.count(table.batch(one, two)) == 0


@pytest.mark.parametrize(("stated", "found"), [(None, 1.0), (0.0, 0.0), (0.25, 0.25)])
def test_the_profile_says_what_a_repeated_token_costs(
    stated: float | None,
    found: float,
    linear_profile: Callable[..., AcceleratorProfile],
    tmp_path: Path,
) -> None:
    profile = linear_profile()
    if stated is not None:
        frac = Sourced(stated, "made up")
        decode = msgspec.structs.replace(profile.decode, repeated_read_frac=frac)
        profile = msgspec.structs.replace(profile, decode=decode)
    path = tmp_path / "profile.toml"
    path.write_text(profile_to_toml(profile), encoding="utf-8")
    assert repeated_read_frac(PluginConfig(emulate=str(path))) == found
    assert repeated_read_frac(PluginConfig()) == 1.0
