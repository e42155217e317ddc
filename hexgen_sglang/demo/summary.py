"""What a finished demo prints, and the files it leaves."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hexgen_sglang.demo.page import outcome_words, render_page, tiles
from hexgen_sglang.demo.report import Report, WorkflowEntry


def write_files(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write `report.json` and `report.html` into the folder; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    json_path, html_path = folder / "report.json", folder / "report.html"
    json_path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    html_path.write_text(render_page(report), encoding="utf-8")
    return json_path, html_path


def print_summary(report: Report, console: Console) -> None:
    """One row for each workflow and a line of totals."""
    table = Table(header_style="bold", show_edge=False, pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("question", overflow="fold", min_width=24)
    for heading in ("requests", "prompt", "cached", "latency", "deadline"):
        table.add_column(heading, justify="right")
    table.add_column("met")
    table.add_column("SQL", overflow="fold")
    for number, flow in enumerate(report.workflows, 1):
        table.add_row(
            str(number),
            Text(flow.question),
            str(len(flow.stages)),
            f"{flow.total('prompt_tokens'):,}",
            f"{flow.total('cached_tokens'):,}",
            "-" if flow.e2e_s is None else f"{flow.e2e_s:.1f} s",
            "-" if flow.deadline_s is None else f"{flow.deadline_s:.0f} s",
            _met(flow),
            outcome_words(flow.outcome, flow.num_rows, flow.is_right),
        )
    console.print(table)
    console.print(
        "; ".join(f"{tile['label']}: {tile['figure']}" for tile in tiles(report)), highlight=False
    )
    for worker in report.workers:
        console.print(
            f"{worker.worker_id}: {worker.num_requests} requests, busy {worker.busy_s:.1f} s",
            highlight=False,
            markup=False,
        )


def _met(flow: WorkflowEntry) -> Text:
    if flow.met_deadline is None:
        return Text("-", "dim")
    return Text("yes", "green") if flow.met_deadline else Text("no", "red")
