"""A TCP link between two of our processes that can be cut, silenced and delayed.

Runs in the event loop of the process that owns the drill; as a program of its own in a network
namespace. Bytes pass unchanged; what they mean is not known here.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import Coroutine
from enum import StrEnum
from typing import Any

_CHUNK_BYTES = 65_536


class LinkState(StrEnum):
    """What happens to bytes."""

    OPEN = "open"  # they pass
    CUT = "cut"  # connections are reset, new ones too
    SILENT = "silent"  # nothing passes, connections stay, as when a cable is pulled


class Forwarder:
    """Listens on one address and passes everything on to another, in both directions.

    Args:
        listen: host and port to listen on.
        target: host and port to connect to; may be changed for later connections.

    Attributes:
        delay_s: added to each piece of data, in each direction.
    """

    def __init__(self, listen: tuple[str, int], target: tuple[str, int]) -> None:
        self._listen = listen
        self.target = target
        self.delay_s = 0.0
        self._state = LinkState.OPEN
        self._passes = asyncio.Event()
        self._passes.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._listen[1]

    async def start(self) -> None:
        """Listen; returns once connections are taken."""
        host, port = self._listen
        self._server = await asyncio.start_server(self._connected, host, port)

    async def stop(self) -> None:
        """Break all connections and stop listening."""
        if self._server is not None:
            self._server.close()
        self.set(LinkState.CUT)
        await asyncio.gather(*self._tasks)

    def set(self, state: LinkState) -> None:
        """Open, cut or silence the link; of a silent one what was held back comes through."""
        self._state = state
        if state is LinkState.CUT:
            self._break()
        if state is LinkState.SILENT:
            self._passes.clear()
        else:
            self._passes.set()

    def _break(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await self._passes.wait()
            if self._state is LinkState.CUT:
                return
            with contextlib.suppress(OSError):
                there, onward = await asyncio.open_connection(*self.target)
                self._writers.add(onward)
                try:
                    await _first_to_end(self._pump(reader, onward), self._pump(there, writer))
                finally:
                    self._writers.discard(onward)
                    onward.transport.abort()
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass data on until one side is gone; a delay does not lower the throughput."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def take_in() -> None:
            while data := await reader.read(_CHUNK_BYTES):
                await waiting.put((loop.time() + self.delay_s, data))

        async def give_out() -> None:
            while True:
                due_s, data = await waiting.get()
                await asyncio.sleep(due_s - loop.time())
                await self._passes.wait()
                writer.write(data)
                await writer.drain()
                waiting.task_done()

        async def until_the_end() -> None:
            await take_in()
            await waiting.join()

        with contextlib.suppress(OSError):
            await _first_to_end(until_the_end(), give_out())


async def _first_to_end(*works: Coroutine[Any, Any, None]) -> None:
    """Run until one of the coroutines ends, and cancel the others."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


async def _serve(pairs: list[list[str]]) -> None:
    forwarders = [Forwarder(_address(here), _address(there)) for here, there in pairs]
    for forwarder in forwarders:
        await forwarder.start()
    await asyncio.Event().wait()


def main() -> None:
    """Forward until a signal: `python -m hexgen_sglang.bench.drills.forwarder --pair A B`."""
    parser = argparse.ArgumentParser(description="Forward TCP connections.")
    parser.add_argument(
        "--pair", nargs=2, action="append", metavar=("HOST:PORT", "HOST:PORT"), required=True
    )
    asyncio.run(_serve(parser.parse_args().pair))


if __name__ == "__main__":
    main()
