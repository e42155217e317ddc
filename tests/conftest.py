"""Fixtures for every kind of test."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass
class Descendants:
    """Finds every process that descends from one started with `env`, whoever its parent is now.

    Processes inherit the environment, and /proc tells it, also of those that changed their
    session or lost their parent.
    """

    mark: str = field(default_factory=lambda: f"HEXGEN_TEST_MARK={uuid.uuid4().hex}")

    @property
    def env(self) -> dict[str, str]:
        name, _, value = self.mark.partition("=")
        return {**os.environ, name: value}

    def alive(self) -> dict[int, str]:
        """Ids and commands; zombies do not count."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(folder.name)] = command
            except OSError:
                continue
        return {pid: command for pid, command in found.items() if command}

    def left_after(self, seconds: float) -> dict[int, str]:
        """What still lives after that time; returns at once when nothing does."""
        end_s = time.monotonic() + seconds
        while (alive := self.alive()) and time.monotonic() < end_s:
            time.sleep(0.1)
        return alive


@pytest.fixture
def descendants() -> Iterator[Descendants]:
    """Marks processes, to assert that none of them is left; ends those that are."""
    marked = Descendants()
    yield marked
    for pid in marked.alive():
        os.kill(pid, 9)
