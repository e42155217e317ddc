"""TLS, and what holds before there is a request: slow, long and too many connections."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from hexgen_sglang.core.errors import ConfigError

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]
WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A throw-away certificate for localhost, and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", f"/CN={name}"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return certificate, key


async def call(url: str, trusted: Path) -> int:
    """Status of GET /health from a client that trusts this certificate only."""
    context = ssl.create_default_context(cafile=str(trusted))
    connector = aiohttp.TCPConnector(ssl=context)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"{url.replace('http:', 'https:')}/health") as response,
    ):
        return response.status


async def test_https_with_a_certificate_that_can_be_renewed(
    tmp_path: Path, make_worker: MakeWorker, make_front: MakeFront
) -> None:
    first, key = make_certificate(tmp_path, "first")
    front = await make_front(await make_worker(), tls_cert=str(first), tls_key=str(key))
    assert await call(front.url, trusted=first) == 200
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await front.call("GET", "/health")  # no plain HTTP there

    second, other_key = make_certificate(tmp_path, "second")
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await call(front.url, trusted=second)
    trusted_before = tmp_path / "before.pem"
    trusted_before.write_bytes(first.read_bytes())
    first.write_text("no certificate")
    front.server.reload_certificate()
    assert await call(front.url, trusted=trusted_before) == 200  # what was read before goes on
    first.write_bytes(second.read_bytes())
    key.write_bytes(other_key.read_bytes())
    front.server.reload_certificate()
    assert await call(front.url, trusted=second) == 200


async def test_certificates_that_cannot_be_used_are_named_at_the_start(
    tmp_path: Path, make_front: MakeFront
) -> None:
    certificate, key = make_certificate(tmp_path, "one")
    _, other_key = make_certificate(tmp_path, "two")
    nothing = tmp_path / "nothing.pem"
    for row in ((nothing, key), (certificate, other_key), (key, key)):
        with pytest.raises(ConfigError, match=r"tls_cert=.*tls_key="):
            await make_front(tls_cert=str(row[0]), tls_key=str(row[1]))
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="mode 0644 lets everybody"):
        await make_front(tls_cert=str(certificate), tls_key=str(key))


async def talk(url: str, *pieces: bytes) -> bytes:
    """Send the pieces one by one, and read until the other end closes the connection."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(60):
            return await reader.read()
    except ConnectionError:
        return b"reset"
    finally:
        writer.close()


HEAD = b"POST /generate HTTP/1.1\r\nhost: x\r\n"


async def test_endless_and_slow_headers_are_cut_off(make_front: MakeFront) -> None:
    front = await make_front(max_header_bytes=4_096, header_timeout_s=0.3)
    lines = [b"x-%d: %s\r\n" % (number, b"y" * 500) for number in range(20)]
    answer = await talk(front.url, HEAD, *lines)
    assert answer == b"reset" or answer.split(b" ")[1] in (b"431", b"400"), answer[:100]
    whole = HEAD + b"connection: close\r\ncontent-length: 0\r\n" + b"".join(lines) + b"\r\n"
    answer = await talk(front.url, whole)  # complete in one piece: for the application to see
    assert answer.split(b" ")[1] in (b"431", b"400"), answer[:100]
    assert (await talk(front.url, HEAD)).startswith(b"HTTP/1.1 408 ")
    assert await talk(front.url) == b""  # nothing was said: nothing is answered
    assert not front.server.server_state.connections


async def test_a_slow_body_is_cut_off_and_a_refused_one_may_still_be_sent(
    make_worker: MakeWorker, make_front: MakeFront
) -> None:
    front = await make_front(await make_worker(), body_timeout_s=0.3, max_header_bytes=1_024)
    head = HEAD + b"connection: close\r\ncontent-length: 100\r\n\r\n"
    answer = await talk(front.url, head, b'{"text":')
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"body_too_slow" in answer
    # The rest of a body comes after its refusal, and does not count as headers.
    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(connector=connector) as session:
        for _ in range(2):
            async with session.post(front.url + "/nowhere", data=b"x" * 50_000) as response:
                assert response.status == 404
            async with session.post(front.url + "/generate", json={"text": "x"}) as response:
                assert response.status == 200


async def test_one_connection_too_many_is_told_and_closed(
    make_front: MakeFront, wait_until: WaitUntil
) -> None:
    front = await make_front(max_connections=2)
    host, port = front.url.removeprefix("http://").split(":")
    held = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
    try:
        await wait_until(lambda: len(front.server.server_state.connections) == 2)
        assert (await talk(front.url)).startswith(b"HTTP/1.1 503 ")
    finally:
        for _, writer in held:
            writer.close()


async def test_redirects_of_a_worker_are_not_followed(
    make_worker: MakeWorker, make_front: MakeFront, wait_until: WaitUntil
) -> None:
    secret, worker = await make_worker(), await make_worker()
    front = await make_front(worker, max_attempts=1, health_interval_s=3_600)
    worker.redirects_to = secret.url
    status, _ = await front.generate()
    assert status == 307  # the worker's answer, for the client to see
    client = front.coordinator.parts.client
    client.abort(worker.url, "r1")
    await wait_until(lambda: "/abort_request" in worker.redirected)
    front.coordinator.parts.directory.wake(front.coordinator.parts.directory.get("w0"))
    await wait_until(lambda: "/v1/models" in worker.redirected)
    await client.close()  # waits for what is under way
    assert secret.seen == []
    assert secret.aborted == []
    assert secret.probed == 0
