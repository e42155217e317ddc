"""Our command-line flags: what they are called, and how they become a `PluginConfig`.

Runs in the process that parses SGLang's command line. Everything is checked here, at launch,
so that a wrong value never shows up later in a child process.
"""

from __future__ import annotations

import argparse
import math
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.plugin.attention import registration as attention
from hexgen_sglang.plugin.config import PluginConfig
from hexgen_sglang.plugin.emulation.launch import EmulateAction, check_time_scale
from hexgen_sglang.plugin.emulation.profile_file import load_profile
from hexgen_sglang.plugin.worker_url import reachable_url
from hexgen_sglang.policies.ordering import ORDERING
from hexgen_sglang.policies.patience import MOST_PATIENCE
from hexgen_sglang.protocol.tag import Name
from hexgen_sglang.transport.endpoints import checked_endpoint
from hexgen_sglang.transport.keys import load_worker_keys

POLICY = "hexgen"
DEFAULT_ORDERING = "least_slack"
SCHEDULE_POLICY_FLAG = "--schedule-policy"
_OUR_CHOICES = {
    SCHEDULE_POLICY_FLAG: POLICY,
    attention.ATTENTION_BACKEND_FLAG: attention.SHARED_PREFIX,
}


@dataclass(frozen=True)
class Flag:
    """One flag of ours: `needs` names the flag without which it makes no sense."""

    name: str
    metavar: str
    help: str
    needs: str | None = None
    type: type = str
    action: type[argparse.Action] | str = "store"

    @property
    def attribute(self) -> str:
        """Its name on the argparse namespace."""
        return self.name.removeprefix("--").replace("-", "_")


