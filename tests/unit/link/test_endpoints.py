"""Which addresses are allowed, and which of them without keys."""

from __future__ import annotations

import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.transport.endpoints import checked_endpoint, is_loopback


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://localhost:5555",
        "tcp://127.0.0.1:5555",
        "tcp://127.255.255.254:1",
        "tcp://[::1]:5555",
        "ipc:///run/hexgen/link",
    ],
)
def test_loopback_needs_no_keys(endpoint):
    assert is_loopback(endpoint)
    checked_endpoint(endpoint, has_keys=False, bind=False)
    checked_endpoint(endpoint, has_keys=False, bind=True)


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://*:5555",
        "tcp://0.0.0.0:5555",
        "tcp://[::]:5555",
        "tcp://128.0.0.1:5555",
        "tcp://10.1.2.3:5555",
        "tcp://[::ffff:10.0.0.1]:5555",
        "tcp://localhost.example:5555",
        "tcp://127.0.0.1.example:5555",
        "tcp://gpu-node-1:5555",
        "tcp://eth0:5555",
        "tcp://127.1:5555",
        "tcp://0177.0.0.1:5555",
    ],
)
def test_everything_else_does(endpoint):
    assert not is_loopback(endpoint)
    with pytest.raises(ConfigError, match="CURVE keys are required") as caught:
        checked_endpoint(endpoint, has_keys=False, bind=True)
    assert endpoint in str(caught.value)
    assert checked_endpoint(endpoint, has_keys=True, bind=True) == endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "127.0.0.1:5555",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:5555\n",
        "tcp://127.0.0.1:5555;tcp://*:5556",
        "tcp://a b:5",
        "inproc://here",
        "pgm://eth0;239.0.0.1:5555",
        "http://127.0.0.1:5555",
        "ipc://",
        "ipc://" + "x" * 108,
    ],
)
def test_malformed_endpoints_are_named(endpoint):
    with pytest.raises(ConfigError, match=r"must be tcp://HOST:PORT") as caught:
        checked_endpoint(endpoint, has_keys=True, bind=True)
    assert repr(endpoint) in str(caught.value)


@pytest.mark.parametrize("endpoint", ["tcp://*:5555", "tcp://0.0.0.0:5", "tcp://127.0.0.1:0"])
def test_a_worker_needs_a_definite_address(endpoint):
    with pytest.raises(ConfigError, match="definite host and port"):
        checked_endpoint(endpoint, has_keys=True, bind=False)


def test_what_zmq_itself_does_not_take_is_translated():
    assert checked_endpoint("tcp://localhost:0", has_keys=False, bind=True) == "tcp://127.0.0.1:*"
