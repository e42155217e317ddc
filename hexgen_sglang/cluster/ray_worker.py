"""One worker on a node of a Ray cluster: what it needs of the node, and the actor that runs it.

Runs in an actor's process on that node. Ray places and ends the actor; when it is gone, however
it went, the guard process ends the server. What is started where, and again, is `ray_running`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hexgen_sglang.cluster.config import RayNeeds, WorkerRow, resolve_model
from hexgen_sglang.cluster.ports import free_port
from hexgen_sglang.cluster.process import ChildProcess
from hexgen_sglang.cluster.worker import WorkerSpec
from hexgen_sglang.core.errors import ConfigError


@dataclass(frozen=True)
class Look:
    """What was seen of a server.

    Attributes:
        url: its base address, as the coordinator knows it.
        exit_code: None while it runs.
        is_ready: it has generated a token since its start.
        log_tail: the end of its log, once it has ended.
    """

    url: str
    exit_code: int | None
    is_ready: bool
    log_tail: str = ""


class RayWorker:
    """The actor: one SGLang server, started at once.

    Args:
        fields: of the `WorkerSpec`; port 0 takes a free one of this node.
        log_folder: on this node; made when it is not there.
        on_network: the server listens on this node's address, since others must reach it.

    Raises:
        ConfigError: the model cannot be had.
        ProcessError: the server cannot be started.
    """

    def __init__(self, fields: Mapping[str, Any], log_folder: str, *, on_network: bool) -> None:
        import ray

        given = dict(fields)
        given["model_path"] = resolve_model(given["model_path"])
        if on_network:
            given["host"] = ray.util.get_node_ip_address()
        given["port"] = given["port"] or free_port()
        self._spec = WorkerSpec(**given)
        self._process: ChildProcess = self._spec.process(Path(log_folder))
        self._is_ready = False
        self._process.start()

    def look(self) -> Look:
        """How the server is; takes up to 10 s while it is not ready."""
        exit_code = self._process.exit_code()
        if exit_code is not None:
            return Look(self._spec.url, exit_code, False, self._process.log_tail())
        self._is_ready = self._is_ready or self._spec.is_ready()
        return Look(self._spec.url, None, self._is_ready)

    def stop(self, grace_s: float) -> None:
        """SIGTERM the server, and SIGKILL what is left of it after `grace_s` seconds.

        Raises:
            ProcessError: something survived.
        """
        self._process.stop(grace_s)


def needs_of(row: WorkerRow) -> RayNeeds:
    """What one worker of the row takes of a node; by default one of its hardware's name.

    Raises:
        ConfigError: a worker on GPUs that asks for none, or one that must be listed by URL.
    """
    if row.schedule_policy != "hexgen":
        raise ConfigError(
            f"workers {row.name!r}: schedule_policy={row.schedule_policy!r}: must be 'hexgen' "
            "with the engine ray, where the plugin tells the coordinator its address"
        )
    needs = row.ray or RayNeeds(resources={row.hardware: 1.0} if row.hardware else {})
    if row.platform == "cuda" and needs.num_gpus == 0:
        raise ConfigError(
            f"workers {row.name!r}: [workers.ray] num_gpus: must be at least 1 with platform 'cuda'"
        )
    return needs


def told(needs: RayNeeds) -> str:
    """The needs in a line, without those that are nothing."""
    return str({name: value for name, value in msgspec.to_builtins(needs).items() if value})
