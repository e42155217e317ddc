"""The machine and the versions that a result was made with, and how busy the machine was."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from hexgen_sglang import __version__

_PACKAGES = ("sglang", "sglang-router", "torch", "numpy", "aiohttp", "uvicorn")
_STAT = Path("/proc/stat")


def versions() -> dict[str, str]:
    """Versions of ourselves and of the packages that decide the outcome; absent ones left out."""
    found = {"hexgen-sglang": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Cores, memory in bytes and operating system."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.machine()}",
    }


def cpu_ticks() -> tuple[int, int] | None:
    """(busy, all) clock ticks of all cores since boot; None where the kernel does not tell."""
    if not _STAT.exists():
        return None
    # "cpu user nice system idle iowait irq softirq steal ..."
    fields = [int(field) for field in _STAT.read_text().splitlines()[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return sum(fields) - idle, sum(fields)


def busy_frac(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    """Share of all cores in use between two readings of `cpu_ticks`."""
    if before is None or after is None or after[1] == before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])
