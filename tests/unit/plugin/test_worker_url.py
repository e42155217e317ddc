"""The address that a worker tells the coordinator."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.plugin.worker_url import reachable_url

HERE = "tcp://127.0.0.1:5555"
AWAY = "tcp://192.0.2.7:5555"  # a documentation address: routed nowhere, asked by no packet


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://127.0.0.1:8000"),
        (None, "http://127.0.0.1:8000"),
        ("gpu-3", "http://gpu-3:8000"),
        ("::1", "http://[::1]:8000"),
    ],
)
def test_with_a_coordinator_on_this_machine(host: str | None, expected: str) -> None:
    assert reachable_url(host, 8000, False, endpoint=HERE) == expected


def test_a_certificate_makes_it_https() -> None:
    assert reachable_url("gpu-3", 8000, True, endpoint=AWAY) == "https://gpu-3:8000"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_is_no_address_for_a_coordinator_elsewhere(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"--host={host}: .*0\.0\.0\.0.*--hexgen-advertise-url"):
        reachable_url(host, 8000, False, endpoint=AWAY)


def test_a_wildcard_becomes_an_address_of_this_machine_or_asks_for_one() -> None:
    try:
        url = reachable_url("0.0.0.0", 8000, False, endpoint=AWAY)
    except ConfigError as refused:  # a machine without any route
        url = str(refused)
    if url.startswith("http"):
        host = urlsplit(url).hostname
        assert host is not None
        assert not ipaddress.ip_address(host).is_unspecified
    else:
        assert "--hexgen-advertise-url" in url


def test_an_impossible_coordinator_name_is_an_error() -> None:
    endpoint = f"tcp://{'x' * 64}.net:5555"
    with pytest.raises(ConfigError, match=r"no route from this machine to x.*advertise-url"):
        reachable_url("0.0.0.0", 8000, False, endpoint=endpoint)
