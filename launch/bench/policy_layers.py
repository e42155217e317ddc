"""The policy against all others, in many cells: on emulated workers, and wider in the simulator.

A cell is (cluster, trace, arrivals, load), one run of `hexgen-sglang bench`, whose JSON goes to
FOLDER/CLUSTER-TRACE-ARRIVALS-LOAD.json. What is there already and valid is not run again, and of
emulated cells no run whose records are under `--work`. `paper` is tuned for each cell: every alpha
of `ALPHAS` runs in the simulator, and on emulated workers only the one that is best there. Then
FOLDER/summary.json:

    .venv/bin/python launch/bench/policy_layers.py confirmed --traces ../shared/traces
    .venv/bin/python launch/bench/policy_layers.py widened --traces ../shared/traces --jobs 2

`--summary-only` counts again what is there. Ratios are other / `hexgen` for seconds and scales and
`hexgen` / other for goodput, so that above 1 is better; over several cells their geometric mean.
Lower bounds: each workflow alone on the worker that is fastest for it (mean and P95), and the fluid
of `hexgen_sglang.workload.fluid` at the cell's rate (mean).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hexgen_sglang.bench.plan import cluster_profiles
from hexgen_sglang.cluster.config import load_cluster
from hexgen_sglang.core.accelerator import AcceleratorProfile
from hexgen_sglang.core.errors import ConfigError, HexgenError
from hexgen_sglang.results.statistics import goodput_per_s
from hexgen_sglang.workload.fluid import fluid_mean_s
from hexgen_sglang.workload.formats import load_trace
from hexgen_sglang.workload.latency import unloaded_s
from hexgen_sglang.workload.trace import Trace

# From the repository root, so that the commands in the results mean something elsewhere.
CLUSTERS = Path("launch/configs/clusters")
RESULTS = Path("launch/bench/results/policy")
OURS, LITE, PAPER = "hexgen", "hexgen-lite", "paper"
ALPHAS = (0.2, 0.4, 0.6, 0.8)
# Seeds of the tuning, none of which is a seed of the comparison.
TUNING_SEED, TUNING_SEEDS = 1_000, 2
LEVEL = 0.95
GOODPUT_SCALES = ("3", "4")


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer runs.

    Attributes:
        clusters: names of files in launch/configs/clusters.
        arrivals, loads: as `hexgen-sglang bench` takes them.
        systems: beside `paper`, which is tuned.
        seeds, workflows: of each run.
    """

    engine: str
    clusters: tuple[str, ...]
    arrivals: tuple[str, ...]
    loads: tuple[str, ...]
    systems: tuple[str, ...]
    seeds: int
    workflows: int


BASELINES = (
    "fcfs+round_robin",
    "sglang-router:cache_aware+lpm",
    "coordinator:least_load+lpm",
)
LAYERS = {
    "confirmed": Layer(
        "emulated",
        ("hetero-1",),
        ("poisson",),
        ("70%", "90%", "110%"),
        (*BASELINES, LITE, OURS),
        3,
        120,
    ),
    "widened": Layer(
        "sim",
        ("hetero-1", "hetero-2", "mixed-8"),
        ("poisson", "gamma:3"),
        ("30%", "50%", "60%", "70%", "80%", "90%", "110%"),
        (
            *BASELINES,
            "lpm+round_robin",
            "hrrn+round_robin",
            "priority+round_robin",
            "sglang-router:power_of_two+lpm",
            "coordinator:least_requests+lpm",
            "coordinator:least_tokens+fcfs",
            "coordinator:least_tokens+lpm",
            "coordinator:earliest_completion+hexgen",
            LITE,
            OURS,
        ),
        5,
        600,
    ),
}


def paper(alpha: float) -> str:
    """The published policy with this alpha, as a name of the bench."""
    return f"coordinator:paper[alpha={alpha}]+hexgen[ordering=urgency;hold=off]"


