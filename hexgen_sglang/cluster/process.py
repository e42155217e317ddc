"""A supervised child process: own session, log file, readiness, an end that leaves nothing.

Runs in the process that owns the children. Knows nothing of SGLang, HTTP or the coordinator;
`cluster.worker` and `cluster.coordinator` say what to start and when it counts as ready.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from hexgen_sglang.cluster import guard
from hexgen_sglang.core.errors import ProcessError

Probe = Callable[[], bool]
# name of the child, seconds since the wait began, last telling line of its log
Progress = Callable[[str, float, str], None]

TERM_GRACE_S = 15.0  # SGLang looks at its SIGTERM flag every 5 s
LOG_TAIL_LINES = 25
_LOG_TAIL_BYTES = 64 * 1024


class ChildProcess:
    """One child as leader of its own session, so that Ctrl-C in a terminal does not reach it.

    Not started by the constructor. Ended by `stop`, by leaving the `with` block, or, when the
    owner is killed, by the guard process: its whole group, sub-processes included. Use from
    one thread at a time.

    Attributes:
        name: for messages, e.g. "worker-0".
        command: program and arguments; the program is found on `env`'s PATH.
        env: the child's whole environment.
        log_path: stdout and stderr are appended here; its folder is made.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str], log_path: Path
    ) -> None:
        self.name = name
        self.command = tuple(command)
        self.env = dict(env)
        self.log_path = log_path
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the child; returns at once.

        Raises:
            ProcessError: it is running already, or the program cannot be started.
        """
        if self.is_running():
            raise ProcessError(f"{self.name}: is running already, process {self.pid}")
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            try:
                self._popen = subprocess.Popen(
                    self.command,
                    env=self.env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise ProcessError(
                    f"{self.name}: cannot start {self.command[0]}: {error}"
                ) from error
        _guard.watch(self._popen.pid)

    @property
    def pid(self) -> int:
        """Process id, also the id of its group and session; it stays after the end.

        Raises:
            ProcessError: never started.
        """
        if self._popen is None:
            raise ProcessError(f"{self.name}: was not started")
        return self._popen.pid

    def is_running(self) -> bool:
        """Whether the child itself lives (its sub-processes may live on: see `members`)."""
        return self._popen is not None and self._popen.poll() is None

    def exit_code(self) -> int | None:
        """The child's exit status, negative for a signal; None before its end."""
        return None if self._popen is None else self._popen.poll()

    def members(self) -> list[int]:
        """Ids of the living processes of the child's group, itself included."""
        if self._popen is None:
            return []
        self._popen.poll()
        return guard.group_members(self._popen.pid)

    def log_tail(self, num_lines: int = LOG_TAIL_LINES) -> str:
        """The last lines of the log; "" when there is none."""
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - _LOG_TAIL_BYTES))
            lines = log.read().decode("utf-8", "replace").splitlines()
        return "\n".join(lines[-num_lines:])

    def failure(self, what: str) -> ProcessError:
        """An error that says what went wrong with the child and quotes the end of its log."""
        return ProcessError(
            f"{self.name}: {what}; log {self.log_path} ends with:\n{self.log_tail()}"
        )

    def stop(self, grace_s: float = TERM_GRACE_S) -> None:
        """SIGTERM, wait up to `grace_s` seconds, SIGKILL what is left of the group.

        Stopping one that has ended, or was never started, is no error.

        Raises:
            ProcessError: something survived SIGKILL.
        """
        stop_all([self], grace_s)

    def kill(self) -> None:
        """SIGKILL the whole group at once, as a crash of the machine would."""
        if self._popen is not None:
            _raise_if_left([self], guard.kill_groups([self._popen.pid]))
            self._reap()

    def _reap(self) -> None:
        """Collect the exit status of a child whose group is gone."""
        if self._popen is not None:
            self._popen.wait()
            _guard.forget(self._popen.pid)

    def __enter__(self) -> ChildProcess:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def stop_all(children: Iterable[ChildProcess], grace_s: float = TERM_GRACE_S) -> None:
    """Stop many at once, so that their graces overlap.

    Raises:
        ProcessError: something survived SIGKILL.
    """
    started = [child for child in children if child._popen is not None]
    _raise_if_left(started, guard.end_groups([child.pid for child in started], grace_s))
    for child in started:
        child._reap()


def wait_ready(
    waits: Sequence[tuple[ChildProcess, Probe]],
    *,
    timeout_s: float,
    on_progress: Progress | None = None,
    poll_s: float = 0.5,
) -> None:
    """Wait until every child's probe is true; the children start side by side.

    A probe returns False while its child is not ready and does not raise for that.
    `on_progress` is called about once a second for each child that is still awaited.

    Raises:
        ProcessError: a child ended, or was not ready within `timeout_s` seconds; quotes the
            last lines of its log.
    """
    began_s = time.monotonic()
    told_s = began_s
    awaited = list(waits)
    while awaited:
        still = []
        for child, probe in awaited:
            if not child.is_running():
                raise child.failure(f"ended with status {child.exit_code()}")
            if not probe():
                still.append((child, probe))
        awaited = still
        now_s = time.monotonic()
        if awaited and now_s - began_s > timeout_s:
            raise awaited[0][0].failure(f"not ready after {timeout_s:.0f} s")
        if on_progress is not None and now_s - told_s >= 1.0:
            told_s = now_s
            for child, _ in awaited:
                on_progress(child.name, now_s - began_s, _last_telling_line(child))
        if awaited:
            time.sleep(poll_s)


def _last_telling_line(child: ChildProcess) -> str:
    """The newest line of the log that is no warning and no continuation; "" for none."""
    for line in reversed(child.log_tail().splitlines()):
        if line and not line[0].isspace() and "Warning" not in line:
            return line
    return ""


def _raise_if_left(children: Sequence[ChildProcess], left: Sequence[int]) -> None:
    """Say which processes could not be ended."""
    if left:
        names = ", ".join(child.name for child in children)
        raise ProcessError(f"{names}: processes {list(left)} survived SIGKILL")


class _Guard:
    """The guard process of this process: started with the first child, told of every other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pipe: int | None = None
        self._leaders: set[int] = set()

    def watch(self, leader: int) -> None:
        """End this group when we die."""
        with self._lock:
            self._leaders.add(leader)
            self._tell(f"+{leader}\n")

    def forget(self, leader: int) -> None:
        """The group has ended; its id may be used again by somebody else."""
        with self._lock:
            self._leaders.discard(leader)
            self._tell(f"-{leader}\n")

    def _tell(self, line: str) -> None:
        """Write to the guard; one that was killed is replaced."""
        if self._pipe is not None:
            try:
                os.write(self._pipe, line.encode())
            except BrokenPipeError:
                os.close(self._pipe)
            else:
                return
        self._pipe = self._spawn()
        os.write(self._pipe, "".join(f"+{pid}\n" for pid in self._leaders).encode())

    def _spawn(self) -> int:
        """Start the guard in a session of its own; the write end of its pipe.

        posix_spawn rather than Popen: the guard must outlive this process, and no object
        here waits for it. It does not keep our stdout open, which a reader may wait on.
        """
        read_end, write_end = os.pipe()
        try:
            os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", guard.__file__],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, read_end, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
                setsid=True,
            )
        finally:
            os.close(read_end)
        return write_end


_guard = _Guard()
