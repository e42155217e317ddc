"""What to start for the coordinator: its command, its configuration file, its probe.

Runs in the process that owns the coordinator, which itself is `hexgen_sglang.coordinator`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hexgen_sglang.cluster.ports import answers, fetch_json, free_port
from hexgen_sglang.cluster.process import ChildProcess
from hexgen_sglang.coordinator.config import (
    CoordinatorConfig,
    CoordinatorFile,
    PeerConfig,
    WorkerConfig,
    as_toml,
)
from hexgen_sglang.core.errors import ConfigError

READY_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class CoordinatorSpec:
    """One coordinator of this machine.

    Attributes:
        config: all its settings; port and link are stated (`with_ports` fills them in).
        workers: those that do not announce themselves over the link.
        peers: other coordinators before the same workers.
        name: name of its log file and of the configuration file written beside it.
    """

    config: CoordinatorConfig
    workers: tuple[WorkerConfig, ...] = ()
    name: str = "coordinator"
    peers: tuple[PeerConfig, ...] = ()

    def __post_init__(self) -> None:
        for name in ("api_keys", "tls_cert"):
            if getattr(self.config, name) is not None:
                raise ConfigError(
                    f"{name}: must be left out here, where the coordinator is watched without "
                    "key or certificate; use `hexgen-sglang coordinator --config FILE`"
                )

    @classmethod
    def with_ports(
        cls, config: CoordinatorConfig, workers: Sequence[WorkerConfig] = ()
    ) -> CoordinatorSpec:
        """Take free ports for HTTP (for port 0) and for the link (for none stated)."""
        changes: dict[str, Any] = {}
        if config.port == 0:
            changes["port"] = free_port()
        if not config.link:
            changes["link"] = f"tcp://127.0.0.1:{free_port()}"
        return cls(msgspec.structs.replace(config, **changes), tuple(workers))

    @property
    def url(self) -> str:
        """Base address, as reached from this machine."""
        host = "127.0.0.1" if self.config.host == "0.0.0.0" else self.config.host
        return f"http://{host}:{self.config.port}"

    def process(self, folder: Path) -> ChildProcess:
        """The coordinator as a child process, not started.

        Writes `<name>.toml` to `folder`, which gets the log as well.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.toml"
        file = CoordinatorFile(self.config, self.workers, self.peers)
        path.write_text(as_toml(file), encoding="utf-8")
        return ChildProcess(
            self.name,
            [sys.executable, "-P", "-m", "hexgen_sglang", "coordinator", "--config", str(path)],
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            log_path=folder / f"{self.name}.log",
        )

    def is_ready(self) -> bool:
        """Whether it serves HTTP; it may have no worker yet."""
        return answers(f"{self.url}/workers")

    def ready_workers(self) -> set[str]:
        """Ids of the workers that it may send requests to now; empty while it is not up."""
        listing = fetch_json(f"{self.url}/workers")
        rows = listing["workers"] if listing else []
        return {row["worker_id"] for row in rows if row["state"] == "ready"}
