"""A PostgreSQL server of one's own with a throw-away data folder, to try things on.

Started by tests and benchmarks from the machine's PostgreSQL; it listens on a Unix socket only,
runs as an unprivileged user even for root, and its folder is gone when it has stopped.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hexgen_sglang.core.errors import ConfigError, ProcessError
from hexgen_sglang.text2sql.sample.unprivileged import ServerUser

_START_S = 100.0
_STOP_S = 20.0
_POLL_S = 0.05
_USERS = ("postgres", "nobody")
_SETTINGS = ("listen_addresses=", "fsync=off", "max_connections=20", "shared_buffers=16MB")


def find_postgresql() -> Path | None:
    """The folder with `initdb` and `postgres`, also where Debian keeps them; None: not here."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((one for one in places if (one / "postgres").exists()), None)


class ThrowawayPostgresql:
    """A running server with its superuser `postgres`; use `with`, or close it.

    Attributes:
        folder: everything it writes; readable by us.

    Raises:
        ConfigError: there is no PostgreSQL here, or root has no unprivileged user to run it as.
        ProcessError: it did not start.
    """

    def __init__(self) -> None:
        self._programs = find_postgresql()
        if self._programs is None:
            raise ConfigError("no PostgreSQL server here: install Debian's package postgresql")
        self._user = ServerUser(_USERS)
        self._password = secrets.token_urlsafe(16)
        self.folder = Path(tempfile.mkdtemp(prefix="hexgen-pg-"))
        try:
            self._user.own(self.folder)
            self._process = self._start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self._wait_ready()

    def url(self, database: str, user: str = "postgres", password: str | None = None) -> str:
        """The address of one of its databases, for `source_of`."""
        word = self._password if password is None else password
        return f"postgresql://{user}:{word}@/{database}?host={self.folder}"

    def connect(self, database: str = "postgres") -> Any:
        """A connection as superuser that commits every statement at once."""
        import psycopg

        return psycopg.connect(self.url(database), autocommit=True)

    def close(self) -> None:
        """Stop the server and remove its folder."""
        self._process.send_signal(2)  # a fast shutdown: sessions are ended
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        assert self._programs is not None
        data, word = self.folder / "data", self.folder / "password"
        word.write_text(self._password)
        word.chmod(0o600)
        self._user.own(word)
        common: dict[str, Any] = {
            "cwd": self.folder,
            "env": {"LC_ALL": "C"},
            **self._user.arguments,
        }
        made = subprocess.run(
            [self._programs / "initdb", "--pgdata", data, "--username=postgres", "--no-sync",
             "--auth=scram-sha-256", f"--pwfile={word}", "--encoding=UTF8"],
            capture_output=True, check=False, timeout=_START_S, **common,
        )  # fmt: skip
        if made.returncode != 0:
            raise ProcessError(f"initdb failed: {made.stderr.decode(errors='replace')[-500:]}")
        log = self.folder / "log"
        settings = [word for setting in _SETTINGS for word in ("-c", setting)]
        with log.open("wb") as output:
            return subprocess.Popen(
                [self._programs / "postgres", "-D", data, "-k", self.folder, *settings],
                stdout=output,
                stderr=subprocess.STDOUT,
                **common,
            )

    def _wait_ready(self) -> None:
        import psycopg

        until_s = time.monotonic() + _START_S
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > until_s:
                    log = (self.folder / "log").read_text(errors="replace")[-500:]
                    self._process.kill()
                    self._process.wait()
                    shutil.rmtree(self.folder, ignore_errors=True)
                    raise ProcessError(f"postgres did not start: {error}: {log}") from error
                time.sleep(_POLL_S)
