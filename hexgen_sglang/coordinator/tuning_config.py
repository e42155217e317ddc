"""Settings of the tuner beside a coordinator: the table `[coordinator.tuning]`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from hexgen_sglang.protocol.tag import Name

Mode = Literal["off", "advise", "auto"]
Objective = Literal["p95", "p99", "mean", "attainment", "goodput", "goodput_per_usd"]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class TuningConfig(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Search better settings on recent traffic, in a process of its own.

    Those of the dispatch policy, the working set, and, where workers are linked and this
    coordinator is the only one, those of the ordering policy, in the central queue and in the
    engines. With "auto" engines that order by the coordinator's policy are given its
    `ordering_settings` from the start.

    Attributes:
        mode: "off"; "advise": log and show what would be better; "auto": use it, too.
        profiles: accelerator profile (a file) by hardware name of the workers; a worker whose
            hardware has none makes a search impossible, which is said. Workers that emulate
            tell by themselves how fast.
        engine: how the engines order their queues, as they were started, as in the bench's system
            names, such as "hexgen", "hexgen[best_effort_slack_s=20]" or "lpm".
        objective: what is made better.
        every_s: from the end of a search to the next.
        window_workflows: newest ended workflows that are replayed, at most.
        window_s: workflows that arrived longer than this before the newest are not replayed.
        min_workflows: with fewer there is no search.
        candidates, seeds, workflows: settings tried, most runs of each, workflows of a run.
        processes: of the search; all take only time that no other process wants.
        min_gain: least gain worth a change: 0.05 is 5 % for latencies and 5 percentage points
            for attainment; else in the objective's unit.
        cool_down_s: least time between two changes.
        watch_workflows: ended workflows with a deadline that judge a change.
    """

    mode: Mode = "off"
    profiles: Annotated[dict[Name, str], Meta(max_length=256)] = {}
    engine: Annotated[str, Meta(min_length=1, max_length=128)] = "hexgen"
    objective: Objective = "p95"
    every_s: Seconds = 300.0
    window_workflows: Annotated[int, Meta(ge=2, le=100_000)] = 500
    window_s: Seconds = 3_600.0
    min_workflows: Annotated[int, Meta(ge=2, le=100_000)] = 50
    candidates: Annotated[int, Meta(ge=2, le=1_000)] = 9
    seeds: Annotated[int, Meta(ge=2, le=1_000)] = 6
    workflows: Annotated[int, Meta(ge=10, le=100_000)] = 150
    processes: Annotated[int, Meta(ge=1, le=256)] = 1
    min_gain: Annotated[float, Meta(ge=0, le=1e9)] = 0.05
    cool_down_s: Annotated[float, Meta(ge=0, le=86_400)] = 300.0
    watch_workflows: Annotated[int, Meta(ge=10, le=100_000)] = 50

    def __post_init__(self) -> None:
        if self.mode != "off" and not self.profiles:
            raise ValueError(f"mode={self.mode!r}: needs profiles, a file for each hardware")
        if self.min_workflows > self.window_workflows:
            raise ValueError(
                f"min_workflows={self.min_workflows}: must be at most "
                f"window_workflows={self.window_workflows}"
            )
