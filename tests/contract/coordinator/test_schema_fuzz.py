"""Schemathesis, with its own idea of what an API owes its document, on a real coordinator.

Every route of `GET /openapi.json` gets right and wrong inputs: at the edges of each schema, at
random, and in sequences in which an answer's ids are asked about. Each status, content type and
body must be as documented, wrong input must be refused, right input must not, and keys must be
needed. HEXGEN_FUZZ_EXAMPLES=1000: so many at random for each route; --log-cli-level=INFO tells how
many inputs there were.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hexgen_sglang.coordinator.api_keys import Role, append_key, make_key

MakeWorker = Callable[..., Awaitable[Any]]
MakeFront = Callable[..., Awaitable[Any]]

log = logging.getLogger(__name__)

EXAMPLES = int(os.environ.get("HEXGEN_FUZZ_EXAMPLES", "25"))
HERE = Path(__file__).parent
TENANT = "acme"  # schemathesis_hooks.py knows its length


async def found_by_schemathesis(url: str, folder: Path, *more: str) -> tuple[str, dict[str, Any]]:
    """What it says, and its report."""
    report = folder / "report.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli"),
        *("--config-file", str(HERE / "schemathesis.toml"), "run", url + "/openapi.json"),
        *("--generation-deterministic", "--continue-on-failure", "--no-color"),
        *("--max-examples", str(EXAMPLES), "--report-json-path", str(report), *more),
        cwd=HERE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return said.decode(), json.loads(report.read_text())


@pytest.mark.timeout(300 + 20 * EXAMPLES)
@pytest.mark.parametrize("mode", ["direct, with keys", "peers, without keys"])
async def test_the_surface_is_as_its_document_says(
    mode: str,
    make_worker: MakeWorker,
    make_front: MakeFront,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings: dict[str, Any] = {"coordinator_id": "a"}
    more: tuple[str, ...] = ()
    if mode.startswith("direct"):
        key, row = make_key(TENANT, tuple(Role))
        append_key(tmp_path / "keys.toml", row)
        settings |= {"direct": True, "api_keys": str(tmp_path / "keys.toml")}
        more = ("--header", f"Authorization: Bearer {key}")
    else:
        peer = {"coordinator_id": "0", "url": "http://127.0.0.1:9"}  # "0": the first to be tried
        settings["tables"] = {"peers": [peer]}
    # Placements stay at a worker until somebody says that they ended: there must be room.
    workers = [await make_worker(max_running=100_000) for _ in range(3)]
    front = await make_front(*workers, queue_timeout_s=0.2, **settings)
    _, document = await front.call("GET", "/openapi.json")
    said, report = await found_by_schemathesis(front.url, tmp_path, *more)
    assert (report["exit_code"], report["complete"]) == (0, True), said
    num_operations = sum(map(len, document["paths"].values())) - 1  # not of the document itself
    assert report["operations"]["tested"] == num_operations
    assert report["test_cases"]["generated"] > 40 * num_operations
    broken = [row.getMessage() for row in caplog.records if row.levelno >= logging.ERROR]
    assert broken == []
    log.info("%s: %d inputs", mode, report["test_cases"]["generated"])
