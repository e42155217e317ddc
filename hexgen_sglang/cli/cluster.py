"""`hexgen-sglang cluster up CONFIG`: workers and a coordinator from one file, until Ctrl-C.

On this machine, or with `--engine ray` the workers on the nodes of a Ray cluster.
"""

from __future__ import annotations

import time
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hexgen_sglang.cluster.config import (
    ClusterConfig,
    cluster_as_toml,
    load_cluster,
    worker_specs,
)
from hexgen_sglang.cluster.running import Cluster
from hexgen_sglang.cluster.signals import termination_raises
from hexgen_sglang.core.errors import ConfigError

STOP_GRACE_S = 10.0
WATCH_S = 0.5


class Action(StrEnum):
    """What to do with a cluster file."""

    UP = "up"


class Engine(StrEnum):
    """What starts the workers."""

    LOCAL = "local"
    RAY = "ray"


def command(
    action: Annotated[Action, typer.Argument(help="`up`: start it and run until Ctrl-C.")],
    config: Annotated[Path, typer.Argument(help="Cluster file (TOML).")],
    print_config: Annotated[
        bool, typer.Option(help="Print the settings with every default filled in, and leave.")
    ] = False,
    engine: Annotated[
        Engine, typer.Option(help="`local`: this machine; `ray`: nodes of a Ray cluster.")
    ] = Engine.LOCAL,
    ray_address: Annotated[
        str, typer.Option(help="ray: the cluster, HOST:PORT; `auto`: the one of this machine.")
    ] = "auto",
    link: Annotated[
        str | None,
        typer.Option(help="ray: link of a coordinator that runs elsewhere; none is started."),
    ] = None,
) -> None:
    """Start the workers and the coordinator of a cluster file; stop all on exit or failure.

    On this machine a worker that ends is a failure; the engine `ray` starts it again.
    """
    settings = load_cluster(config)
    if print_config:
        print(cluster_as_toml(settings))
    elif engine is Engine.RAY:
        _run_on_ray(settings, ray_address, link)
    elif link is not None:
        raise ConfigError(f"--link {link}: needs --engine ray")
    else:
        _run_here(settings)


def _run_here(settings: ClusterConfig) -> None:
    """Workers and coordinator as processes of this machine, until a signal or a failure."""
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


def _run_on_ray(settings: ClusterConfig, address: str, link: str | None) -> None:
    """Workers on Ray's nodes, until a signal or the coordinator's failure."""
    from hexgen_sglang.cluster.ray_running import RayCluster

    cluster = RayCluster(settings, address=address, link=link, say=partial(print, flush=True))
    count, name = len(cluster.workers), settings.cluster.name
    print(
        f"{name}: {count} workers on Ray; logs in {settings.cluster.logs} of each node", flush=True
    )
    was_ready = False
    cluster.connect()
    with termination_raises():
        try:
            cluster.start()
            while True:
                cluster.watch(WATCH_S)
                if cluster.is_ready and not was_ready:
                    was_ready = True
                    print(f"ready: {cluster.url or link}  (Ctrl-C stops all)", flush=True)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        finally:
            print("stopping", flush=True)
            cluster.stop(STOP_GRACE_S)


def _say(name: str, elapsed_s: float, line: str) -> None:
    """One line of progress every five seconds for a process that is awaited."""
    if int(elapsed_s) % 5 == 0:
        print(f"  {name}: starting, {elapsed_s:.0f} s  {line[:100]}", flush=True)