@dataclass(frozen=True, slots=True)
class Cell:
    """What is run together: every system and seed."""

    cluster: str
    trace: str
    arrivals: str
    load: str

    @property
    def name(self) -> str:
        """Of its files and folders."""
        parts = (self.cluster, Path(self.trace).stem, self.arrivals, self.load)
        return "-".join(parts).replace(":", "").removesuffix("%")


def bench(cell: Cell, layer: Layer, **flags: Any) -> dict[str, Any]:
    """Run `hexgen-sglang bench`; returns its JSON. `flags`: further ones, None: left out."""
    command = [sys.executable, "-m", "hexgen_sglang", "bench"]
    stated = {
        "cluster": CLUSTERS / f"{cell.cluster}.toml",
        "trace": cell.trace,
        "arrivals": cell.arrivals,
        "rate": cell.load,
        "workflows": layer.workflows,
        "seeds": layer.seeds,
        "engine": layer.engine,
        **flags,
    }
    for name, value in stated.items():
        if value is True:
            command.append(f"--{name.replace('_', '-')}")
        elif value is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    path = Path(flags["json"])
    if not path.is_file():
        raise ConfigError(f"{' '.join(command)}: left no result, exit status {done.returncode}")
    result: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return result


def best_paper(cell: Cell, layer: Layer, args: argparse.Namespace) -> str:
    """Name of `paper` with the alpha whose simulated P95 is the lowest."""
    (args.work / cell.name).mkdir(parents=True, exist_ok=True)
    result = bench(
        cell,
        replace(layer, engine="sim", seeds=TUNING_SEEDS),
        first_seed=TUNING_SEED,
        systems=",".join(paper(alpha) for alpha in ALPHAS),
        jobs=args.jobs,
        json=args.work / cell.name / "alphas.json",
    )
    systems = result["loads"][0]["systems"]
    return min(systems, key=lambda name: float(systems[name]["p95_s"]))


def run_layer(layer: Layer, folder: Path, args: argparse.Namespace) -> None:
    """Everything of the layer that has no valid result in the folder yet."""
    for cell in itertools.starmap(
        Cell, itertools.product(layer.clusters, traces(args.traces), layer.arrivals, layer.loads)
    ):
        path = folder / f"{cell.name}.json"
        if path.is_file() and json.loads(path.read_text("utf-8"))["valid"]:
            continue
        flags: dict[str, Any]
        if layer.engine == "sim":
            tuned = [paper(alpha) for alpha in ALPHAS]
            flags = {"jobs": args.jobs}
        else:
            tuned = [best_paper(cell, layer, args)]
            work = args.work / cell.name
            flags = {"time_scale": args.time_scale, "folder": work, "resume": True}
        bench(cell, layer, systems=",".join((*layer.systems, *tuned)), json=path, **flags)


def layer_of(args: argparse.Namespace) -> Layer:
    """The named layer, with what the command line says instead."""
    stated = {name: getattr(args, name) for name in ("workflows", "seeds")}
    several = ("clusters", "arrivals", "loads", "systems")
    stated |= {name: tuple(getattr(args, name) or ()) for name in several}
    return replace(LAYERS[args.layer], **{name: value for name, value in stated.items() if value})


def traces(stated: Sequence[str]) -> list[str]:
    """Trace files, those of the folders among them, and synthetic traces.

    Raises:
        ConfigError: a folder holds none.
    """
    found: list[str] = []
    for name in stated:
        inside = sorted(map(str, Path(name).glob("*.json"))) if Path(name).is_dir() else [name]
        if not inside:
            raise ConfigError(f"--traces={name}: no trace files (*.json) there")
        found += inside
    return found


