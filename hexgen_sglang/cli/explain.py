"""`hexgen-sglang explain`: where one workflow's time went, and why it was late.

Reads `GET /workflows/{id}/explain` of a running coordinator and prints it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

DEFAULT_URL = "http://127.0.0.1:8000"
WIDTH = 140  # of what is not a terminal


def command(
    workflow: Annotated[str, typer.Argument(help="Id of the workflow.")],
    url: Annotated[str, typer.Option(help="The coordinator.")] = DEFAULT_URL,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="HEXGEN_API_KEY", help="For a coordinator that wants one."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Tell a workflow's story: stages against their budgets, decisions, and why it was late."""
    from hexgen_sglang.client import CoordinatorClient
    from hexgen_sglang.core.errors import ConfigError, WorkerUnavailableError

    try:
        report = CoordinatorClient(url, api_key=api_key).explain(workflow)
    except WorkerUnavailableError as error:
        raise ConfigError(f"--url {url}: {error}") from error
    if report is None:
        raise ConfigError(
            f"WORKFLOW={workflow!r}: not known at {url}, or forgotten; GET {url}/workflows "
            "lists the ids that are known"
        )
    if as_json:
        print(json.dumps(report, indent=2))
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    for line in summary(report):
        console.print(line, highlight=False, markup=False)
    console.print(_table(report["passes"]))
    for line in (*why_late(report), *decisions(report)):
        console.print(line, highlight=False, markup=False)


def summary(report: dict[str, Any]) -> Iterator[str]:
    """One line: how long it took, of how much."""
    kind = f" ({report['workflow_type']})" if report["workflow_type"] else ""
    budget_s, is_over = report["budget_s"], report["ended"]
    verb = "took" if is_over else "has taken"
    line = f"workflow {report['workflow_id']}{kind} {verb} {report['elapsed_s']:.2f} s"
    if budget_s is None:
        yield f"{line}; it had no deadline"
    elif report["late"] is not None:
        yield f"{line} of {budget_s:.2f} s: late by {report['late']['by_s']:.2f} s"
    else:
        yield f"{line} of {budget_s:.2f} s: " + ("in time" if is_over else "not late so far")


def why_late(report: dict[str, Any]) -> Iterator[str]:
    """Which stages overran their budgets, and on what; nothing for a workflow in time."""
    late = report["late"]
    if late is None:
        return
    yield "why it was late:"
    for cause in late["causes"]:
        name = f"  {cause['stage'] or '(no stage)'}, visit {cause['visit']}"
        if cause["overrun_s"] is None:
            said = f"took {cause['elapsed_s']:.2f} s; nothing was known of it to give it a budget"
        else:
            said = (
                f"{cause['overrun_s']:.2f} s over its budget of {cause['budget_s']:.2f} s "
                f"({cause['elapsed_s']:.2f} s)"
            )
        spent = ", ".join(
            f"{word} {_seconds(cause[f'{word}_s'])}" for word in ("queueing", "prefill", "decode")
        )
        yield f"{name}: {said}; its last request: {spent}"
    yield f"  between the stages (the client's own work): {late['gaps_s']:.2f} s"


def decisions(report: dict[str, Any]) -> Iterator[str]:
    """Each decision with what the winner and the runner-up would cost."""
    yield "decisions:"
    if report["num_decisions_forgotten"]:
        yield f"  ({report['num_decisions_forgotten']} older ones were forgotten)"
    for row in report["decisions"]:
        name = f"{row['stage'] or '(no stage)'}[{row['sibling_index']}]"
        if row["picked"] is not None:
            said = f"to {row['picked']}"
        else:
            waited_s = row["last_s"] - row["first_s"]
            said = (
                f"waits for {row['waits_for'] or 'room'} ({row['num_times']} x in {waited_s:.2f} s)"
            )
        yield f"  {row['first_s']:8.2f} s  {name}: {said}"
        for word, price in (("it", row["winner"]), ("runner-up", row["runner_up"])):
            if price is not None:
                yield f"              {word}: {_price(price)}"


def _table(passes: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(header_style="bold", show_edge=False)
    table.add_column("stage", no_wrap=True)
    for heading in ("visit", "requests", "start", "gap", "took", "budget", "over"):
        table.add_column(heading, justify="right")
    table.add_column("last at", no_wrap=True)
    for heading in ("waited here", "in engine", "prefill", "decode"):
        table.add_column(heading, justify="right")
    for row in passes:
        parts = row["slowest"] or {}
        numbers = [row[f"{name}_s"] for name in ("start", "gap_before", "elapsed", "budget")]
        spent = ("coordinator_queue_s", "engine_queue_s", "prefill_s", "decode_s")
        table.add_row(
            row["stage"] or "(no stage)",
            str(row["visit"]),
            str(row["num_requests"]),
            *map(_seconds, (*numbers, row["overrun_s"])),
            parts.get("worker_id") or "-",
            *(_seconds(parts.get(name)) for name in spent),
        )
    return table


def _price(price: dict[str, Any]) -> str:
    terms = ", ".join(f"{name} {value:.4g}" for name, value in price["terms"].items())
    room = "" if price["has_room"] else ", full"
    return (
        f"{price['worker_id']} ({price['num_in_flight']} in flight, {price['cached_tokens']} "
        f"tokens cached{room}) {terms}"
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
