"""`hexgen-sglang ask`: one question over a database, through a coordinator or any other server
that speaks OpenAI's completions. Loads neither SGLang nor torch.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from hexgen_sglang.text2sql.answer import Answer
    from hexgen_sglang.text2sql.events import AgentEvent
    from hexgen_sglang.text2sql.settings import AgentSettings

DEFAULT_URL = "http://127.0.0.1:8000"
SAMPLE = "sample"
MAX_SHOWN_ROWS = 50
WIDTH = 120  # of what is not a terminal
LIST_TIMEOUT_S = 10.0


def command(
    question: Annotated[str, typer.Argument(help="In English.")],
    db: Annotated[
        str, typer.Option(help=f"SQLite or DuckDB file, a server's URL, or `{SAMPLE}`.")
    ] = SAMPLE,
    url: Annotated[
        str, typer.Option(help="A coordinator, or any OpenAI-compatible server (with its /v1).")
    ] = DEFAULT_URL,
    deadline: Annotated[
        float, typer.Option(min=0.001, max=86_400, help="Seconds for the whole answer.")
    ] = 60.0,
    candidates: Annotated[int, typer.Option(min=1, max=32, help="Parallel attempts.")] = 3,
    rounds: Annotated[int, typer.Option(min=0, max=10, help="Rounds of self-correction.")] = 2,
    model: Annotated[
        str | None, typer.Option(help="By its name; the first that the server lists without.")
    ] = None,
    fallback_model: Annotated[
        str | None, typer.Option(help="A smaller one, where the usual would miss the deadline.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="HEXGEN_API_KEY", help="For a server that wants one."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Answer a question: the SQL, its rows, and what each stage cost.

    Exits with 1 when no SQL could be run.
    """
    from hexgen_sglang.text2sql.answer import AnswerOutcome
    from hexgen_sglang.text2sql.settings import AgentSettings

    settings = AgentSettings(
        num_candidates=candidates, max_rounds=rounds, fallback_model=fallback_model
    )
    answer = asyncio.run(_answer(question, _database(db), url, deadline, settings, model, api_key))
    workers = _workers_by_stage(url, api_key, answer)
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


async def _answer(
    question: str,
    db: str | Path,
    url: str,
    deadline_s: float,
    settings: AgentSettings,
    model: str | None,
    api_key: str | None,
) -> Answer:
    """Ask, and say on a terminal which stage it is at.

    Raises:
        ConfigError: no server answers, or the database cannot be read.
    """
    from rich.console import Console

    from hexgen_sglang.text2sql.agent import Agent
    from hexgen_sglang.text2sql.events import EventKind

    model = model or await usual_model(url, api_key)
    console = Console(stderr=True)

    def show(event: AgentEvent) -> None:
        if event.kind is EventKind.STAGE_STARTED:
            status.update(f"{event.stage} ...")

    with console.status("opening the database ...") as status:
        async with Agent(url, db, model=model, api_key=api_key, settings=settings) as agent:
            return await agent.ask(
                question, deadline_s=deadline_s, on_event=show if console.is_terminal else None
            )


async def usual_model(url: str, api_key: str | None) -> str:
    """The first model that the server lists.

    Raises:
        ConfigError: no server answers, or it has no model.
    """
    from hexgen_sglang.client.completions import CompletionsClient
    from hexgen_sglang.core.errors import ConfigError, WorkerUnavailableError

    try:
        async with CompletionsClient(url, api_key, LIST_TIMEOUT_S) as client:
            names = await client.model_names()
    except WorkerUnavailableError as error:
        raise ConfigError(
            f"--url {url}: no OpenAI-compatible server answers there ({error}); start a cluster "
            "with `hexgen-sglang cluster up CONFIG`"
        ) from error
    if not names:
        raise ConfigError(f"--url {url}: the server has no model that is ready")
    return names[0]


def _workers_by_stage(url: str, api_key: str | None, answer: Answer) -> dict[str, list[str]]:
    """Which workers served each stage, in order of first use; {} where no coordinator knows."""
    from hexgen_sglang.client.coordinator import CoordinatorClient
    from hexgen_sglang.core.errors import HexgenError

    record: dict[str, Any] | None = None
    if answer.workflow_id is not None:
        root = url.rstrip("/").removesuffix("/v1")
        try:
            record = CoordinatorClient(root, api_key=api_key).workflow(answer.workflow_id)
        except HexgenError:
            record = None  # another server, whose answer to that path is its own affair
    found: dict[str, dict[str, None]] = {}
    for request in record.get("requests", ()) if record else ():
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
