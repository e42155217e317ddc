"""What the flags of one server say, and how its child processes learn it.

Made once in the process that parses the command line and passed on in one environment
variable. It holds checked values only; where they come from is `flags`.
"""

from __future__ import annotations

import os
from typing import Annotated, Self

import msgspec
from msgspec import Meta, Struct

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.policies.patience import MOST_PATIENCE
from hexgen_sglang.protocol.tag import Name

ENVIRONMENT_VARIABLE = "HEXGEN_PLUGIN_CONFIG"

FilePath = Annotated[str, Meta(min_length=1, max_length=4096)]


class PluginConfig(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Settings of the plugin in one SGLang server. Without any of ours there is none.

    Attributes:
        ordering: our ordering policy of the waiting queue (--schedule-policy hexgen); None:
            the queue is ordered by SGLang's own policy.
        ordering_settings: keyword arguments of that policy.
        hold_prefixes: a request waits while a prefix that it needs is being computed; only with
            `ordering`.
        prefill_patience: how long a prompt may wait for decodes that it would stall, in prefills of
            its own; 0: not at all. Only with `ordering` and `coordinators`.
        coordinators: ZMQ endpoints to report to; none: no link, no socket.
        retained_share: of the KV memory, for prefixes kept between the stages of workflows; 0:
            none are kept. Only with `coordinators`.
        prewarm_share: of it, for prefixes computed ahead and not used yet; 0: none are. Likewise.
        worker_id: who this server is towards the coordinators; set when there are any.
        url: HTTP address under which the coordinators reach it; set when there are any.
        hardware: name of its accelerator; "": found out in the scheduler process.
        keys: folder with CURVE keys for a link off loopback.
        emulate: accelerator profile (absolute path); None: the forward pass is real.
        time_scale: emulated seconds in a real one; above 0. Only with `emulate`.
        step_log: folder for the log of emulated steps; None: none is written.
        shared_prefix: decode attention reads shared prefixes once (--attention-backend
            hexgen_shared_prefix).
    """

    ordering: Name | None = None
    ordering_settings: dict[Name, float] = {}
    hold_prefixes: bool = True
    prefill_patience: Annotated[float, Meta(ge=0, le=MOST_PATIENCE)] = 0.0
    coordinators: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=512)], ...], Meta(max_length=16)
    ] = ()
    retained_share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    prewarm_share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    worker_id: Name | None = None
    url: Annotated[str, Meta(max_length=512, pattern=r"^https?://")] | None = None
    hardware: Annotated[str, Meta(max_length=64)] = ""
    keys: FilePath | None = None
    emulate: FilePath | None = None
    time_scale: Annotated[float, Meta(gt=0, le=1_000)] = 1.0
    step_log: FilePath | None = None
    shared_prefix: bool = False

    def export(self) -> None:
        """Let the processes that this one starts find these settings."""
        os.environ[ENVIRONMENT_VARIABLE] = msgspec.json.encode(self).decode()

    @classmethod
    def from_environment(cls) -> Self | None:
        """The settings that the launching process exported, or None.

        Raises:
            ConfigError: the variable holds something else.
        """
        text = os.environ.get(ENVIRONMENT_VARIABLE)
        if text is None:
            return None
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{ENVIRONMENT_VARIABLE}={text[:200]!r}: {error}") from error


def forget_exported() -> None:
    """Remove settings that were exported by, or for, another server."""
    os.environ.pop(ENVIRONMENT_VARIABLE, None)
