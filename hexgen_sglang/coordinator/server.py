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
from collections.abc import Iterator

import uvicorn
import uvloop

from hexgen_sglang.coordinator.app import make_app
from hexgen_sglang.coordinator.config import LOOPBACK_HOSTS, CoordinatorFile
from hexgen_sglang.coordinator.service import Coordinator, link_end
from hexgen_sglang.core.errors import ConfigError

log = logging.getLogger(__name__)

# For clients of cancelled requests to read their error, and idle connections to be closed.
_GOODBYE_S = 5


class HttpServer(uvicorn.Server):
    """uvicorn around a coordinator's routes, on the configured address.

    Without its own signal handling: closing the door is not the first step of leaving.

    Attributes:
        port: the port it listens on, once `started`.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        config = coordinator.config
        super().__init__(
            uvicorn.Config(
                make_app(coordinator),
                host=config.host,
                port=config.port,
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=_GOODBYE_S,
            )
        )
        self.port = config.port

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        if self.started:
            self.port = self.servers[0].sockets[0].getsockname()[1]
            log.info("listening on http://%s:%d", self.config.host, self.port)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `_leave_on_signal`."""
        yield


def run(settings: CoordinatorFile) -> None:
    """Serve until a signal; returns after an orderly end.

    Raises:
        ConfigError: an address cannot be bound, or keys cannot be read.
    """
    config = settings.coordinator
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if config.host not in LOOPBACK_HOSTS:
        log.warning("HTTP on %s can be reached from other machines, without keys", config.host)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings))


async def _serve(settings: CoordinatorFile) -> None:
    config = settings.coordinator
    end = link_end(settings)
    try:
        coordinator = Coordinator(settings, end)
        server = HttpServer(coordinator)
        async with coordinator.running():
            leaving = asyncio.create_task(_leave_on_signal(coordinator, server))
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
