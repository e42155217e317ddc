"""Under which address another machine reaches this server.

Runs at launch. `--host` says where the server listens, which is not always an address that
anybody can connect to.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.transport.endpoints import is_loopback

_WILDCARDS = {"", "0.0.0.0", "::", "[::]"}


def reachable_url(host: str | None, port: int, tls: bool, *, endpoint: str) -> str:
    """`http(s)://host:port` of a server that listens on `host`, as the coordinator sees it.

    `endpoint` is the coordinator's, checked. A wildcard becomes this machine's address on the
    way there; no packet is sent to find it.

    Raises:
        ConfigError: the server listens on loopback only while the coordinator is elsewhere, or
            no way to the coordinator is known.
    """
    coordinator_is_local = is_loopback(endpoint)
    coordinator_host = urlsplit(endpoint).hostname or ""
    if host is None or host in _WILDCARDS:
        host = "127.0.0.1" if coordinator_is_local else _address_towards(coordinator_host)
    elif not coordinator_is_local and _is_loopback_host(host):
        raise ConfigError(
            f"--host={host}: only this machine reaches it, but the coordinator is on "
            f"{coordinator_host}; must be an address of the network or 0.0.0.0, or say "
            "--hexgen-advertise-url"
        )
    bare = host.strip("[]")
    shown = f"[{bare}]" if ":" in bare else bare
    return f"{'https' if tls else 'http'}://{shown}:{port}"


def _is_loopback_host(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _address_towards(host: str) -> str:
    """Address of this machine on the route to `host`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, 9, type=socket.SOCK_DGRAM, proto=socket.IPPROTO_UDP
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # chooses the route; UDP sends nothing here
            return str(probe.getsockname()[0])
    except (OSError, UnicodeError) as error:  # UnicodeError: no possible host name
        raise ConfigError(
            f"--hexgen-coordinator: no route from this machine to {host} ({error}), so its own "
            "address is unknown; say --hexgen-advertise-url"
        ) from error
