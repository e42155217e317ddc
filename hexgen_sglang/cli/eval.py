"""`hexgen-sglang eval`: how right SQL is, of gold, a file of predictions or the agent."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hexgen_sglang.text2sql.evaluation.predictions import Predictor
    from hexgen_sglang.text2sql.evaluation.questions import EvalQuestion
    from hexgen_sglang.text2sql.evaluation.report import EvalReport, QuestionResult

DEFAULT_URL = "http://127.0.0.1:8000"
SAMPLE = "sample"
WIDTH = 120  # of what is not a terminal


def command(
    questions: Annotated[
        str,
        typer.Option(help=f"JSON, JSONL or CSV (BIRD, Spider, sql-eval, ...), or `{SAMPLE}`."),
    ] = SAMPLE,
    db: Annotated[
        str, typer.Option(help=f"File, folder of files, or a server's URL, or `{SAMPLE}`.")
    ] = SAMPLE,
    predictions: Annotated[
        str, typer.Option(help="`gold`, `agent`, or a file of predicted SQL.")
    ] = "agent",
    json_file: Annotated[
        Path, typer.Option("--json", help="The report; a log beside it allows to go on.")
    ] = Path("runs/eval/report.json"),
    html: Annotated[Path | None, typer.Option(help="The report as a page.")] = None,
    first: Annotated[
        int | None, typer.Option(min=1, help="Only so many questions, from the beginning.")
    ] = None,
    url: Annotated[
        str, typer.Option(help="For `agent`: a coordinator, or any OpenAI-compatible server.")
    ] = DEFAULT_URL,
    model: Annotated[
        str | None, typer.Option(help="For `agent`: by name; the server's first without.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="HEXGEN_API_KEY", help="For a server that wants one."),
    ] = None,
    deadline: Annotated[
        float, typer.Option(min=0.001, max=86_400, help="Seconds for each answer of `agent`.")
    ] = 60.0,
    parallel: Annotated[
        int, typer.Option(min=1, max=256, help="Questions at a time, for `agent`.")
    ] = 4,
    candidates: Annotated[int, typer.Option(min=1, max=32, help="Parallel attempts.")] = 3,
    rounds: Annotated[int, typer.Option(min=0, max=10, help="Rounds of self-correction.")] = 2,
) -> None:
    """Execution accuracy, share of valid SQL, rounds, tokens and latency, by difficulty.

    Interrupted, it goes on where it stopped when it is called again in the same way.
    """
    import msgspec

    from hexgen_sglang import __version__
    from hexgen_sglang.text2sql.evaluation import run
    from hexgen_sglang.text2sql.evaluation.page import page_of
    from hexgen_sglang.text2sql.evaluation.report import report_of

    asked = _questions(questions)[:first]
    databases = run.databases_of(asked, _sample_database() if db == SAMPLE else db)
    predictor: Predictor
    if predictions == "agent":
        predictor = _agent(url, api_key, model, deadline, parallel, candidates, rounds)
    else:
        predictor = _written(predictions, asked)
    log = run.ResultLog(
        json_file.with_name(f"{json_file.name}.progress.jsonl"),
        run.identity_of(asked, databases, predictor),
    )
    try:
        results = run.evaluate(
            asked, databases, predictor, log, _Progress(len(asked), len(log.results)).note
        )
    finally:
        log.close()
    made_by = {"hexgen-sglang": __version__, "Python": platform.python_version()}
    settings = {} if predictions != "agent" else dict(predictor.settings)
    report = report_of(results, questions, predictor.name, settings, made_by)
    _write(json_file, msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n")
    if html is not None:
        _write(html, page_of(report))
    log.remove()
    _print(report)


class _Progress:
    """Says how far it is: a bar on a terminal, else a line now and then."""

    def __init__(self, total: int, done: int) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._total, self._done, self._right = total, done, 0
        self._new = 0
        if done:
            self._console.print(f"going on: {done} of {total} questions are there already")

    def note(self, result: QuestionResult) -> None:
        """One more question is done."""
        self._done += 1
        self._new += 1
        self._right += result.is_right
        line = f"{self._done} of {self._total} questions, {self._right} of {self._new} right"
        if self._console.is_terminal:
            self._console.print(line, end="\r" if self._done < self._total else "\n")
        elif self._done == self._total or self._done % max(1, self._total // 10) == 0:
            self._console.print(line)


def _questions(name: str) -> list[EvalQuestion]:
    from hexgen_sglang.text2sql.evaluation.questions import EvalQuestion, read_questions
    from hexgen_sglang.text2sql.sample import sample_questions

    if name != SAMPLE:
        return read_questions(Path(name))
    return [
        EvalQuestion(one.question_id, "", one.question, "", (one.gold_sql,), one.difficulty)
        for one in sample_questions()
    ]


def _sample_database() -> str:
    from hexgen_sglang.text2sql.sample import ensure_sample_database

    return str(ensure_sample_database())


def _written(predictions: str, asked: list[EvalQuestion]) -> Predictor:
    """Gold, or a file.

    Raises:
        ConfigError: the file cannot be read, or does not fit the questions.
    """
    from hexgen_sglang.text2sql.evaluation.predictions import FilePredictor, GoldPredictor

    return GoldPredictor() if predictions == "gold" else FilePredictor(Path(predictions), asked)


def _agent(
    url: str,
    api_key: str | None,
    model: str | None,
    deadline: float,
    parallel: int,
    candidates: int,
    rounds: int,
) -> Predictor:
    """The agent through a server.

    Raises:
        ConfigError: there is none, or it has no model.
    """
    import asyncio

    from hexgen_sglang.cli.ask import usual_model
    from hexgen_sglang.text2sql.evaluation.agent import AgentPredictor
    from hexgen_sglang.text2sql.settings import AgentSettings

    model = model or asyncio.run(usual_model(url, api_key))
    settings = AgentSettings(num_candidates=candidates, max_rounds=rounds)
    return AgentPredictor(url, model, settings, parallel, deadline, api_key)


def _write(path: Path, text: str) -> None:
    from hexgen_sglang.core.errors import ConfigError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error}") from error


def _print(report: EvalReport) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(header_style="bold")
    table.add_column("questions", no_wrap=True)
    for heading in ("number", "accuracy", "in order", "SQL ran", "rounds", "tokens", "p50 s"):
        table.add_column(heading, justify="right")
    for name, one in [("all", report), *report.by_difficulty.items()]:
        tokens = one.prompt_tokens_mean + one.output_tokens_mean
        table.add_row(
            name,
            str(one.num_questions),
            f"{100 * one.execution_accuracy:.1f} %",
            f"{100 * one.execution_accuracy_in_order:.1f} %",
            f"{100 * one.valid_sql_frac:.1f} %",
            f"{one.rounds_mean:.2f}",
            f"{tokens:,.0f}" if tokens else "-",
            "-" if one.latency_p50_s is None else f"{one.latency_p50_s:.2f}",
        )
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH)).print(table)
    if report.gold_failed:
        print(f"the gold SQL of {report.gold_failed} questions could not be compared with")
