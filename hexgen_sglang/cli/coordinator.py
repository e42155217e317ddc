"""`hexgen-sglang coordinator`: the front of a cluster, from a file or a few flags."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from hexgen_sglang.coordinator.config import CoordinatorFile, as_toml, convert, load_config
from hexgen_sglang.core.errors import ConfigError

_NAMED = re.compile(r"([A-Za-z0-9_-]{1,64})=(.+)", re.DOTALL)


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
        str | None, typer.Option(help="Dispatch policy (default: marginal_cost).")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="Folder of CURVE keys, for a link off loopback.")
    ] = None,
    api_keys: Annotated[
        Path | None, typer.Option(help="File of API keys (see `hexgen-sglang keys api`).")
    ] = None,
    allow_anonymous: Annotated[
        bool, typer.Option("--allow-anonymous", help="Whoever reaches --host may do everything.")
    ] = False,
    tls_cert: Annotated[
        Path | None, typer.Option(help="PEM certificate chain, for HTTPS; with --tls-key.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM private key.")] = None,
    ask_db: Annotated[
        list[str] | None,
        typer.Option(
            help="Database to ask on the page /ask: an SQLite or DuckDB file, a server's URL or "
            "`sample`, with NAME= before it or named by its file; repeatable."
        ),
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
        "allow_anonymous": allow_anonymous or None,
    }
    files = {"keys": keys, "api_keys": api_keys, "tls_cert": tls_cert, "tls_key": tls_key}
    flags |= {name: None if path is None else str(path) for name, path in files.items()}
    stated = {name: value for name, value in flags.items() if value is not None}
    settings = _override(base, stated, worker or [], _databases(ask_db or []))
    if print_config:
        print(as_toml(settings), end="")
        return
    from hexgen_sglang.coordinator.server import Extension, run, together
    from hexgen_sglang.dashboard_page.routes import dashboard_page

    pages: list[Extension] = [dashboard_page]
    if settings.coordinator.ask.is_on:
        from hexgen_sglang.ask_page.routes import ask_page

        pages.append(ask_page)
    run(settings, together(*pages))


def _databases(given: list[str]) -> dict[str, dict[str, str]]:
    """Tables of `[coordinator.ask.databases]` by name.

    Raises:
        ConfigError: a name is there twice.
    """
    tables: dict[str, dict[str, str]] = {}
    for text in given:
        stated = _NAMED.fullmatch(text)
        if stated is not None:
            name, db = stated.groups()
        else:
            place = text.partition("?")[0].rstrip("/").rpartition("/")[2]
            name, db = re.sub("[^A-Za-z0-9_-]", "-", place.rpartition(".")[0] or place), text
        if name in tables:
            raise ConfigError(f"--ask-db {text}: {name!r} is there twice; put NAME= before it")
        tables[name] = {"db": db}
    return tables


def _override(
    base: CoordinatorFile,
    flags: dict[str, Any],
    urls: list[str],
    databases: dict[str, dict[str, str]],
) -> CoordinatorFile:
    """The file's settings with those flags that were given; checked like a file."""
    plain = msgspec.to_builtins(base)
    plain["coordinator"].update(flags)
    if databases:
        ask = plain["coordinator"].setdefault("ask", {})
        ask["databases"] = {**ask.get("databases", {}), **databases}
    plain["workers"] = [*plain["workers"], *({"url": url} for url in urls)]
    return convert(plain, CoordinatorFile, "command line")