_NEEDS_POLICY = f"{SCHEDULE_POLICY_FLAG} {POLICY}"
FLAGS = (
    Flag(
        "--hexgen-ordering",
        "NAME",
        f"Policy that ranks the waiting queue ({', '.join(ORDERING)}; default "
        f"{DEFAULT_ORDERING}). Needs {_NEEDS_POLICY}.",
        needs=_NEEDS_POLICY,
    ),
    Flag(
        "--hexgen-best-effort-slack",
        "SECONDS",
        "Slack at arrival assumed for requests without a deadline (default 30; at least 0). "
        f"Needs {_NEEDS_POLICY}.",
        needs=_NEEDS_POLICY,
        type=float,
    ),
    Flag(
        "--hexgen-hold-prefixes",
        "on|off",
        "Let a request wait for a step or two while another of its workflow computes a prefix "
        f"that both need (default on). Needs {_NEEDS_POLICY}.",
        needs=_NEEDS_POLICY,
    ),
    Flag(
        "--hexgen-coordinator",
        "tcp://HOST:PORT[,...]",
        "Coordinator (or ipc://PATH) to register with and to report load and timings to, or "
        "several with commas between; works with every schedule policy.",
    ),
    Flag(
        "--hexgen-worker-id",
        "NAME",
        "Name towards the coordinator, stable over restarts (default: host name and port).",
        needs="--hexgen-coordinator",
    ),
    Flag(
        "--hexgen-advertise-url",
        "URL",
        "HTTP address under which the coordinator reaches this server (default: from --host "
        "and --port).",
        needs="--hexgen-coordinator",
    ),
    Flag(
        "--hexgen-hardware",
        "NAME",
        "Accelerator name for the coordinator, e.g. a100 (default: the device's own name). "
        "Workers of one name are taken to be alike.",
        needs="--hexgen-coordinator",
    ),
    Flag(
        "--hexgen-keys",
        "DIR",
        "Folder with this worker's CURVE keys, for a link off loopback.",
        needs="--hexgen-coordinator",
    ),
    Flag(
        "--hexgen-retain-prefixes",
        "SHARE",
        "Keep prefixes of workflows that are between two stages, and templates, in at most this "
        "share of the KV memory (0 to 1; default 0: none are kept).",
        needs="--hexgen-coordinator",
        type=float,
    ),
    Flag(
        "--hexgen-prewarm",
        "SHARE",
        "While a workflow's tools run, compute what its next prompt begins with, as far as the "
        "coordinator knows it; what was computed and not used yet takes at most this share of the "
        "KV memory (0 to 1; default 0: none is).",
        needs="--hexgen-coordinator",
        type=float,
    ),
    Flag(
        "--hexgen-prefill-patience",
        "N",
        "Let a prompt wait for decodes of tighter work that it would stall, for at most N times as "
        f"long as its prefill takes (0 to {MOST_PATIENCE:g}; default 0: not at all). Needs "
        f"{_NEEDS_POLICY}, too.",
        needs="--hexgen-coordinator",
        type=float,
    ),
    Flag(
        "--hexgen-emulate",
        "PROFILE.toml",
        "Replace the forward pass by the waiting time of this accelerator profile; works with "
        "every schedule policy. Sets what the server needs for it (no weights, KV capacity, "
        "chunk size, ...) unless a flag says otherwise; --model-path then only names a tokenizer.",
        action=EmulateAction,
    ),
    Flag(
        "--hexgen-time-scale",
        "N",
        "Emulated seconds in a real one (default 1). Needs --hexgen-emulate.",
        needs="--hexgen-emulate",
        type=float,
    ),
    Flag(
        "--hexgen-step-log",
        "DIR",
        "Folder for steps.jsonl and summary.json of the emulated accelerator.",
        needs="--hexgen-emulate",
    ),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add our flags to SGLang's parser, and our names to the choices of its own flags."""
    group = parser.add_argument_group("hexgen-sglang")
    for flag in FLAGS:
        group.add_argument(
            flag.name, metavar=flag.metavar, help=flag.help, type=flag.type, action=flag.action
        )
    for action in parser._actions:
        for name in _OUR_CHOICES.keys() & action.option_strings:
            if action.choices is not None:
                action.choices = [*action.choices, _OUR_CHOICES[name]]


def config_from(args: argparse.Namespace) -> PluginConfig | None:
    """The settings that SGLang's parsed command line asks for; None when it uses none of ours.

    Reads our flags and `schedule_policy`, `attention_backend`, `host`, `port`, `ssl_certfile`
    and `dp_size`.

    Raises:
        ConfigError: a flag without the one it needs, or a value out of range.
    """
    given = {flag.attribute: getattr(args, flag.attribute, None) for flag in FLAGS}
    uses_policy = args.schedule_policy == POLICY
    shared_prefix = attention.is_asked_for(args)
    nothing_given = all(value is None for value in given.values())
    if not uses_policy and not shared_prefix and nothing_given:
        return None
    _check_needs(given, uses_policy)
    fields: dict[str, Any] = {"shared_prefix": shared_prefix}
    if uses_policy:
        fields |= _ordering(given["hexgen_ordering"], given["hexgen_best_effort_slack"])
        fields["hold_prefixes"] = _on_or_off(
            "--hexgen-hold-prefixes", given["hexgen_hold_prefixes"], default=True
        )
    if given["hexgen_coordinator"] is not None:
        fields |= _link(args, given)
    if given["hexgen_emulate"] is not None:
        fields |= _emulation(given)
    return PluginConfig(**fields)


def _check_needs(given: dict[str, Any], uses_policy: bool) -> None:
    for flag in FLAGS:
        if given[flag.attribute] is None or flag.needs is None:
            continue
        if flag.needs == _NEEDS_POLICY:
            present = uses_policy
        else:
            present = given[flag.needs.removeprefix("--").replace("-", "_")] is not None
        if not present:
            raise ConfigError(f"{flag.name}={given[flag.attribute]}: needs {flag.needs}")


def _ordering(name: str | None, best_effort_slack_s: float | None) -> dict[str, Any]:
    name = name or DEFAULT_ORDERING
    settings = {}
    if best_effort_slack_s is not None:
        if not math.isfinite(best_effort_slack_s) or best_effort_slack_s < 0:
            raise ConfigError(
                f"--hexgen-best-effort-slack={best_effort_slack_s}: must be a finite number >= 0"
            )
        settings["best_effort_slack_s"] = best_effort_slack_s
    if name not in ORDERING:
        raise ConfigError(f"--hexgen-ordering={name}: must be one of {', '.join(ORDERING)}")
    try:
        ORDERING.create(name, **settings)
    except ConfigError as error:
        raise ConfigError(
            f"--hexgen-best-effort-slack={best_effort_slack_s}: no setting of {name} ({error})"
        ) from error
    return {"ordering": name, "ordering_settings": settings}


def _link(args: argparse.Namespace, given: dict[str, Any]) -> dict[str, Any]:
    endpoint = given["hexgen_coordinator"]
    keys = given["hexgen_keys"]
    if keys is not None:
        keys = str(_existing("--hexgen-keys", keys))
        load_worker_keys(keys)
    endpoints = [part.strip() for part in endpoint.split(",")]
    try:
        for one in endpoints:
            checked_endpoint(one, has_keys=keys is not None, bind=False)
    except ConfigError as error:
        raise ConfigError(f"--hexgen-coordinator: {error}") from error
    if len(set(endpoints)) < len(endpoints):
        raise ConfigError(f"--hexgen-coordinator={endpoint}: one of them is there twice")
    if (args.dp_size or 1) > 1:
        raise ConfigError(
            f"--dp-size={args.dp_size}: must be 1 with --hexgen-coordinator; a worker of the "
            "coordinator is one engine with one queue, so start one server for each replica"
        )
    url = given["hexgen_advertise_url"]
    if url is None:
        url = reachable_url(args.host, args.port, bool(args.ssl_certfile), endpoint=endpoints[0])
    fields: dict[str, Any] = {
        "coordinators": tuple(endpoints),
        "worker_id": given["hexgen_worker_id"] or _default_worker_id(args.port),
        "url": url.rstrip("/"),
        "hardware": given["hexgen_hardware"] or "",
        "keys": keys,
    }
    patience = given["hexgen_prefill_patience"]
    if patience is not None:
        if args.schedule_policy != POLICY:
            raise ConfigError(f"--hexgen-prefill-patience={patience}: needs {_NEEDS_POLICY}")
        if not 0 <= patience <= MOST_PATIENCE:
            raise ConfigError(
                f"--hexgen-prefill-patience={patience}: must be 0 to {MOST_PATIENCE:g}"
            )
        fields["prefill_patience"] = patience
    for flag, field in (("retain_prefixes", "retained_share"), ("prewarm", "prewarm_share")):
        share = given[f"hexgen_{flag}"]
        if share is not None:
            if not 0 <= share <= 1:
                name = flag.replace("_", "-")
                raise ConfigError(f"--hexgen-{name}={share}: must be 0 to 1")
            fields[field] = share
    _check_range("--hexgen-worker-id", fields["worker_id"], Name)
    hints = {field.name: field.type for field in msgspec.structs.fields(PluginConfig)}
    _check_range("--hexgen-advertise-url", fields["url"], hints["url"])
    _check_range("--hexgen-hardware", fields["hardware"], hints["hardware"])
    return fields


def _emulation(given: dict[str, Any]) -> dict[str, Any]:
    path = _existing("--hexgen-emulate", given["hexgen_emulate"])
    profile = load_profile(path)
    fields: dict[str, Any] = {"emulate": str(path)}
    if given["hexgen_hardware"] is None:
        fields["hardware"] = profile.name
    if given["hexgen_time_scale"] is not None:
        check_time_scale(profile, given["hexgen_time_scale"])
        fields["time_scale"] = given["hexgen_time_scale"]
    if given["hexgen_step_log"] is not None:
        fields["step_log"] = str(Path(given["hexgen_step_log"]).expanduser().resolve())
    return fields


def _on_or_off(flag: str, value: str | None, *, default: bool) -> bool:
    if value is None:
        return default
    if value not in ("on", "off"):
        raise ConfigError(f"{flag}={value}: must be on or off")
    return value == "on"


def _check_range(flag: str, value: str, kind: Any) -> None:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{flag}={value!r}: {error}") from error


def _existing(flag: str, value: str) -> Path:
    path = Path(value).expanduser().resolve()
    if not path.exists():
        raise ConfigError(f"{flag}={value}: no such file or folder")
    return path


def _default_worker_id(port: int) -> str:
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:50] or "worker"
    return f"{host}:{port}"
