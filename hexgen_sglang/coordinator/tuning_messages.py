"""Lines between a coordinator and its tuner, JSON, one message each, over the tuner's pipes.

Coordinator to tuner: `Start` once, then `Crew` whenever the workers change, and an
`ObservedWorkflow` for each workflow that ended. Tuner to coordinator: `Said`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from hexgen_sglang.coordinator.tuning_config import TuningConfig
from hexgen_sglang.protocol.observed import ObservedWorkflow
from hexgen_sglang.protocol.tag import Name

Options = Annotated[dict[str, float], Meta(max_length=64)]
# "keep": nothing better; "advice": better, not used; "apply", "return": use these settings.
Kind = Literal["keep", "advice", "apply", "return", "failed"]


class Start(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="start"):
    """What is tuned. `settings`: the dispatch policy's that are in force now."""

    tuning: TuningConfig
    dispatch: Name
    binding: Literal["late", "early"]
    settings: Options


class Crew(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="crew"):
    """Hardware of every worker that takes requests; one entry for each."""

    hardware: Annotated[tuple[str, ...], Meta(max_length=4_096)]


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
