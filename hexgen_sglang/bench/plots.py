"""The report's plots as inline SVG text. matplotlib is imported only when one is drawn."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.results import statistics
from hexgen_sglang.results.records import RunRecord
from hexgen_sglang.results.schema import RunFacts

Runs = Mapping[str, Sequence[RunFacts]]

_BINS = 300
_CURVE_POINTS = 400
# Distinguishable without colour vision (Okabe and Ito), in the order of the systems.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000", "#999999")
_DASHES = ("-", "--", "-.", ":")


def latency_cdf(runs: Runs) -> str:
    """Share of workflows by latency, a line for each system, seeds pooled."""

    def draw(axes: Any) -> None:
        for number, (name, facts) in enumerate(runs.items()):
            values = np.sort(np.concatenate([statistics.latencies(one.run) for one in facts]))
            finite = values[np.isfinite(values)]
            shares = np.arange(1, len(finite) + 1) / len(values)
            axes.step(finite, shares, where="post", label=name, **_style(number))
        axes.set_xlabel("workflow latency, s")
        axes.set_ylabel("share of workflows")
        axes.set_ylim(0, 1.02)
        axes.set_xlim(left=0)
        axes.legend(fontsize=7, loc="lower right")

    return _svg(draw)


def attainment_curve(runs: Runs) -> str:
    """Share of workflows within scale x unloaded latency, a line for each system."""

    def draw(axes: Any) -> None:
        grid = np.geomspace(1.0, 50.0, _CURVE_POINTS)
        for number, (name, facts) in enumerate(runs.items()):
            scales = np.concatenate([statistics.latency_scales(one.run) for one in facts])
            met = [statistics.attainment(scales, scale) for scale in grid]
            axes.plot(grid, met, label=name, **_style(number))
        axes.axhline(0.95, color="#bbbbbb", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xticks(
            [1, 2, 3, 4, 6, 10, 20, 50], labels=["1", "2", "3", "4", "6", "10", "20", "50"]
        )
        axes.minorticks_off()
        axes.set_xlabel("deadline / unloaded latency")
        axes.set_ylabel("share that meets it")
        axes.set_ylim(0, 1.02)
        axes.legend(fontsize=7, loc="lower right")

    return _svg(draw)


def worker_timeline(run: RunRecord) -> str:
    """Requests on each worker's hands over one run, a band for each worker."""
    workers = sorted({request.worker for request in run.requests if request.worker})
    edges = np.linspace(0.0, run.span_s, _BINS + 1)

    def draw(axes: Any) -> None:
        busiest = 1.0
        loads = [in_flight(run, worker, edges) for worker in workers]
        busiest = max([1.0, *(float(load.max()) for load in loads)])
        for row, (worker, load) in enumerate(zip(workers, loads, strict=True)):
            colour = _COLOURS[row % len(_COLOURS)]
            axes.fill_between(
                edges[:-1], row, row + 0.9 * load / busiest, step="post", color=colour
            )
            axes.text(0, row + 0.92, f"{worker}, at most {load.max():.0f}", fontsize=7, va="top")
        axes.set_yticks([])
        axes.set_ylim(0, max(len(workers), 1))
        axes.set_xlim(0, run.span_s)
        axes.set_xlabel("s")

    return _svg(draw, height=0.55 * max(len(workers), 1) + 0.7)


def in_flight(run: RunRecord, worker: str, edges: np.ndarray) -> np.ndarray:
    """Mean number of requests sent to a worker and not ended, in each interval of `edges`."""
    held = np.zeros(len(edges) - 1)
    widths = np.diff(edges)
    for request in run.requests:
        if request.worker == worker:
            overlap = np.minimum(edges[1:], request.end_s) - np.maximum(edges[:-1], request.sent_s)
            held += np.clip(overlap, 0.0, None) / widths
    return held


def _style(number: int) -> dict[str, Any]:
    """Colour and dash of the system with this number; no two of 32 are alike."""
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "linestyle": _DASHES[number // len(_COLOURS) % len(_DASHES)],
        "linewidth": 1.4,
    }


def _svg(draw: Callable[[Any], None], width: float = 6.4, height: float = 3.4) -> str:
    """What `draw` puts on the axes of a new figure, as an SVG element.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
        from matplotlib.style import context
    except ImportError as error:
        raise ConfigError(
            "the report needs matplotlib: pip install 'hexgen-sglang[bench]'"
        ) from error
    with context({"svg.fonttype": "none", "svg.hashsalt": "hexgen", "font.size": 8}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
