"""`hexgen-sglang coordinator`: the front of a cluster, from a file or a few flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from hexgen_sglang.coordinator.config import CoordinatorFile, as_toml, convert, load_config


def command(
    config: Annotated[Path | None, typer.Option(help="Configuration file (TOML).")] = None,
    host: Annotated[str | None, typer.Option(help="HTTP address (default: 127.0.0.1).")] = None,
    port: Annotated[
        int | None, typer.Option(help="HTTP port; 0 takes a free one (default: 8000).")
    ] = None,
    worker: Annotated[
        list[str] | None,
        typer.Option(help="URL of a worker, such as http://127.0.0.1:30000; repeatable."),
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(help="ZMQ endpoint for workers' plugins, such as tcp://127.0.0.1:5600."),
    ] = None,
    dispatch: Annotated[
        str | None, typer.Option(help="Dispatch policy (default: earliest_completion).")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="Folder of CURVE keys, for a link off loopback.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the whole configuration and leave.")
    ] = False,
) -> None:
    """Run the coordinator until SIGTERM or Ctrl-C. Flags override the file."""
    base = load_config(config) if config is not None else CoordinatorFile()
    flags: dict[str, Any] = {
        "host": host,
        "port": port,
        "link": link,
        "dispatch": dispatch,
        "keys": None if keys is None else str(keys),
    }
    settings = _override(base, {k: v for k, v in flags.items() if v is not None}, worker or [])
    if print_config:
        print(as_toml(settings), end="")
        return
    from hexgen_sglang.coordinator.server import run

    run(settings)


def _override(base: CoordinatorFile, flags: dict[str, Any], urls: list[str]) -> CoordinatorFile:
    """The file's settings with those flags that were given; checked like a file."""
    plain = msgspec.to_builtins(base)
    plain["coordinator"].update(flags)
    plain["workers"] = [*plain["workers"], *({"url": url} for url in urls)]
    return convert(plain, CoordinatorFile, "command line")
