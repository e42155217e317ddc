"""`hexgen-sglang drain`: take a worker out of service and wait until it has nothing left to do.

For operators before they stop a worker, and for hooks that run before something else stops it.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:8000"


def command(
    worker: Annotated[str, typer.Argument(help="Id of the worker.")],
    url: Annotated[str, typer.Option(help="The coordinator.")] = DEFAULT_URL,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="HEXGEN_API_KEY", help="An operator's key, where keys are used."),
    ] = None,
    timeout_s: Annotated[
        float, typer.Option(min=0, max=86_400, help="Longest wait for its requests to end.")
    ] = 600.0,
    poll_s: Annotated[
        float, typer.Option(min=0.05, max=60, help="Pause between two looks at it.")
    ] = 1.0,
    remove: Annotated[
        bool, typer.Option("--remove", help="Then take it off the coordinator's list.")
    ] = False,
) -> None:
    """Drain a worker. Exit status 1: requests were still there when the time was over.

    Requests that have not begun to answer stay with the worker; nothing is cut off here.
    """
    from hexgen_sglang.client import CoordinatorClient
    from hexgen_sglang.core.errors import ConfigError, WorkerUnavailableError

    coordinator = CoordinatorClient(url, api_key=api_key)
    began_s = time.monotonic()
    try:
        row = coordinator.drain_worker(worker)
        while row is not None and row["num_in_flight"]:
            if time.monotonic() - began_s > timeout_s:
                print(f"{worker}: {row['num_in_flight']} requests left after {timeout_s:g} s")
                raise typer.Exit(1)
            time.sleep(poll_s)
            row = coordinator.drain_worker(worker)
        if remove and row is not None:
            coordinator.remove_worker(worker)
    except WorkerUnavailableError as error:
        raise ConfigError(f"--url {url}: {error}") from error
    if row is None:
        raise ConfigError(f"WORKER={worker!r}: not registered at {url}")
    print(f"{worker}: drained after {time.monotonic() - began_s:.1f} s")
