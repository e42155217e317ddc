"""`hexgen-sglang`: the table of commands. A command's module is imported only when it runs.

To add a command, write `cli/<name>.py` with a function `command` whose parameters carry
`typer` annotations, and add a row to `COMMANDS`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from hexgen_sglang import __version__
from hexgen_sglang.core.errors import HexgenError

# name -> (module, one line for --help)
COMMANDS = {
    "bench": ("hexgen_sglang.cli.bench", "Compare scheduling systems on one cluster and trace."),
    "ask": ("hexgen_sglang.cli.ask", "Answer a question over a database."),
    "coordinator": ("hexgen_sglang.cli.coordinator", "Run the coordinator in front of workers."),
    "demo": ("hexgen_sglang.cli.demo", "Two workers, a coordinator and 12 questions, on a CPU."),
    "doctor": ("hexgen_sglang.cli.doctor", "Check the installed SGLang against our hooks."),
    "drain": ("hexgen_sglang.cli.drain", "Let a worker end what it has, and get nothing new."),
    "eval": ("hexgen_sglang.cli.eval", "Measure how right SQL is, of the agent or of a file."),
    "explain": ("hexgen_sglang.cli.explain", "Tell where a workflow's time went, and why."),
    "keys": ("hexgen_sglang.cli.keys", "Make CURVE keys for links, or API keys for callers."),
    "profile": ("hexgen_sglang.cli.profile", "Measure a live worker, write its profile."),
    "model": ("hexgen_sglang.cli.model", "Make the default model and print its folder."),
    "cluster": ("hexgen_sglang.cli.cluster", "Start and stop workers and coordinator together."),
    "plan": ("hexgen_sglang.cli.plan", "Find the cheapest mix of workers for a service level."),
    "simulate": ("hexgen_sglang.cli.simulate", "The bench's comparison in the simulator."),
    "tune": ("hexgen_sglang.cli.tune", "Search a system's settings on a simulated cluster."),
    "worker": ("hexgen_sglang.cli.worker", "Run one SGLang server with our scheduling policy."),
}


class LazyGroup(TyperGroup):
    """A command group that imports a command only to run it or to show its own help."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in for the listing, which must import none of them."""
        if cmd_name not in COMMANDS:
            return None
        _, summary = COMMANDS[cmd_name]
        return _command(cmd_name, _not_loaded, summary)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The command that is about to run, imported."""
        name, found, rest = super().resolve_command(ctx, args)
        if found is not None and name in COMMANDS:
            module_name, _ = COMMANDS[name]
            found = _command(name, importlib.import_module(module_name).command, None)
        return name, found, rest


def _command(name: str, function: Callable[..., None], summary: str | None) -> Any:
    app = typer.Typer(add_completion=False)
    app.command(name, help=summary)(function)
    return typer.main.get_command(app)


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
