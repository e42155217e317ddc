"""Runs model-written SQL on a database in processes of its own that can be killed.

Lives in the agent's process. What a statement may do is decided in `executor`; here: the
first look at the text, the processes, and the time limit that nothing escapes.
"""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hexgen_sglang.core.errors import ConfigError, WorkerUnavailableError
from hexgen_sglang.text2sql import executor, statement
from hexgen_sglang.text2sql.closing import Closing
from hexgen_sglang.text2sql.execution import Execution, SqlLimits, SqlOutcome
from hexgen_sglang.text2sql.source import Dialect, Source, source_of

# The process ends a statement itself; this is for one that cannot (it is stopped by an alarm
# first) on a machine with little time to spare.
_KILL_GRACE_S = 5.0
_START_S = 60.0
_READ_BYTES = 1 << 16


class Sandbox(Closing):
    """Executes statements on one database; safe to use from many threads.

    Args:
        db: a file, or a server's URL.
        limits: bounds of each execution.
        num_processes: statements executed at the same time, 1 to 16; others wait.

    Raises:
        ConfigError: no such database, or a setting out of range.
    """

    def __init__(
        self, db: str | Path | Source, limits: SqlLimits | None = None, num_processes: int = 2
    ) -> None:
        if not 1 <= num_processes <= 16:
            raise ConfigError(f"num_processes={num_processes}: must be 1 to 16")
        self.source = source_of(db)
        self.limits = limits or SqlLimits()
        self._idle: queue.LifoQueue[SandboxProcess] = queue.LifoQueue()
        for _ in range(num_processes):
            self._idle.put(SandboxProcess(self.source.dialect))
        self._num_processes = num_processes
        self._closed = False

    def run(self, sql: str) -> Execution:
        """Execute one statement. Whatever it does, the answer is a value, in bounded time.

        Raises:
            WorkerUnavailableError: the sandbox is closed, or no process could be started.
        """
        if self._closed:
            raise WorkerUnavailableError("the sandbox is closed")
        reason = statement.refusal(sql, self.limits.max_sql_chars, self.source.dialect)
        if reason is not None:
            return Execution(sql=sql, outcome=SqlOutcome.REFUSED, message=reason)
        process = self._idle.get()
        started_s = time.monotonic()
        try:
            answer = process.ask(
                {"location": self.source.location, "sql": sql, **asdict(self.limits)},
                self.limits.time_s + _KILL_GRACE_S,
            )
        finally:
            self._idle.put(process)
        if answer is None:
            return Execution(
                sql=sql,
                outcome=SqlOutcome.LIMIT,
                message=f"took longer than {self.limits.time_s:g} s, or too much memory",
                elapsed_s=time.monotonic() - started_s,
            )
        return Execution(
            sql=sql,
            outcome=SqlOutcome(answer["outcome"]),
            columns=tuple(answer["columns"]),
            rows=tuple(tuple(row) for row in answer["rows"]),
            truncated=answer["truncated"],
            message=answer["message"],
            elapsed_s=answer["elapsed_s"],
        )

    def close(self) -> None:
        """End the processes; running statements are waited for, which takes bounded time."""
        if self._closed:
            return
        self._closed = True
        for _ in range(self._num_processes):
            self._idle.get().stop()


class SandboxProcess:
    """One child process for one dialect, started when first needed and again after a kill."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._child: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        """The child's answer, or None when it died or was killed after `timeout_s`."""
        child = self._started()
        line = _exchange(child, json.dumps(request).encode() + b"\n", timeout_s)
        if line is None:
            self.stop()
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """Kill the child, if there is one, and wait for its end."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is not None:
            self.stop()
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-m", executor.__name__, self._dialect.value],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                close_fds=True,
                env={"PATH": os.environ.get("PATH", "")},
            )
            if _exchange(self._child, b"", _START_S) is None:
                self.stop()
                raise WorkerUnavailableError(f"the SQL process did not start in {_START_S:g} s")
        return self._child


def _exchange(child: subprocess.Popen[bytes], request: bytes, timeout_s: float) -> bytes | None:
    """Write a line, read a line; None when the child ends or `timeout_s` is over."""
    assert child.stdin is not None
    assert child.stdout is not None
    until_s = time.monotonic() + timeout_s
    try:
        child.stdin.write(request)
    except BrokenPipeError:
        return None
    received = bytearray()
    while not received.endswith(b"\n"):
        left_s = until_s - time.monotonic()
        if left_s <= 0 or not select.select([child.stdout], [], [], left_s)[0]:
            return None
        part = os.read(child.stdout.fileno(), _READ_BYTES)
        if not part:
            return None
        received += part
    return bytes(received)
