"""Mixes of workers: how many of which accelerator, what they cost, what they could serve.

Pure arithmetic on accelerator profiles; whether a mix holds is simulated elsewhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.workload.capacity import least_makespan, step_seconds
from hexgen_sglang.workload.latency import Reuse, cached_tokens, request_s
from hexgen_sglang.workload.trace import Trace, TraceWorkflow

MAX_WORKERS = 1_000
MAX_MIXES = 5_000

Counts = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """What can be had: workers of some accelerators.

    Attributes:
        profiles: one for each accelerator, with the price to count with.
        least, most: workers of each, 0 <= least <= most.
    """

    profiles: tuple[AcceleratorProfile, ...]
    least: Counts
    most: Counts

    def mixes(self) -> list[Counts]:
        """All mixes with at least one worker, by price and then by counts."""
        spans = [range(low, high + 1) for low, high in zip(self.least, self.most, strict=True)]
        every = (counts for counts in itertools.product(*spans) if any(counts))
        return sorted(every, key=lambda counts: (self.usd_per_hour(counts), counts))

    def usd_per_hour(self, counts: Counts) -> float:
        """Price of a mix."""
        prices = (profile.price.usd_per_hour.value for profile in self.profiles)
        return math.fsum(count * price for count, price in zip(counts, prices, strict=True))

    def workers(self, counts: Counts) -> tuple[AcceleratorProfile, ...]:
        """The profile of every worker of a mix."""
        pairs = zip(self.profiles, counts, strict=True)
        return tuple(profile for profile, count in pairs for _ in range(count))

    def name(self, counts: Counts) -> str:
        """`2 a100 + 1 a6000`."""
        pairs = zip(self.profiles, counts, strict=True)
        return " + ".join(f"{count} {profile.name}" for profile, count in pairs if count)


def parse_counts(text: str) -> dict[str, tuple[int, int]]:
    """`h100:0-4,a100:2` as {"h100": (0, 4), "a100": (2, 2)}.

    Raises:
        ConfigError: malformed, a name twice, no worker at all, or too many mixes.
    """
    found: dict[str, tuple[int, int]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, span = part.partition(":")
        low, dash, high = span.partition("-")
        numbers = (low, high if dash else low)
        if not name or not all(number.isascii() and number.isdigit() for number in numbers):
            raise ConfigError(f"gpus {part!r}: must be name:count or name:least-most")
        least, most = int(numbers[0]), int(numbers[1])
        if name in found or not least <= most <= MAX_WORKERS:
            raise ConfigError(
                f"gpus {part!r}: each name once, least <= most, at most {MAX_WORKERS:,}"
            )
        found[name] = (least, most)
    num_mixes = math.prod(most - least + 1 for least, most in found.values())
    if not any(most for _, most in found.values()) or num_mixes > MAX_MIXES:
        raise ConfigError(
            f"gpus {text!r}: {num_mixes:,} mixes; must be at least one with a worker, "
            f"at most {MAX_MIXES:,}"
        )
    return found


def with_price(profile: AcceleratorProfile, usd_per_hour: float) -> AcceleratorProfile:
    """The profile at another price.

    Raises:
        ConfigError: the price is not finite or below 0.
    """
    if not (math.isfinite(usd_per_hour) and usd_per_hour >= 0):
        raise ConfigError(f"price {profile.name}={usd_per_hour}: must be a finite number >= 0")
    price = msgspec.structs.replace(
        profile.price.usd_per_hour, value=usd_per_hour, source="stated on the command line"
    )
    return msgspec.structs.replace(
        profile, price=msgspec.structs.replace(profile.price, usd_per_hour=price)
    )


@dataclass(slots=True)
class Bounds:
    """What no policy can exceed, for mixes of an offer.

    Attributes:
        offer: the accelerators.
        trace: the workflows.
    """

    offer: Offer
    trace: Trace
    _seconds: NDArray[np.float64] = field(init=False)
    _fastest: dict[tuple[bool, ...], tuple[float, ...]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._seconds = step_seconds(self.trace, self.offer.profiles)

    def capacity_per_s(self, counts: Counts) -> float:
        """The bound of `workload.capacity` on workflows per second.

        Workers of one accelerator share work evenly at best: they count as one that is as
        many times as fast.
        """
        used = [index for index, count in enumerate(counts) if count]
        columns = self._seconds[:, used] / np.array([counts[index] for index in used])
        return 1.0 / least_makespan(columns)

    def reachable_attainment(self, counts: Counts, slo_s: float) -> float:
        """Share of the trace's workflows that meet the deadline alone on the mix.

        Every request alone on its fastest accelerator, templates cached: no workflow of a
        loaded cluster is faster.
        """
        kinds = tuple(count > 0 for count in counts)
        if kinds not in self._fastest:
            profiles = [p for p, used in zip(self.offer.profiles, kinds, strict=True) if used]
            self._fastest[kinds] = tuple(fastest_s(w, profiles) for w in self.trace.workflows)
        seconds = self._fastest[kinds]
        return sum(second <= slo_s for second in seconds) / len(seconds)


def fastest_s(workflow: TraceWorkflow, profiles: Sequence[AcceleratorProfile]) -> float:
    """Critical path of a workflow with each request alone on its fastest accelerator."""
    cached = cached_tokens(workflow, Reuse.PERFECT)
    ends: list[float] = []
    for index, stage in enumerate(workflow.stages):
        start = max((ends[before] for before in stage.after), default=0.0) + stage.tool_s
        slowest = max(
            min(
                request_s(profile, request.num_input_tokens, hit, request.num_output_tokens)
                for profile in profiles
            )
            for request, hit in zip(stage.requests, cached[index], strict=True)
        )
        ends.append(start + slowest)
    return max(ends)


def load_offer(
    counts: Mapping[str, tuple[int, int]],
    profiles: Mapping[str, AcceleratorProfile],
    prices: Mapping[str, float],
) -> Offer:
    """The offer of some accelerators at their profiles' or at stated prices.

    Raises:
        ConfigError: an accelerator without profile, or a price for one that is not offered.
    """
    for name in counts:
        if name not in profiles:
            raise ConfigError(f"gpus {name!r}: must be one of {', '.join(sorted(profiles))}")
    for name in prices:
        if name not in counts:
            raise ConfigError(f"price {name!r}: must be one of {', '.join(counts)}")
    chosen = tuple(
        with_price(profiles[name], prices[name]) if name in prices else profiles[name]
        for name in counts
    )
    spans = list(counts.values())
    return Offer(chosen, tuple(low for low, _ in spans), tuple(high for _, high in spans))
