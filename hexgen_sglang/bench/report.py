"""The HTML report: one file that needs no network, made from the result and the records.

Style and template lie in the folder `template`; every text is escaped.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hexgen_sglang.bench import plots
from hexgen_sglang.bench.assemble import remarks
from hexgen_sglang.bench.plan import Facts
from hexgen_sglang.results.schema import BenchResult, LoadResult
from hexgen_sglang.results.table import number, ratio, share


def write_report(result: BenchResult, facts: Facts, path: Path) -> None:
    """Write the report.

    Args:
        result: the figures.
        facts: of all runs, for the plots.
        path: its folder is made.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(result, facts), encoding="utf-8")


def render(result: BenchResult, facts: Facts) -> str:
    """The whole page."""
    environment = Environment(
        loader=PackageLoader("hexgen_sglang.bench", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("bench.html.j2").render(
        result=result,
        loads=[_load(load, facts) for load in result.loads],
        runs=_run_rows(result, facts),
        remarks=remarks(result.settings["engine"]),
        command=shlex.join(result.command),
        number=number,
        share=share,
        ratio=ratio,
    )


def _load(load: LoadResult, facts: Facts) -> dict[str, Any]:
    """One load's figures and plots; timelines show the first seed."""
    runs = {name: facts[load.label, name] for name in load.systems}
    return {
        "figures": load,
        "cdf": Markup(plots.latency_cdf(runs)),
        "attainment": Markup(plots.attainment_curve(runs)),
        "timelines": [
            (name, Markup(plots.worker_timeline(some[0].run))) for name, some in runs.items()
        ],
    }


def _run_rows(result: BenchResult, facts: Facts) -> list[dict[str, Any]]:
    """What was measured around each run."""
    rows = []
    for load in result.loads:
        for name in load.systems:
            for one in facts[load.label, name]:
                workers = one.emulation.values()
                rows.append(
                    {
                        "system": name,
                        "load": load.label,
                        "seed": one.run.seed,
                        "wall_s": one.wall_s,
                        "busy": one.machine_busy_frac,
                        "in_flight": one.run.max_in_flight,
                        "overhead": max((row["overhead_frac"] for row in workers), default=None),
                        "drift": max((abs(row["drift_frac"]) for row in workers), default=None),
                        "broken": one.broken,
                    }
                )
    return rows
