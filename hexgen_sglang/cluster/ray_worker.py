"""One worker on a node of a Ray cluster: the actor that starts the server there and watches it.

Runs in an actor's process on that node. Ray places and ends the actor; when it is gone, however
it went, the guard process ends the server. What is started where, and again, is `ray_running`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hexgen_sglang.cluster.config import resolve_model
from hexgen_sglang.cluster.ports import free_port
from hexgen_sglang.cluster.process import ChildProcess
from hexgen_sglang.cluster.worker import WorkerSpec


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
