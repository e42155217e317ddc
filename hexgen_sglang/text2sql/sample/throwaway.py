"""The life of a database server of one's own with a throw-away data folder.

Started by tests and benchmarks from the machine's programs; it listens on a Unix socket only, runs
as an unprivileged user even for root, and its folder is gone when it has stopped.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hexgen_sglang.core.errors import ProcessError
from hexgen_sglang.text2sql.closing import Closing
from hexgen_sglang.text2sql.sample.unprivileged import ServerUser

START_S = 100.0
_STOP_S = 20.0
_POLL_S = 0.05
_SHOWN_CHARS = 500


class ThrowawayServer(Closing):
    """A running server; use `with`, or close it.

    Args:
        name: of the program, for messages.
        users: whom it runs as where we are root, the preferred one first.
        stop_signal: what ends it at once, whoever is connected.

    Attributes:
        folder: everything it writes; readable by us.
        password: of its superuser.

    Raises:
        ConfigError: root has no unprivileged user to run it as.
        ProcessError: it did not start.
    """

    def __init__(self, name: str, users: Sequence[str], stop_signal: signal.Signals) -> None:
        self.password = secrets.token_urlsafe(16)
        self._name = name
        self._user = ServerUser(users)
        self._stop_signal = stop_signal
        self.folder = Path(tempfile.mkdtemp(prefix=f"hexgen-{name}-"))
        try:
            self._user.own(self.folder)
            command = self._prepared()
            with (self.folder / "log").open("wb") as log:
                self._process = subprocess.Popen(
                    command, stdout=log, stderr=subprocess.STDOUT, **self._arguments
                )
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self._wait_ready()

    @abstractmethod
    def _prepared(self) -> list[str | Path]:
        """Make what the server needs in `folder`; returns the command that starts it.

        Raises:
            ProcessError: it cannot be made.
        """

    @abstractmethod
    def _why_not_ready(self) -> str | None:
        """Why it cannot be used yet; None: it can."""

    def close(self) -> None:
        """Stop the server and remove its folder."""
        self._process.send_signal(self._stop_signal)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _arguments(self) -> dict[str, Any]:
        """Of `subprocess`, for every program of the server's."""
        return {"cwd": self.folder, "env": {"LC_ALL": "C"}, **self._user.arguments}

    def _run(self, command: Sequence[str | Path], text: str = "") -> None:
        """Run a program to its end, with `text` as its input.

        Raises:
            ProcessError: it failed.
        """
        made = subprocess.run(
            command,
            input=text.encode(),
            capture_output=True,
            check=False,
            timeout=START_S,
            **self._arguments,
        )
        if made.returncode != 0:
            said = made.stderr.decode(errors="replace")[-_SHOWN_CHARS:]
            raise ProcessError(f"{Path(command[0]).name} failed: {said}")

    def _secret(self, name: str, text: str) -> Path:
        """A file in `folder` that only the server's user can read."""
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(text)
        self._user.own(path)
        return path

    def _wait_ready(self) -> None:
        until_s = time.monotonic() + START_S
        while (why := self._why_not_ready()) is not None:
            if self._process.poll() is not None or time.monotonic() > until_s:
                log = (self.folder / "log").read_text(errors="replace")[-_SHOWN_CHARS:]
                self._process.kill()
                self._process.wait()
                shutil.rmtree(self.folder, ignore_errors=True)
                raise ProcessError(f"{self._name} did not start: {why}: {log}")
            time.sleep(_POLL_S)
