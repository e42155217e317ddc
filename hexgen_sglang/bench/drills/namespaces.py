"""A network namespace behind a link that loses and delays packets.

Runs in the process that owns the drill, as root, on Linux. Two TUN devices, one of them moved to
the namespace, and between them this process, which drops and delays real IP packets; so it needs
no `tc netem`, which many kernels lack. A second, clean link (veth) is for callers.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import shutil
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from hexgen_sglang.cluster.process import ChildProcess
from hexgen_sglang.core.errors import ProcessError

# <linux/if_tun.h>
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_MTU = 1_400


def why_not_here() -> str:
    """Why this machine offers no such link; "" when it does."""
    if not Path("/dev/net/tun").exists():
        return "no /dev/net/tun"
    if shutil.which("ip") is None:
        return "no program `ip`"
    return "" if os.geteuid() == 0 else "not root"


class LossyNamespace:
    """A namespace, its two links, and what runs inside. Use with `async with`.

    Args:
        loss: share of the packets that the lossy link drops, in each direction.
        delay_s: that it adds to each packet, in each direction.
        seed: of the losses.

    Attributes:
        name: of the namespace.
        num_lost, num_passed: packets.
    """

    def __init__(self, loss: float, delay_s: float, seed: int) -> None:
        self._loss, self._delay_s = loss, delay_s
        self._dice = random.Random(seed)
        tag = f"{os.getpid() % 100_000}"
        self.name = f"hxdrill{tag}"
        self._devices = {end: f"hxd{end}{tag}" for end in ("r", "n", "c", "d")}
        third = os.getpid() % 250 + 1
        self._lossy, self._clean = f"10.231.{third}", f"10.232.{third}"
        self._ends: list[int] = []
        self.num_lost = self.num_passed = 0

    @property
    def outer_address(self) -> str:
        """Ours on the lossy link."""
        return f"{self._lossy}.1"

    @property
    def inner_address(self) -> str:
        """The namespace's on the lossy link."""
        return f"{self._lossy}.2"

    @property
    def clean_address(self) -> str:
        """The namespace's on the clean link."""
        return f"{self._clean}.2"

    def inside(self, process: ChildProcess) -> ChildProcess:
        """The same process, to be started inside."""
        command = ["ip", "netns", "exec", self.name, *process.command]
        return ChildProcess(process.name, command, env=process.env, log_path=process.log_path)

    def forwarder(self, pairs: Sequence[tuple[str, str]], log_path: Path) -> ChildProcess:
        """A process inside that forwards TCP, from the first address of a pair to the second."""
        command = [sys.executable, "-P", "-m", "hexgen_sglang.bench.drills.forwarder"]
        for here, there in pairs:
            command += ["--pair", here, there]
        plain = ChildProcess("forwarder", command, env=os.environ, log_path=log_path)
        return self.inside(plain)

    async def __aenter__(self) -> LossyNamespace:
        try:
            await self._make()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for end in self._ends:
            loop.remove_reader(end)
            os.close(end)  # the device goes with it
        self._ends.clear()
        await _run(["ip", "link", "del", self._devices["c"]], must=False)
        await _run(["ip", "netns", "del", self.name], must=False)

    async def _make(self) -> None:
        outer, inner = self._devices["r"], self._devices["n"]
        near, far = self._devices["c"], self._devices["d"]
        await _run(["ip", "netns", "add", self.name])
        self._ends = [_tun(outer), _tun(inner)]
        await _run(["ip", "link", "set", inner, "netns", self.name])
        await _run(["ip", "link", "add", near, "type", "veth", "peer", "name", far])
        await _run(["ip", "link", "set", far, "netns", self.name])
        within = ["ip", "-n", self.name]
        for prefix, device, address in (
            (["ip"], outer, self.outer_address),
            (within, inner, self.inner_address),
            (["ip"], near, f"{self._clean}.1"),
            (within, far, self.clean_address),
        ):
            await _run([*prefix, "addr", "add", f"{address}/30", "dev", device])
            await _run([*prefix, "link", "set", device, "mtu", str(_MTU), "up"])
        await _run([*within, "link", "set", "lo", "up"])
        loop = asyncio.get_running_loop()
        first, second = self._ends
        loop.add_reader(first, self._carry, first, second)
        loop.add_reader(second, self._carry, second, first)

    def _carry(self, source: int, target: int) -> None:
        """Take one packet, and lose it or deliver it later."""
        try:
            packet = os.read(source, 65_536)
        except BlockingIOError:
            return
        if self._dice.random() < self._loss:
            self.num_lost += 1
            return
        self.num_passed += 1
        asyncio.get_running_loop().call_later(self._delay_s, self._deliver, target, packet)

    def _deliver(self, target: int, packet: bytes) -> None:
        if target in self._ends:
            try:
                os.write(target, packet)
            except OSError:  # the queue is full, or the device down: lost, as on any link
                self.num_lost += 1


def _tun(name: str) -> int:
    """A TUN device without packet headers, read and written through the descriptor."""
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    request = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI)
    fcntl.ioctl(end, _TUNSETIFF, request)
    return end


async def _run(command: list[str], *, must: bool = True) -> None:
    """Run a program to its end.

    Raises:
        ProcessError: it failed, and `must` not.
    """
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, told = await process.communicate()
    if must and process.returncode:
        raise ProcessError(f"{' '.join(command)}: {told.decode('utf-8', 'replace').strip()}")
