"""Mixes and their bounds, against the bound of a whole cluster and by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.accelerator_toml import profile_from_toml
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.tuner.mixes import Bounds, Offer, fastest_s, load_offer, parse_counts
from hexgen_sglang.workload.capacity import capacity_per_s
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.latency import unloaded_s

ACCELERATORS = Path(__file__).parents[3] / "launch/configs/accelerators"
TRACE = load_trace("synthetic:12")


@pytest.fixture(scope="module")
def profiles() -> dict[str, AcceleratorProfile]:
    return {
        path.stem: profile_from_toml(path.read_text("utf-8"), str(path))
        for path in ACCELERATORS.glob("*.toml")
    }


@pytest.fixture(scope="module")
def offer(profiles: dict[str, AcceleratorProfile]) -> Offer:
    return load_offer(parse_counts("h100:0-2,a100:0-2,a6000:1-3"), profiles, {"a6000": 1.5})


def test_mixes_come_by_price_without_the_empty_one(offer: Offer) -> None:
    mixes = offer.mixes()
    assert len(set(mixes)) == len(mixes) == 3 * 3 * 3
    prices = [offer.usd_per_hour(counts) for counts in mixes]
    assert prices == sorted(prices)
    assert mixes[0] == (0, 0, 1)
    assert len(Offer(offer.profiles, (0, 0, 0), (1, 1, 1)).mixes()) == 7


def test_price_and_name_of_a_mix(offer: Offer) -> None:
    h100, a100, a6000 = (profile.price.usd_per_hour.value for profile in offer.profiles)
    assert a6000 == 1.5
    assert offer.usd_per_hour((1, 0, 2)) == pytest.approx(h100 + 2 * a6000)
    assert offer.name((1, 0, 2)) == "1 h100 + 2 a6000"
    assert [profile.name for profile in offer.workers((1, 0, 2))] == ["h100", "a6000", "a6000"]
    assert a100 > 0


@pytest.mark.parametrize("counts", [(0, 0, 1), (0, 0, 3), (2, 1, 1), (1, 2, 3)])
def test_bound_of_a_mix_is_the_bound_of_the_cluster(
    offer: Offer, counts: tuple[int, int, int]
) -> None:
    bounds = Bounds(offer, TRACE)
    whole = capacity_per_s(TRACE, offer.workers(counts))
    assert bounds.capacity_per_s(counts) == pytest.approx(whole, rel=1e-9)


def test_nothing_alone_is_faster_than_each_request_on_its_fastest(offer: Offer) -> None:
    for workflow in TRACE.workflows:
        alone = [unloaded_s(workflow, [profile]) for profile in offer.profiles]
        assert fastest_s(workflow, offer.profiles) <= min(alone) + 1e-9
        for profile, seconds in zip(offer.profiles, alone, strict=True):
            assert fastest_s(workflow, [profile]) == pytest.approx(seconds)


def test_reachable_attainment_grows_with_the_deadline_and_with_faster_workers(offer: Offer) -> None:
    bounds = Bounds(offer, TRACE)
    slow = [bounds.reachable_attainment((0, 0, 1), slo_s) for slo_s in (1, 30, 60, 120, 1_000)]
    fast = [bounds.reachable_attainment((1, 0, 1), slo_s) for slo_s in (1, 30, 60, 120, 1_000)]
    assert slow == sorted(slow)
    assert all(one <= other for one, other in zip(slow, fast, strict=True))
    assert (slow[0], slow[-1]) == (0.0, 1.0)
    assert sum(fast) > sum(slow)


def test_counts_are_read_as_written() -> None:
    assert parse_counts("h100:0-4, a100:2") == {"h100": (0, 4), "a100": (2, 2)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one"),
        ("a100", "name:count"),
        ("a100:x", "name:count"),
        ("a100:-1", "name:count"),
        ("a100:4-2", "least <= most"),
        ("a100:1,a100:2", "each name once"),
        ("a100:0-0", "with a worker"),
        ("a100:0-99,h100:0-99", "mixes"),
        ("a100:0-100000", "at most 1,000"),
    ],
)
def test_malformed_counts_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_counts(text)


def test_offer_needs_profiles_and_sane_prices(profiles: dict[str, AcceleratorProfile]) -> None:
    counts = parse_counts("a100:1")
    with pytest.raises(ConfigError, match="'b200': must be one of"):
        load_offer(parse_counts("b200:1"), profiles, {})
    with pytest.raises(ConfigError, match="'h100'"):
        load_offer(counts, profiles, {"h100": 1.0})
    with pytest.raises(ConfigError, match=">= 0"):
        load_offer(counts, profiles, {"a100": -1.0})
