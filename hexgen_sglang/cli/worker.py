"""`hexgen-sglang worker`: become one SGLang server with our scheduling policy.

A short way to write `python -m sglang.launch_server` with our flags; on a machine without a
GPU also the flags and environment of the torch-CPU platform.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hexgen_sglang.cluster.config import resolve_model
from hexgen_sglang.cluster.worker import Platform, WorkerSpec


class PlatformChoice(StrEnum):
    """Where the model runs."""

    AUTO = "auto"
    TORCH_CPU = "torch_cpu"
    CUDA = "cuda"


def command(
    flags: Annotated[
        list[str] | None, typer.Argument(help="After `--`: more arguments for launch_server.")
    ] = None,
    model_path: Annotated[
        str, typer.Option(help="Folder, `default`, `tiny`, or what SGLang accepts.")
    ] = "default",
    name: Annotated[str, typer.Option(help="Worker id towards the coordinator.")] = "worker-0",
    link: Annotated[
        str | None, typer.Option(help="The coordinator's ZMQ endpoint; none: no link.")
    ] = None,
    platform: Annotated[
        PlatformChoice, typer.Option(help="`auto`: cuda where an NVIDIA driver is loaded.")
    ] = PlatformChoice.AUTO,
    emulate: Annotated[
        Path | None, typer.Option(help="Emulate this accelerator profile.", exists=True)
    ] = None,
    schedule_policy: Annotated[str, typer.Option(help="`hexgen` or SGLang's own.")] = "hexgen",
    hardware: Annotated[str, typer.Option(help="Hardware name for the coordinator.")] = "",
    keys: Annotated[
        Path | None, typer.Option(help="CURVE keys, for a link off loopback.", exists=True)
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65_535)] = 30010,
) -> None:
    """Run one SGLang server; this process becomes the server."""
    has_gpu = Path("/proc/driver/nvidia/version").exists() and emulate is None
    wants_gpu = has_gpu if platform is PlatformChoice.AUTO else platform is PlatformChoice.CUDA
    chosen: Platform = "cuda" if wants_gpu else "torch_cpu"
    spec = WorkerSpec(
        name=name,
        model_path=resolve_model(model_path),
        platform=chosen,
        emulate=emulate,
        schedule_policy=schedule_policy,
        coordinator_link=link,
        hardware=hardware,
        keys=keys,
        host=host,
        port=port,
        flags=tuple(flags or ()),
    )
    arguments = spec.command()
    os.execvpe(arguments[0], arguments, spec.environment())