def summary(folder: Path) -> dict[str, Any]:
    """What summary.json says of the results in a folder.

    Raises:
        ConfigError: there are none.
    """
    files = sorted(path for path in folder.glob("*.json") if path.name != "summary.json")
    if not files:
        raise ConfigError(f"{folder}: no results there")
    results = merged([json.loads(path.read_text("utf-8")) for path in files])
    cells = [row for result in results for row in cell_rows(result)]
    goodput = [row for result in results for row in goodput_rows(result)]
    ratios = {
        f"p95_vs_{other}": by_load(cells, f"p95_vs_{other}")
        for other in ("paper", "best_baseline", "fcfs_round_robin")
    }
    return {
        **ratios,
        "least_p95_vs_paper": min(row["p95_vs_paper"] for row in cells),
        "least_p95_vs_best_baseline": min(row["p95_vs_best_baseline"] for row in cells),
        **{
            f"goodput_vs_{other}": {
                scale: mean_of(
                    row[f"vs_{other}"] for row in goodput if row["deadline_scale"] == scale
                )
                for scale in GOODPUT_SCALES
            }
            for other in ("paper", "best_baseline", "fcfs_round_robin")
        },
        "scale_at_95_vs_paper": mean_of(row["scale_at_95_vs_paper"] for row in cells),
        "scale_at_99_vs_paper": mean_of(row["scale_at_99_vs_paper"] for row in cells),
        **{
            name: by_load(cells, name)
            for name in ("mean_vs_lower_bound", "mean_vs_fluid_bound", "p95_vs_lower_bound")
        },
        "valid": all(result["valid"] for result in results),
        "seeds": results[0]["seeds"],
        "workflows": results[0]["settings"]["workflows_per_run"],
        "cells": cells,
        "goodput": goodput,
    }


