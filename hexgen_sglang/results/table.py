"""The result as a table of plain text, for terminals and for files that people read."""

from __future__ import annotations

from hexgen_sglang.results.schema import BenchResult, LoadResult, Ratio, SystemFigures

_HEADER = (
    "system",
    "mean s",
    "P50 s",
    "P95 s",
    "P99 s",
    "met",
    "scale 95%",
    "scale 99%",
    "TTFT P95",
    "engine queue",
    "central queue",
    "prefix hit",
    "busy",
    "$/1000",
    "P95 ratio",
)


def table(result: BenchResult, load: LoadResult) -> str:
    """One load: a line for each system.

    `met`: deadlines met; `busy`: mean utilisation; `P95 ratio`: the baseline's P95 divided by
    the system's, with its 95 % interval: above 1 is better; queues: mean seconds.
    """
    rows = [_HEADER, *(_row(name, figures) for name, figures in load.systems.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = [
        f"{result.cluster}, {result.trace}, {load.label} ({load.rate:.4f} workflows/s), "
        f"baseline {result.baseline}"
    ]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def _row(name: str, figures: SystemFigures) -> tuple[str, ...]:
    busy = figures.utilisation.values()
    return (
        name,
        number(figures.mean_s),
        number(figures.p50_s),
        number(figures.p95_s),
        number(figures.p99_s),
        share(figures.deadline_attainment),
        number(figures.scale_at_95, 2),
        number(figures.scale_at_99, 2),
        number(figures.ttft_p95_s, 2),
        number(figures.queue_mean_s, 2),
        number(figures.dispatch_wait_mean_s, 2),
        share(figures.prefix_hit_frac),
        share(sum(busy) / len(busy) if busy else None),
        number(figures.usd_per_1000_workflows),
        ratio(figures.ratios.get("p95")),
    )


def number(value: float | None, digits: int = 1) -> str:
    """A number, "-" where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    """A share as a percentage."""
    return "-" if value is None else f"{100 * value:.1f}%"


def ratio(value: Ratio | None) -> str:
    """`1.42 [1.30, 1.55]`; "inf" where the system's figure is 0 or the baseline's infinite."""
    if value is None:
        return "-"
    middle, low, high = (
        "inf" if x is None else f"{x:.2f}" for x in (value.value, value.low, value.high)
    )
    return f"{middle} [{low}, {high}]"
