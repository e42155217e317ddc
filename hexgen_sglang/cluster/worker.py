"""What to start for one worker: the `sglang.launch_server` command, its environment, its probe.

Runs in the process that owns the worker. The process itself is `cluster.process`; what the
flags mean inside SGLang is the plugin's affair.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hexgen_sglang.cluster.ports import answers, free_port
from hexgen_sglang.cluster.process import ChildProcess
from hexgen_sglang.core.errors import ConfigError

Platform = Literal["torch_cpu", "cuda"]
PLATFORMS: tuple[Platform, ...] = ("torch_cpu", "cuda")
DEFAULT_KV_TOKENS = 16_384  # on the CPU; 0.4 to 0.8 GB for a model of 135 M parameters
READY_TIMEOUT_S = 300.0  # on one slow core a server takes 40 s, on a loaded machine minutes


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """One SGLang server of this machine.

    Attributes:
        name: worker id towards the coordinator, and name of its log file.
        model_path: local folder, or whatever SGLang accepts.
        platform: "torch_cpu" (our platform for trying things out) or "cuda" (SGLang's own).
        emulate: accelerator profile; the forward pass then becomes a timed wait. Needs
            platform "torch_cpu" and `schedule_policy` does not matter for it.
        schedule_policy: value of --schedule-policy; None leaves SGLang's default.
        coordinator_link: ZMQ endpoint of the coordinator; None: no link.
        ordering: value of --hexgen-ordering; None leaves its default.
        hardware: name told to the coordinator; "" for none.
        keys: folder of CURVE keys for a link off loopback.
        host, port: where the server listens.
        nccl_port: for torch.distributed inside the server; distinct for each worker.
        core: index into the cores this process may use, to which the scheduler is pinned;
            None: not pinned. "torch_cpu" only.
        max_total_tokens: KV slots; None: 16,384 on the CPU, SGLang's choice on a GPU, the
            profile's on an emulated one.
        flags: further arguments for launch_server, last, so that they win.
        env: further environment, last, so that it wins.
    """

    name: str
    model_path: str
    platform: Platform = "torch_cpu"
    emulate: Path | None = None
    schedule_policy: str | None = None
    coordinator_link: str | None = None
    ordering: str | None = None
    hardware: str = ""
    keys: Path | None = None
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    nccl_port: int = field(default_factory=free_port)
    core: int | None = None
    max_total_tokens: int | None = None
    flags: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.platform not in PLATFORMS:
            raise ConfigError(f"platform={self.platform!r}: must be one of {', '.join(PLATFORMS)}")
        if self.emulate is not None and self.platform != "torch_cpu":
            raise ConfigError(f"emulate={self.emulate}: needs platform torch_cpu")
        if self.coordinator_link is not None and self.schedule_policy != "hexgen":
            raise ConfigError(
                f"schedule_policy={self.schedule_policy!r}: must be 'hexgen' "
                "for a worker with a coordinator_link"
            )

    @property
    def url(self) -> str:
        """Base address, for the coordinator and for probes from this machine."""
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host
        return f"http://{host}:{self.port}"

    @property
    def is_local_model(self) -> bool:
        """Whether the model is a folder of this machine."""
        return Path(self.model_path).is_dir()

    def command(self) -> list[str]:
        """The argument vector of the server."""
        model = str(Path(self.model_path).resolve()) if self.is_local_model else self.model_path
        command = [
            *(sys.executable, "-m", "sglang.launch_server"),
            *("--model-path", model),
            *("--host", self.host, "--port", str(self.port), "--nccl-port", str(self.nccl_port)),
            *("--enable-cache-report", "--log-level-http", "warning"),
        ]
        if self.platform == "torch_cpu" and self.emulate is None:
            command += _CPU_FLAGS  # an emulated accelerator sets its own
        max_total_tokens = self.max_total_tokens
        if max_total_tokens is None and self.platform == "torch_cpu" and self.emulate is None:
            max_total_tokens = DEFAULT_KV_TOKENS
        for flag, value in (
            ("--max-total-tokens", max_total_tokens),
            ("--schedule-policy", self.schedule_policy),
            ("--hexgen-emulate", self.emulate and self.emulate.resolve()),
            ("--hexgen-ordering", self.ordering),
        ):
            if value is not None:
                command += [flag, str(value)]
        if self.coordinator_link is not None:
            command += self._link_flags(self.coordinator_link)
        return [*command, *self.flags]

    def _link_flags(self, endpoint: str) -> list[str]:
        """Who the worker is towards the coordinator, and where that one listens."""
        flags = ["--hexgen-coordinator", endpoint, "--hexgen-worker-id", self.name]
        flags += ["--hexgen-advertise-url", self.url]
        if self.hardware:
            flags += ["--hexgen-hardware", self.hardware]
        if self.keys is not None:
            flags += ["--hexgen-keys", str(self.keys.resolve())]
        return flags

    def environment(self) -> dict[str, str]:
        """The server's whole environment, made from ours.

        Compiled modules are always cached: without that each of a server's three processes
        compiles all of SGLang at every start. The working folder is kept off the import
        path, since a folder there can shadow a package of SGLang.
        """
        env = dict(os.environ)
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        env["PYTHONUNBUFFERED"] = "1"
        env["PYTHONSAFEPATH"] = "1"
        # Kernels that are built at run time call programs of the virtual environment.
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
        if self.is_local_model:
            env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        if self.platform == "torch_cpu":
            env |= {"SGLANG_PLATFORM": "hexgen_torch_cpu", "OMP_NUM_THREADS": "1"}
            if self.core is not None:
                allowed = sorted(os.sched_getaffinity(0))
                env["SGLANG_CPU_OMP_THREADS_BIND"] = str(allowed[self.core % len(allowed)])
        return env | dict(self.env)

    def process(self, log_folder: Path) -> ChildProcess:
        """The server as a child process, not started; its log is `<name>.log`."""
        return ChildProcess(
            self.name,
            self.command(),
            env=self.environment(),
            log_path=log_folder / f"{self.name}.log",
        )

    def is_ready(self) -> bool:
        """Whether the server generates: its health check runs one token through the scheduler."""
        return answers(f"{self.url}/health", timeout_s=10.0)


_CPU_FLAGS = [
    *("--device", "cpu", "--attention-backend", "torch_native"),
    *("--sampling-backend", "pytorch", "--grammar-backend", "none"),
    "--disable-overlap-schedule",
    "--sleep-on-idle",  # an idle scheduler otherwise spins a whole core
    "--skip-server-warmup",
]
