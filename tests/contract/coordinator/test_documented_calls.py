"""Calls of a coordinator as the documentation shows them, on a real coordinator."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

FENCE_MARK = "run: coordinator"
DOCUMENTED_URL = "http://127.0.0.1:8000"

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]


async def test_a_block_runs(fence: Any, make_worker: MakeWorker, make_front: MakeFront) -> None:
    """Workers have the ids that the pages use."""
    rows = [{"worker_id": f"worker-{number}"} for number in range(2)]
    front = await make_front(await make_worker(), await make_worker(), rows=rows)
    assert DOCUMENTED_URL in fence.text
    text = fence.text.replace(DOCUMENTED_URL, front.url)
    # The tool looks at its default address where none is stated.
    text = text.replace("hexgen-sglang explain ", f"hexgen-sglang explain --url {front.url} ")
    if fence.language == "python":
        command = [sys.executable, "-c", text]
    else:
        command = ["bash", "-euo", "pipefail", "-c", text]
    binaries = str(Path(sys.executable).parent)
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
