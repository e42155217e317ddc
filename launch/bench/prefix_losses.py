"""Why prompt tokens are computed that were computed before, and what keeping them is worth.

    .venv/bin/python launch/bench/prefix_losses.py --traces ../shared/traces --json FILE

In the simulator, in these ways: prefixes are not kept between stages and none computed ahead; they
are kept (`retain`), computed ahead (`prewarm`), both; and - a bound for every prewarm - each prompt
finds at its worker what any worker has computed before it, at no cost. Of all prompt tokens: found
in the cache; `evicted`, computed again because the worker had lost them; `elsewhere`, only another
worker had them; `ahead`, computed before their request came. The public traces know no time for
tools; `tool_time.py` adds it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from hexgen_sglang.core.errors import HexgenError
from hexgen_sglang.results.schema import RunFacts
from hexgen_sglang.sim.admission import Admission
from hexgen_sglang.sim.engine import Engine, Prefill
from hexgen_sglang.sim.engine_request import EngineRequest
from hexgen_sglang.sim.prefix_cache import PrefixCache
from hexgen_sglang.sim.testbed import Testbed

OFF, FREE = "off", "free_prewarm"
DISPATCH, ENGINE = "coordinator:marginal_cost", "hexgen"


class Watch:
    """Makes the engines of one run, and counts over them.

    Args:
        free_prewarm: let a prompt find at its engine what any engine has computed.

    Attributes:
        engines: of the run.
        counts: prompt tokens, by what became of them.
        anywhere: what all engines ever computed.
    """

    def __init__(self, free_prewarm: bool) -> None:
        self.free_prewarm = free_prewarm
        self.engines: list[WatchedEngine] = []
        self.counts: Counter[str] = Counter()
        self.anywhere = PrefixCache()

    def __call__(self, *args: Any, **named: Any) -> Engine:
        """A new engine, with the arguments of `Engine`."""
        self.engines.append(WatchedEngine(self, *args, **named))
        return self.engines[-1]


class WatchedEngine(Engine):
    """An engine that remembers everything it ever computed."""

    def __init__(self, watch: Watch, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._watch = watch
        self._ever = PrefixCache()
        self._seen: set[EngineRequest] = set()

    def submit(self, request: EngineRequest) -> None:
        """A request arrives, after what the bound gives it for nothing."""
        if self._watch.free_prewarm:
            most = request.num_prompt_tokens - 1
            known = self._watch.anywhere.num_matched(request.segments, most)
            missing = known - self.cache.num_matched(request.segments, most)
            self.cache.evict(max(0, missing - self.num_free))
            if 0 < missing <= self.num_free:
                self.cache.insert(request.segments, known)
                self._watch.counts["prewarmed"] += missing
        super().submit(request)

    def _prefill_of(self, admission: Admission) -> Prefill:
        for request, _ in admission.chosen:
            if request not in self._seen and not request.is_ahead:
                self._seen.add(request)
                self._count(request)
        return super()._prefill_of(admission)

    def _count(self, request: EngineRequest) -> None:
        most, cached = request.num_prompt_tokens - 1, request.num_cached_tokens
        here = max(cached, self._ever.num_matched(request.segments, most))
        anywhere = max(here, self._watch.anywhere.num_matched(request.segments, most))
        self._watch.counts.update(
            prompt=request.num_prompt_tokens,
            hit=cached,
            evicted=here - cached,
            elsewhere=anywhere - here,
        )

    def _keep_prompt(self, request: EngineRequest) -> None:
        super()._keep_prompt(request)
        computed = min(request.num_computed_tokens, request.num_prompt_tokens)
        self._ever.insert(request.segments, computed)
        self._watch.anywhere.insert(request.segments, computed)


def measure(
    cluster: Path,
    trace: str,
    load: str,
    seed: int,
    workflows: int,
    share: float,
    working_set: float | None = None,
) -> dict[str, Any]:
    """One cell in every way; `working_set`: another than the cluster file's."""
    bed = Testbed.of(cluster, trace)
    workload = bed.workload(load, workflows, seed)
    found: dict[str, Any] = {"trace": Path(trace).stem, "load": load, "seed": seed}
    kept, ahead = f"retain={share:g}", f"prewarm={share:g}"
    dispatch = DISPATCH if working_set is None else f"{DISPATCH}[working_set={working_set:g}]"
    for way in (OFF, kept, ahead, f"{kept};{ahead}", FREE):
        system = f"{dispatch}+{ENGINE}" + (f"[{way}]" if "=" in way else "")
        watch = Watch(free_prewarm=way == FREE)
        facts = bed.run(system, workload, replace(bed.settings(), make_engine=watch))
        found[way] = figures(facts, watch)
    return found


def figures(facts: RunFacts, watch: Watch) -> dict[str, Any]:
    """Shares of the prompt tokens, and seconds of the workflows after the warm-up."""
    took = sorted(one.end_s - one.arrival_s for one in facts.run.workflows if not one.warmup)
    total = watch.counts.pop("prompt")
    kept = [one.retention.totals for one in watch.engines if one.retention is not None]
    num_kept = sum(one.kept for one in kept)
    ahead = [one.ahead.totals for one in watch.engines if one.ahead is not None]
    num_ahead = sum(one.computed for one in ahead)
    return {
        **{f"{name}_frac": round(count / total, 5) for name, count in watch.counts.items()},
        "kept_used_frac": sum(one.used for one in kept) / num_kept if num_kept else None,
        "kept_wasted_frac": sum(one.wasted for one in kept) / num_kept if num_kept else None,
        "ahead_frac": round(num_ahead / total, 5),
        "ahead_wasted_frac": sum(one.wasted for one in ahead) / num_ahead if num_ahead else None,
        "ahead_refused": sum(one.refused for one in ahead),
        "ahead_present": sum(one.present for one in ahead),
        "p95_s": round(took[math.ceil(0.95 * len(took)) - 1], 2),
        "mean_s": round(sum(took) / len(took), 2),
    }


def main() -> None:
    """Measure every cell, print a line for each, and write all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cluster", type=Path, default=Path("launch/configs/clusters/hetero-1.toml")
    )
    parser.add_argument("--traces", required=True, help="folder with trace files, or one trace")
    parser.add_argument("--loads", default="70%,90%", help="shares of the capacity")
    parser.add_argument("--workflows", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--share", type=float, default=0.5, help="of the memory, for each way")
    parser.add_argument("--working-set", type=float, help="another than the cluster file's; 0: off")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    folder = Path(args.traces)
    names = sorted(map(str, folder.glob("*.json"))) if folder.is_dir() else [args.traces]
    cells = []
    for trace, load, seed in itertools.product(names, args.loads.split(","), range(args.seeds)):
        cell = measure(
            args.cluster, trace, load, seed, args.workflows, args.share, args.working_set
        )
        print(json.dumps(cell), flush=True)
        cells.append(cell)
    report = {"command": " ".join(["python", *sys.argv]), "cells": cells}
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except HexgenError as error:
        raise SystemExit(f"prefix_losses: {error}") from error
