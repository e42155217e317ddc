"""The coordinator's process: uvicorn on uvloop around a `Coordinator`, until a signal.

The first SIGTERM or SIGINT drains: new requests get 503, those in flight may end. A second
one, or the drain timeout, cancels what is left. Both leave with status 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import uvicorn
import uvloop
from starlette.routing import BaseRoute

from hexgen_sglang.coordinator.app import make_app
from hexgen_sglang.coordinator.config import CoordinatorConfig, CoordinatorFile, is_loopback_host
from hexgen_sglang.coordinator.http_protocol import bounded_protocol
from hexgen_sglang.coordinator.service import Coordinator, link_end
from hexgen_sglang.core.errors import ConfigError

log = logging.getLogger(__name__)

# For clients of cancelled requests to read their error, and idle connections to be closed.
_GOODBYE_S = 5

# Routes that are not the coordinator's own, open as long as it runs.
Extension = Callable[[Coordinator], contextlib.AbstractAsyncContextManager[Sequence[BaseRoute]]]


@contextlib.asynccontextmanager
async def nothing_more(coordinator: Coordinator) -> AsyncIterator[Sequence[BaseRoute]]:
    """The extension without routes."""
    yield ()


def together(*extensions: Extension) -> Extension:
    """The routes of several extensions."""

    @contextlib.asynccontextmanager
    async def opened(coordinator: Coordinator) -> AsyncIterator[Sequence[BaseRoute]]:
        async with contextlib.AsyncExitStack() as stack:
            routes = [await stack.enter_async_context(one(coordinator)) for one in extensions]
            yield [route for some in routes for route in some]

    return opened


class HttpServer(uvicorn.Server):
    """uvicorn around a coordinator's routes, on the configured address.

    Without its own signal handling: closing the door is not the first step of leaving.

    Args:
        more_routes: served beside the coordinator's own.

    Attributes:
        port: the port it listens on, once `started`.
    """

    def __init__(self, coordinator: Coordinator, more_routes: Sequence[BaseRoute] = ()) -> None:
        config = coordinator.config
        super().__init__(
            uvicorn.Config(
                make_app(coordinator, more_routes),
                host=config.host,
                port=config.port,
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=_GOODBYE_S,
                ws="none",
                proxy_headers=False,
                http=bounded_protocol(
                    max_connections=config.max_connections,
                    max_header_bytes=config.max_header_bytes,
                    header_timeout_s=config.header_timeout_s,
                ),
                h11_max_incomplete_event_size=2 * config.max_header_bytes,
                ssl_certfile=config.tls_cert,
                ssl_keyfile=config.tls_key,
            )
        )
        _check_tls(config)
        self.port = config.port

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        if self.started:
            self.port = self.servers[0].sockets[0].getsockname()[1]
            scheme = "https" if self.config.is_ssl else "http"
            log.info("listening on %s://%s:%d", scheme, self.config.host, self.port)

    def reload_certificate(self) -> None:
        """Use what the certificate files hold now for new connections; old ones go on."""
        config = self.config
        if config.ssl is None or config.ssl_certfile is None:
            return
        try:
            config.ssl.load_cert_chain(config.ssl_certfile, config.ssl_keyfile)
        except (OSError, ssl.SSLError) as error:
            log.error("tls_cert, tls_key: %s; the certificate read before stays in use", error)
            return
        log.info("certificate read again")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `_leave_on_signal`."""
        yield


def run(settings: CoordinatorFile, extension: Extension = nothing_more) -> None:
    """Serve until a signal, with an extension's routes; returns after an orderly end.

    Raises:
        ConfigError: an address cannot be bound, or keys or certificate cannot be read.
    """
    config = settings.coordinator
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if not is_loopback_host(config.host):
        if config.allow_anonymous:
            log.warning("host %s: everybody who reaches it may do everything", config.host)
        if config.tls_cert is None:
            log.warning("host %s: prompts and keys travel unencrypted without tls", config.host)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, extension))


async def _serve(settings: CoordinatorFile, extension: Extension) -> None:
    config = settings.coordinator
    end = link_end(settings)
    try:
        coordinator = Coordinator(settings, end)
        async with coordinator.running(), extension(coordinator) as routes:
            server = HttpServer(coordinator, routes)
            leaving = asyncio.create_task(_leave_on_signal(coordinator, server))
            _reload_on_hangup(coordinator, server)
            try:
                await server.serve()
            except SystemExit as error:  # uvicorn's answer to an address in use
                raise ConfigError(
                    f"host={config.host!r}, port={config.port}: cannot listen there"
                ) from error
            finally:
                leaving.cancel()
    finally:
        if end is not None:
            end.close()
    log.info("coordinator stopped")


def _check_tls(config: CoordinatorConfig) -> None:
    """Refuse what uvicorn would fail on with a traceback.

    Raises:
        ConfigError: a file cannot be read, is no PEM, does not belong to the other, or the key
            may be read by everybody.
    """
    if config.tls_cert is None or config.tls_key is None:
        return
    try:
        mode = stat.S_IMODE(Path(config.tls_key).stat().st_mode)
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            config.tls_cert, config.tls_key, password=_no_password
        )
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"tls_cert={config.tls_cert!r}, tls_key={config.tls_key!r}: {error}"
        ) from error
    if mode & stat.S_IRWXO:
        raise ConfigError(f"tls_key={config.tls_key!r}: mode {mode:04o} lets everybody; use 0600")


def _no_password() -> str:
    """Instead of OpenSSL's question at the terminal.

    Raises:
        ConfigError: always.
    """
    raise ConfigError("tls_key: must not be encrypted")


def _reload_on_hangup(coordinator: Coordinator, server: HttpServer) -> None:
    """On SIGHUP read keys and certificate again; without either, SIGHUP ends us as usual."""
    config = coordinator.config
    if config.api_keys is None and config.tls_cert is None:
        return
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    def hang_up() -> None:
        server.reload_certificate()
        task = loop.create_task(coordinator.reload_keys(force=True))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, hang_up)


async def _leave_on_signal(coordinator: Coordinator, server: uvicorn.Server) -> None:
    """Wait for the first signal, drain, let the server stop."""
    first, second = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (second if first.is_set() else first).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    await first.wait()
    timeout_s = coordinator.config.drain_timeout_s
    log.info("draining: %d requests, at most %g s", len(coordinator.exchanges.live), timeout_s)
    drained = asyncio.create_task(coordinator.exchanges.drain(timeout_s))
    hurried = asyncio.create_task(second.wait())
    await asyncio.wait({drained, hurried}, return_when=asyncio.FIRST_COMPLETED)
    drained.cancel()
    hurried.cancel()
    coordinator.exchanges.abandon()
    server.should_exit = True
