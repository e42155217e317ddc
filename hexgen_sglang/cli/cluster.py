"""`hexgen-sglang cluster up CONFIG`: workers and a coordinator from one file, until Ctrl-C."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hexgen_sglang.cluster.config import cluster_as_toml, load_cluster, worker_specs
from hexgen_sglang.cluster.running import Cluster
from hexgen_sglang.cluster.signals import termination_raises

STOP_GRACE_S = 10.0
WATCH_S = 0.5


class Action(StrEnum):
    """What to do with a cluster file."""

    UP = "up"


def command(
    action: Annotated[Action, typer.Argument(help="`up`: start it and run until Ctrl-C.")],
    config: Annotated[Path, typer.Argument(help="Cluster file (TOML).")],
    print_config: Annotated[
        bool, typer.Option(help="Print the settings with every default filled in, and leave.")
    ] = False,
) -> None:
    """Start the workers and the coordinator of a cluster file; stop all on exit or failure."""
    settings = load_cluster(config)
    if print_config:
        print(cluster_as_toml(settings))
        return
    logs = Path(settings.cluster.logs)
    cluster = Cluster(settings.coordinator, worker_specs(settings), logs)
    print(f"{settings.cluster.name}: {len(cluster.workers)} workers; logs in {logs}", flush=True)
    with termination_raises():
        try:
            cluster.start(_say)
            print(f"ready: {cluster.url}  (Ctrl-C stops all)", flush=True)
            while True:
                cluster.check()
                time.sleep(WATCH_S)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        finally:
            print("stopping", flush=True)
            cluster.stop(STOP_GRACE_S)


def _say(name: str, elapsed_s: float, line: str) -> None:
    """One line of progress every five seconds for a process that is awaited."""
    if int(elapsed_s) % 5 == 0:
        print(f"  {name}: starting, {elapsed_s:.0f} s  {line[:100]}", flush=True)
