"""Lines between a coordinator and its tuner, JSON, one message each, over the tuner's pipes.

Coordinator to tuner: `Start` once, then `Crew` whenever the workers change, and an
`ObservedWorkflow` for each workflow that ended. Tuner to coordinator: `Said`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from hexgen_sglang.coordinator.tuning_config import TuningConfig
from hexgen_sglang.protocol.observed import ObservedWorkflow
from hexgen_sglang.protocol.tag import Name

# Names of settings that are not the dispatch policy's: the working set, and before the names of
# the ordering policy's.
WORKING_SET = "working_set"
ORDERING_PREFIX = "ordering."


def split_ordering(settings: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """The ordering policy's settings by their own names, and all others."""
    own = {
        name.removeprefix(ORDERING_PREFIX): settings[name]
        for name in settings
        if name.startswith(ORDERING_PREFIX)
    }
    return own, {name: settings[name] for name in settings if not name.startswith(ORDERING_PREFIX)}


Options = Annotated[dict[str, float], Meta(max_length=64)]
# "keep": nothing better; "advice": better, not used; "apply", "return": use these settings.
Kind = Literal["keep", "advice", "apply", "return", "failed"]


class Start(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="start"):
    """What is tuned.

    Attributes:
        settings: in force now, of everything that can be changed; no other one is searched.
        ordering: the central queue's policy.
        engines_told: engines stand at the ordering settings in force; else they are as they were
            started, which `tuning.engine` states.
    """

    tuning: TuningConfig
    dispatch: Name
    binding: Literal["late", "early"]
    settings: Options
    ordering: Name = "fcfs"
    engines_told: bool = False


class CrewMember(Struct, frozen=True, forbid_unknown_fields=True):
    """A worker: its hardware, and the profile's seconds in one of ours; None: it has not told."""

    hardware: str
    time_scale: Annotated[float, Meta(gt=0)] | None


class Crew(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="crew"):
    """Every worker that takes requests, in order."""

    members: Annotated[tuple[CrewMember, ...], Meta(max_length=4_096)]


class Said(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What came of a search, or of watching a change.

    Attributes:
        kind: see `Kind`; "failed": the search could not be made.
        settings: the best found; in force from now on for "apply" and "return".
        reason: for people.
        gain, low, high: over what was in force, with its interval; None: none, or infinite.
        num_runs, wall_s: cost of the search.
    """

    kind: Kind
    settings: Options
    reason: Annotated[str, Meta(max_length=1_024)]
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    num_runs: int = 0
    wall_s: float = 0.0


ToTuner = Start | Crew | ObservedWorkflow

to_tuner = msgspec.json.Decoder(ToTuner).decode
from_tuner = msgspec.json.Decoder(Said).decode


def line(message: ToTuner | Said) -> bytes:
    """The message as a line."""
    return msgspec.json.encode(message) + b"\n"