def merged(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One result for each (cluster, trace, arrivals), with the loads of all, the lowest first."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for result in results:
        key = (result["cluster"], result["trace"], result["settings"]["arrivals"])
        other = found.setdefault(key, {**result, "loads": []})
        other["valid"] = other["valid"] and result["valid"]
        other["loads"] = sorted([*other["loads"], *result["loads"]], key=lambda load: load["rate"])
    return list(found.values())


def cell_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each load of a result: `hexgen` beside the tuned `paper` and the best other."""
    rows = []
    trace, profiles = drawn_from(result)
    alone_s = alone_on_fastest_s(trace, profiles)
    alone_mean_s, alone_p95_s = float(np.mean(alone_s)), float(np.percentile(alone_s, 95))
    for load in result["loads"]:
        systems = load["systems"]
        ours = systems[OURS]
        others = {name: row for name, row in systems.items() if is_baseline(name)}
        papers = {name: row for name, row in systems.items() if is_paper(name)}
        best = min(others, key=lambda name: others[name]["p95_s"])
        tuned = min(papers, key=lambda name: papers[name]["p95_s"])
        fluid_s = fluid_mean_s(trace, profiles, load["rate"])
        row = {
            "cluster": result["cluster"],
            "trace": result["trace"],
            "arrivals": result["settings"]["arrivals"],
            "load": load["label"],
            "p95_s": ours["p95_s"],
            "mean_s": ours["mean_s"],
            "best_baseline": best,
            "tuned_paper": tuned,
            "p95_vs_paper": papers[tuned]["p95_s"] / ours["p95_s"],
            "p95_vs_best_baseline": others[best]["p95_s"] / ours["p95_s"],
            "p95_vs_fcfs_round_robin": systems["fcfs+round_robin"]["p95_s"] / ours["p95_s"],
            "lower_bound_mean_s": alone_mean_s,
            "mean_vs_lower_bound": ours["mean_s"] / alone_mean_s,
            "lower_bound_p95_s": alone_p95_s,
            "p95_vs_lower_bound": ours["p95_s"] / alone_p95_s,
            "fluid_bound_mean_s": fluid_s,
            "mean_vs_fluid_bound": ours["mean_s"] / fluid_s,
        }
        for scale in ("scale_at_95", "scale_at_99"):
            least = min(papers[name][scale] for name in papers)
            row[f"{scale}_vs_paper"] = least / ours[scale]
        rows.append(row)
    return rows


def goodput_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Highest rate with 95 % of deadlines met, for each deadline scale, against the others'.

    `paper` has at each load the alpha that meets most deadlines there. A ratio is None where one of
    the two fails at the lowest load already.
    """
    rows = []
    for scale in GOODPUT_SCALES:
        met: dict[str, dict[float, float]] = {}
        for load in result["loads"]:
            for name, system in load["systems"].items():
                by_rate = met.setdefault(PAPER if is_paper(name) else name, {})
                other = by_rate.get(load["rate"], 0.0)
                by_rate[load["rate"]] = max(other, system["attainment"][scale])
        found = {name: goodput_per_s(by_rate, LEVEL)[0] for name, by_rate in met.items()}
        ours = found[OURS]
        rivals = {
            "paper": [found[PAPER]],
            "best_baseline": [found[name] for name in found if is_baseline(name)],
            "fcfs_round_robin": [found["fcfs+round_robin"]],
        }
        row: dict[str, Any] = {
            "cluster": result["cluster"],
            "trace": result["trace"],
            "arrivals": result["settings"]["arrivals"],
            "deadline_scale": scale,
            "goodput_per_s": ours,
        }
        for rival, values in rivals.items():
            known = [value for value in values if value is not None]
            row[f"vs_{rival}"] = ours / max(known) if ours is not None and known else None
        rows.append(row)
    return rows


def drawn_from(result: dict[str, Any]) -> tuple[Trace, list[AcceleratorProfile]]:
    """What a result's workflows were drawn from, and the profiles of its workers."""
    cluster = load_cluster(CLUSTERS / f"{result['cluster']}.toml")
    return load_trace(result["settings"]["trace_origin"]), cluster_profiles(cluster, None)


def alone_on_fastest_s(trace: Trace, profiles: Sequence[AcceleratorProfile]) -> list[float]:
    """Latency of each workflow of the trace, alone on the worker that is fastest for it."""
    return [min(unloaded_s(one, [kind]) for kind in profiles) for one in trace.workflows]


def is_paper(name: str) -> bool:
    """Whether it is the published policy, with whatever alpha."""
    return name == PAPER or name.startswith("coordinator:paper[")


def is_baseline(name: str) -> bool:
    """Whether it is neither ours nor the published policy."""
    return not is_paper(name) and "hexgen" not in name


def mean_of(ratios: Iterable[float | None]) -> float | None:
    """Geometric mean; None without a value."""
    known = [ratio for ratio in ratios if ratio is not None]
    return math.exp(sum(map(math.log, known)) / len(known)) if known else None


def by_load(rows: Sequence[dict[str, Any]], field: str) -> dict[str, float | None]:
    """Geometric mean of a field over the cells of each load."""
    labels = dict.fromkeys(row["load"] for row in rows)
    return {label: mean_of(row[field] for row in rows if row["load"] == label) for label in labels}


def main() -> int:
    """Run a layer's missing cells and write its summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("layer", choices=sorted(LAYERS))
    parser.add_argument("--traces", nargs="+", required=True, help="files, folders, synthetic[:N]")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="of the results")
    parser.add_argument("--work", type=Path, default=Path("runs/policy"), help="logs and records")
    for name in ("clusters", "arrivals", "loads", "systems"):
        parser.add_argument(f"--{name}", nargs="*", help="instead of the layer's")
    parser.add_argument("--workflows", type=int, help="of a run, instead of the layer's")
    parser.add_argument("--seeds", type=int, help="instead of the layer's")
    parser.add_argument("--time-scale", type=float, default=4.0, help="of emulated workers")
    parser.add_argument("--jobs", type=int, help="processes of a simulation")
    parser.add_argument("--summary-only", action="store_true", help="run nothing")
    args = parser.parse_args()
    folder = args.folder / args.layer
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if not args.summary_only:
            run_layer(layer_of(args), folder, args)
        found = summary(folder)
    except HexgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    (folder / "summary.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    for row in found["cells"]:
        print(
            f"{row['cluster']:<10} {row['trace']:<10} {row['arrivals']:<8} {row['load']:>5}: "
            f"P95 {row['p95_s']:6.1f} s, paper's / ours {row['p95_vs_paper']:.2f}, "
            f"best other's / ours {row['p95_vs_best_baseline']:.2f} ({row['best_baseline']})"
        )
    print(json.dumps({name: found[name] for name in found if name not in ("cells", "goodput")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
