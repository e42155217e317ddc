"""Which link endpoints are allowed: tcp and ipc, and keys for everything off loopback.

Used by both ends before a socket is opened. Looks no name up: only literal loopback addresses
and `localhost` count as loopback.
"""

from __future__ import annotations

import ipaddress
import re

from hexgen_sglang.core.errors import ConfigError

_TCP = re.compile(r"tcp://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._*-]+):(?P<port>\d{1,5}|\*)\Z")
_IPC = re.compile(r"ipc://[^\x00-\x1f]{1,107}\Z")


def is_loopback(endpoint: str) -> bool:
    """True when only this machine can reach the endpoint: ipc, localhost, 127/8 or [::1].

    Raises:
        ConfigError: not a tcp or ipc endpoint.
    """
    if _IPC.match(endpoint):
        return True
    host = _split_tcp(endpoint)[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, or the wildcard
        return False


def checked_endpoint(endpoint: str, *, has_keys: bool, bind: bool) -> str:
    """The endpoint as the socket takes it, with `localhost` made 127.0.0.1.

    Args:
        endpoint: `tcp://host:port` or `ipc://path`; port 0 or `*` (any free port) and host `*`
            (every interface) only when `bind`.
        has_keys: CURVE keys are given.
        bind: for the coordinator's end; else for a worker's.

    Raises:
        ConfigError: malformed, or off loopback without keys.
    """
    if not is_loopback(endpoint) and not has_keys:
        raise ConfigError(
            f"endpoint {endpoint!r} can be reached from other machines: CURVE keys are required "
            "(make them with `hexgen-sglang keys --out DIR`), or use tcp://127.0.0.1:PORT"
        )
    if endpoint.startswith("ipc://"):
        return endpoint
    host, port = _split_tcp(endpoint)
    if not bind and (host in {"*", "0.0.0.0", "[::]"} or port in {"*", "0"}):
        raise ConfigError(f"endpoint {endpoint!r}: a worker needs a definite host and port")
    if host == "localhost":
        host = "127.0.0.1"
    return f"tcp://{host}:{'*' if port == '0' else port}"


def _split_tcp(endpoint: str) -> tuple[str, str]:
    match = _TCP.match(endpoint)
    if match is None or (match["port"] != "*" and int(match["port"]) > 65535):
        raise ConfigError(
            f"endpoint {endpoint!r}: must be tcp://HOST:PORT (port up to 65535) or ipc://PATH"
        )
    return match["host"], match["port"]
