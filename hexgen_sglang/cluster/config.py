"""The cluster file: one TOML file that names the workers, the coordinator and the logs' folder.

Read by whoever starts a cluster (`hexgen-sglang cluster`, the bench). Makes specifications;
starts nothing.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from hexgen_sglang.cluster.ports import free_port
from hexgen_sglang.cluster.worker import Platform, WorkerSpec
from hexgen_sglang.coordinator.config import CoordinatorConfig, Port, coordinator_as_toml
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.core.strict import convert
from hexgen_sglang.models.smollm2 import ensure_default_model
from hexgen_sglang.models.tiny import make_tiny_model
from hexgen_sglang.protocol.tag import Name

MAX_WORKERS = 64


class ClusterTable(Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[cluster]`.

    Attributes:
        name: for messages and reports.
        logs: folder for logs and written configuration, relative to the working folder.
    """

    name: Name = "cluster"
    logs: Annotated[str, Meta(min_length=1, max_length=4096)] = "runs/cluster"


class RayNeeds(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The table `[workers.ray]`: what one server takes of a node of a Ray cluster.

    Attributes:
        num_gpus: GPUs; Ray tells the server which.
        num_cpus: cores.
        resources: others by name, such as Ray's own "accelerator_type:A100" (0.001 is enough) or
            what `ray start --resources` states.
    """

    num_gpus: Annotated[int, Meta(ge=0, le=1_024)] = 0
    num_cpus: Annotated[float, Meta(ge=0, le=4_096)] = 0.0
    resources: dict[Name, Annotated[float, Meta(gt=0, le=1e6)]] = {}


class WorkerRow(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One row of `[[workers]]`: `count` SGLang servers alike.

    Attributes:
        name: worker id; with a count above 1 they are `<name>-0`, `<name>-1`, ...
        count: how many, alike.
        platform: "torch_cpu" or "cuda". A row with count 1 and CUDA_VISIBLE_DEVICES in `env`
            puts a server on a certain GPU.
        profile: accelerator to emulate, a file relative to this one; needs "torch_cpu".
        model_path: "default", "tiny", a folder, or what SGLang accepts; without one "tiny"
            for an emulated accelerator (no weights are needed) and "default" otherwise.
        schedule_policy: "hexgen", or one of SGLang's own for a baseline.
        ordering: which of our policies orders the queue; "hexgen" only.
        hardware: name for the coordinator; the profile's name without one.
        keys: folder of CURVE keys; the coordinator's without one.
        host, port: where they listen; port 0 takes free ones, others count up from it.
        max_total_tokens: KV slots.
        flags: further arguments for launch_server.
        env: further environment.
        ray: for the engine "ray" only; without it one of the resource named as `hardware`.
    """

    name: Name
    count: Annotated[int, Meta(ge=1, le=MAX_WORKERS)] = 1
    platform: Platform = "torch_cpu"
    profile: str | None = None
    model_path: str | None = None
    schedule_policy: Name = "hexgen"
    ordering: Name | None = None
    hardware: Annotated[str, Meta(max_length=64)] = ""
    keys: str | None = None
    host: str = "127.0.0.1"
    port: Port = 0
    max_total_tokens: Annotated[int, Meta(ge=256, le=2**40)] | None = None
    flags: tuple[str, ...] = ()
    env: dict[str, str] = {}
    ray: RayNeeds | None = None

    def __post_init__(self) -> None:
        if self.profile is not None and self.platform != "torch_cpu":
            raise ValueError(f"profile={self.profile!r}: needs platform 'torch_cpu'")
        if self.ordering is not None and self.schedule_policy != "hexgen":
            raise ValueError(f"ordering={self.ordering!r}: needs schedule_policy 'hexgen'")

    def names(self) -> list[str]:
        """Ids of the row's workers."""
        if self.count == 1:
            return [self.name]
        return [f"{self.name}-{number}" for number in range(self.count)]


class ClusterConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """A whole cluster file: `[cluster]`, `[coordinator]` and `[[workers]]`."""

    workers: Annotated[tuple[WorkerRow, ...], Meta(min_length=1, max_length=MAX_WORKERS)]
    cluster: ClusterTable = ClusterTable()
    coordinator: CoordinatorConfig = CoordinatorConfig()

    def __post_init__(self) -> None:
        names = [name for row in self.workers for name in row.names()]
        if len(names) > MAX_WORKERS:
            raise ValueError(f"{len(names)} workers: at most {MAX_WORKERS}")
        for name in names:
            if names.count(name) > 1 or name == "coordinator":
                raise ValueError(f"worker name {name!r}: must be unique and not 'coordinator'")


def load_cluster(path: Path) -> ClusterConfig:
    """Read a cluster file; the profiles and their folder, as it names them, become absolute paths.

    Raises:
        ConfigError: not readable, not TOML, an unknown field, a value out of range, or a
            profile that is not there; names the file, the field and the allowed range.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    config = convert(raw, ClusterConfig, str(path))
    rows = tuple(_with_profile(row, path) for row in config.workers)
    coordinator = config.coordinator
    if coordinator.accelerators is not None:
        folder = (path.parent / coordinator.accelerators).resolve()
        coordinator = msgspec.structs.replace(coordinator, accelerators=str(folder))
    return msgspec.structs.replace(config, workers=rows, coordinator=coordinator)


def _with_profile(row: WorkerRow, path: Path) -> WorkerRow:
    """The row with its profile as an absolute path, and its hardware named after it."""
    if row.profile is None:
        return row
    profile = (path.parent / row.profile).resolve()
    if not profile.is_file():
        raise ConfigError(f"{path}: workers {row.name!r}: profile={row.profile!r}: no such file")
    hardware = row.hardware or profile.stem
    return msgspec.structs.replace(row, profile=str(profile), hardware=hardware)


def worker_specs(config: ClusterConfig) -> list[WorkerSpec]:
    """Every worker of the cluster, ports taken and models made where they are not there yet.

    Workers that compute on the CPU are pinned to one core each, in turn.

    Raises:
        ConfigError: a model cannot be had.
    """
    specs: list[WorkerSpec] = []
    for row in config.workers:
        model_path = resolve_model(shared_fields(row)["model_path"])
        for number, name in enumerate(row.names()):
            computes_here = row.platform == "torch_cpu" and row.profile is None
            specs.append(
                WorkerSpec(
                    **{**shared_fields(row), "model_path": model_path},
                    name=name,
                    port=row.port + number if row.port else free_port(),
                    core=len(specs) if computes_here else None,
                )
            )
    return specs


def shared_fields(row: WorkerRow) -> dict[str, Any]:
    """Fields of a `WorkerSpec` that all workers of the row have; the model by its name."""
    return {
        "model_path": row.model_path or ("tiny" if row.profile else "default"),
        "platform": row.platform,
        "emulate": Path(row.profile) if row.profile else None,
        "schedule_policy": row.schedule_policy,
        "ordering": row.ordering,
        "hardware": row.hardware,
        "keys": Path(row.keys) if row.keys else None,
        "host": row.host,
        "max_total_tokens": row.max_total_tokens,
        "flags": row.flags,
        "env": row.env,
    }


def resolve_model(name: str) -> str:
    """The model's folder for "default" and "tiny", which are made when missing; else `name`.

    Raises:
        ConfigError: the default model cannot be had.
    """
    if name == "default":
        return str(ensure_default_model())
    if name == "tiny":
        return str(make_tiny_model())
    return name


def cluster_as_toml(config: ClusterConfig) -> str:
    """The configuration with its defaults filled in, as TOML that `load_cluster` reads back."""
    parts = ["[cluster]", *_rows(msgspec.structs.asdict(config.cluster)), ""]
    parts.append(coordinator_as_toml(config.coordinator))
    for row in config.workers:
        fields = msgspec.structs.asdict(row)
        tables = {"env": fields.pop("env")}
        needs = fields.pop("ray")
        if needs is not None:
            tables["ray"] = msgspec.structs.asdict(needs)
            tables["ray.resources"] = tables["ray"].pop("resources")
        parts += ["[[workers]]", *_rows(fields)]
        for name, table in tables.items():
            parts += [f"[workers.{name}]", *_rows(table)] if table else []
        parts.append("")
    return "\n".join(parts)


def _rows(table: dict[str, Any]) -> list[str]:
    """`"key" = value` lines; JSON's strings, numbers and arrays are TOML's too."""
    encode = msgspec.json.encode
    return [
        f"{encode(name).decode()} = {encode(value).decode()}"
        for name, value in table.items()
        if value is not None
    ]
