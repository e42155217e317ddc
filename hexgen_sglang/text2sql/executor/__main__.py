"""Serves statements for one dialect: a JSON object a line on stdin, one a line on stdout."""

from __future__ import annotations

import importlib
import json
import resource
import signal
import sys
from typing import Any

# Beyond the statement's own limit: the alarm ends the process even inside one long step.
_ALARM_GRACE_S = 0.5
_MAX_FILE_BYTES = 1 << 20
_ENGINES = {
    "sqlite": "hexgen_sglang.text2sql.executor.sqlite",
    "duckdb": "hexgen_sglang.text2sql.executor.duckdb",
    "postgresql": "hexgen_sglang.text2sql.executor.postgresql",
    "mysql": "hexgen_sglang.text2sql.executor.mysql",
}
# Address space on top of four times the engine's own limit; libraries alone take this much.
_BASE_BYTES = {"sqlite": 1 << 29, "duckdb": 3 << 30, "postgresql": 1 << 30, "mysql": 1 << 30}


def main(dialect: str) -> None:
    """Say that the process is up, then serve requests until stdin ends."""
    engine = importlib.import_module(_ENGINES[dialect])
    _reply({})
    for line in sys.stdin:
        request = json.loads(line)
        _confine(_BASE_BYTES[dialect] + 4 * request["memory_bytes"])
        signal.setitimer(signal.ITIMER_REAL, request["time_s"] + _ALARM_GRACE_S)
        answer = engine.run(request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _reply(answer)


def _reply(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _confine(address_bytes: int) -> None:
    """Bound what this process may allocate and write, whatever the engine does."""
    for kind, value in (
        (resource.RLIMIT_AS, address_bytes),
        (resource.RLIMIT_FSIZE, _MAX_FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, most = resource.getrlimit(kind)
        resource.setrlimit(
            kind, (value if most == resource.RLIM_INFINITY else min(value, most), most)
        )


if __name__ == "__main__":
    main(sys.argv[1])
