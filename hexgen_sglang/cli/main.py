"""`hexgen-sglang`: the table of commands. A command's module is imported only when it runs.

To add a command, write `cli/<name>.py` with a function `command` whose parameters carry
`typer` annotations, and add a row to `COMMANDS`.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from hexgen_sglang import __version__
from hexgen_sglang.core.errors import HexgenError

# name -> (module, one line for --help)
COMMANDS = {
    "bench": ("hexgen_sglang.cli.bench", "Compare scheduling systems on one cluster and trace."),
    "ask": ("hexgen_sglang.cli.ask", "Answer a question over a SQLite database."),
    "coordinator": ("hexgen_sglang.cli.coordinator", "Run the coordinator in front of workers."),
    "demo": ("hexgen_sglang.cli.demo", "Two workers, a coordinator and 12 questions, on a CPU."),
    "doctor": ("hexgen_sglang.cli.doctor", "Check the installed SGLang against our hooks."),
    "keys": ("hexgen_sglang.cli.keys", "Make CURVE keys for links between machines."),
    "profile": ("hexgen_sglang.cli.profile", "Measure a live worker, write its profile."),
    "model": ("hexgen_sglang.cli.model", "Make the default model and print its folder."),
    "cluster": ("hexgen_sglang.cli.cluster", "Start and stop workers and coordinator together."),
    "worker": ("hexgen_sglang.cli.worker", "Run one SGLang server with our scheduling policy."),
}


class LazyGroup(TyperGroup):
    """A command group that imports a command only to run it or to show its own help."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module_name, summary = COMMANDS[cmd_name]
        app = typer.Typer(add_completion=False)
        if _is_listing(sys.argv[1:]):
            app.command(cmd_name, help=summary)(_not_loaded)
        else:
            app.command(cmd_name)(importlib.import_module(module_name).command)
        return typer.main.get_command(app)


def _is_listing(argv: list[str]) -> bool:
    """True while only the table of commands is shown, which must import none of them."""
    return not argv or argv[0] in {"--help", "-h"}


def _not_loaded() -> None:
    """Stands for a command in the listing."""


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


application = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@application.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and leave."
    ),
) -> None:
    """Deadline-aware scheduling of whole LLM workflows on SGLang and unequal GPUs."""


def main() -> None:
    """Run a command; our own errors end with one clear line and exit status 2."""
    try:
        application()
    except HexgenError as error:
        print(f"hexgen-sglang: {error}", file=sys.stderr)
        raise SystemExit(2) from error
