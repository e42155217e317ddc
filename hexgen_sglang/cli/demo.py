"""`hexgen-sglang demo`: what `make demo` runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

WIDTH_WITHOUT_TERMINAL = 120


def command(
    workers: Annotated[int, typer.Option(min=1, max=16, help="SGLang workers to start.")] = 2,
    questions: Annotated[
        int, typer.Option(min=1, max=24, help="Questions, all asked at once.")
    ] = 12,
    model_path: Annotated[
        str, typer.Option(help="Folder of a model, or `default` (SmolLM2-135M-Instruct).")
    ] = "default",
    deadline: Annotated[
        float,
        typer.Option(
            min=1, max=3600, help="Middle deadline in seconds; a third is half that, a third twice."
        ),
    ] = 120.0,
    out: Annotated[Path, typer.Option(help="Folder for report and logs.")] = Path("runs/demo"),
    tiny: Annotated[
        bool, typer.Option("--tiny", help="A tiny random model: fast, and its text means nothing.")
    ] = False,
) -> None:
    """Two SGLang workers on the CPU, a coordinator, and 12 questions at once with deadlines.

    Leaves report.json and report.html. Exits with 1, and says why, when a question had an
    unhandled error or a worker was not used.
    """
    from rich.console import Console

    from hexgen_sglang.demo.live import make_view
    from hexgen_sglang.demo.run import DemoSettings, run_demo
    from hexgen_sglang.demo.summary import print_summary, write_files

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_WITHOUT_TERMINAL)
    settings = DemoSettings(
        model_path="tiny" if tiny else model_path,
        num_workers=workers,
        num_questions=questions,
        deadline_s=deadline,
        folder=out,
    )
    try:
        report = run_demo(settings, make_view(console))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    print_summary(report, console)
    json_path, html_path = write_files(report, out)
    console.print(f"{json_path}\n{html_path}", markup=False, highlight=False)
    if report.failures:
        console.print("the demo failed:", style="bold red")
        for reason in report.failures:
            console.print(f"  {reason}", markup=False, highlight=False)
        raise typer.Exit(1)
