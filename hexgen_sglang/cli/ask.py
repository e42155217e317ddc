"""`hexgen-sglang ask`: one question over a database, through a running coordinator."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from hexgen_sglang.text2sql.answer import Answer

DEFAULT_URL = "http://127.0.0.1:8000"
SAMPLE = "sample"
MAX_SHOWN_ROWS = 50
WIDTH = 120  # of what is not a terminal


def command(
    question: Annotated[str, typer.Argument(help="In English.")],
    db: Annotated[
        str, typer.Option(help=f"SQLite or DuckDB file, a server's URL, or `{SAMPLE}`.")
    ] = SAMPLE,
    url: Annotated[str, typer.Option(help="The coordinator.")] = DEFAULT_URL,
    deadline: Annotated[
        float, typer.Option(min=0.001, max=86_400, help="Seconds for the whole answer.")
    ] = 60.0,
    candidates: Annotated[int, typer.Option(min=1, max=32, help="Parallel attempts.")] = 3,
    rounds: Annotated[int, typer.Option(min=0, max=10, help="Rounds of self-correction.")] = 2,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="HEXGEN_API_KEY", help="For a coordinator that wants one."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Answer a question: the SQL, its rows, and what each stage cost.

    Exits with 1 when no SQL could be run.
    """
    from hexgen_sglang.client import CoordinatorClient
    from hexgen_sglang.core.errors import ConfigError, WorkerUnavailableError

    path = _database(db)
    coordinator = CoordinatorClient(url, api_key=api_key)
    try:
        models = coordinator.model_names()
    except WorkerUnavailableError as error:
        raise ConfigError(
            f"--url {url}: no coordinator answers there ({error}); start one with "
            "`hexgen-sglang cluster up CONFIG` or `hexgen-sglang coordinator`"
        ) from error
    if not models:
        raise ConfigError(f"--url {url}: the coordinator has no worker that is ready")

    from hexgen_sglang.client import HexgenEndpoint
    from hexgen_sglang.text2sql.answer import AnswerOutcome, Question
    from hexgen_sglang.text2sql.program import WORKFLOW_TYPE, ask_many
    from hexgen_sglang.text2sql.settings import AgentSettings

    backend = HexgenEndpoint(url, deadline_s=deadline, workflow_type=WORKFLOW_TYPE, api_key=api_key)
    settings = AgentSettings(num_candidates=candidates, max_rounds=rounds)
    (answer,) = ask_many([Question(question)], path, backend, settings=settings)
    record = coordinator.workflow(answer.workflow_id) if answer.workflow_id else None
    workers = _workers_by_stage(record)
    if as_json:
        print(json.dumps(_as_object(answer, workers), indent=2, default=_printable))
    else:
        from rich.console import Console

        console = Console()
        _print(answer, workers, console if console.is_terminal else Console(width=WIDTH))
    if answer.outcome not in (AnswerOutcome.ROWS, AnswerOutcome.EMPTY):
        raise typer.Exit(1)


def _database(db: str) -> str | Path:
    """What to open: a file's path, or a server's URL as it is.

    Raises:
        ConfigError: there is no such file.
    """
    from hexgen_sglang.core.errors import ConfigError

    if db == SAMPLE:
        from hexgen_sglang.text2sql.sample import ensure_sample_database

        return ensure_sample_database()
    if "://" in db:
        return db
    path = Path(db)
    if not path.is_file():
        raise ConfigError(f"--db {db}: no such file; give a file, a server's URL, or `{SAMPLE}`")
    return path


def _workers_by_stage(record: dict[str, Any] | None) -> dict[str, list[str]]:
    """Which workers served each stage, in order of first use; {} when nobody knows."""
    found: dict[str, dict[str, None]] = {}
    for request in record["requests"] if record else ():
        if request["worker_id"] is not None:
            found.setdefault(request["stage"], {})[request["worker_id"]] = None
    return {stage: list(workers) for stage, workers in found.items()}


def _as_object(answer: Answer, workers: dict[str, list[str]]) -> dict[str, Any]:
    fields = dataclasses.asdict(answer)
    for stage in fields["stages"]:
        stage["workers"] = workers.get(stage["stage"], [])
    return fields


def _printable(value: object) -> str:
    """A database value that JSON does not know (bytes)."""
    return value.hex() if isinstance(value, bytes) else str(value)


def _print(answer: Answer, workers: dict[str, list[str]], console: Console) -> None:
    from rich.syntax import Syntax
    from rich.table import Table
    from rich.text import Text

    if answer.sql is not None:
        console.print(Syntax(answer.sql, "sql", background_color="default", word_wrap=True))
    if answer.columns:
        rows = Table(header_style="bold")
        for column in answer.columns:
            rows.add_column(Text(column))
        for row in answer.rows[:MAX_SHOWN_ROWS]:
            rows.add_row(*(Text("NULL" if cell is None else str(cell)) for cell in row))
        console.print(rows)
        shown = min(len(answer.rows), MAX_SHOWN_ROWS)
        more = " (there are more)" if answer.truncated or shown < len(answer.rows) else ""
        console.print(f"{shown} rows{more}", highlight=False)
    if answer.message:
        console.print(Text(f"{answer.outcome.value}: {answer.message}", "yellow"))
    costs = Table(header_style="bold", show_edge=False)
    costs.add_column("stage", no_wrap=True, min_width=len("generate_unit_test"))
    for heading in ("requests", "failed", "prompt", "cached", "output", "seconds"):
        costs.add_column(heading, justify="right")
    costs.add_column("workers")
    for stage in answer.stages:
        costs.add_row(
            stage.stage,
            str(stage.num_requests),
            str(stage.num_failed),
            f"{stage.prompt_tokens:,}",
            f"{stage.cached_tokens:,}",
            f"{stage.output_tokens:,}",
            f"{stage.elapsed_s:.1f}",
            ", ".join(workers.get(stage.stage, [])),
        )
    console.print(costs)
    if answer.skipped:
        console.print(f"left out for the deadline: {', '.join(answer.skipped)}", highlight=False)
    for dropped in answer.dropped:
        console.print(Text(f"for the deadline: {dropped}", "yellow"))
    met = "met" if answer.met_deadline else "missed"
    console.print(
        f"{answer.elapsed_s:.1f} s of {answer.deadline_s:.0f} s: deadline {met}", highlight=False
    )
