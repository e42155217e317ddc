"""A MariaDB server of one's own with a throw-away data folder, to try MySQL's dialect on.

Started by tests from the machine's MariaDB; it listens on a Unix socket only, runs as an
unprivileged user even for root, and its folder is gone when it has stopped.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hexgen_sglang.core.errors import ConfigError, ProcessError
from hexgen_sglang.text2sql.sample.unprivileged import ServerUser

SUPERUSER = "boss"
_START_S = 100.0
_STOP_S = 20.0
_POLL_S = 0.05
_USERS = ("mysql", "nobody")
_PLACES = (Path("/usr/sbin"), Path("/usr/libexec"))
_TABLES = ("mysql_system_tables.sql", "mysql_system_tables_data.sql")
_SETTINGS = (
    "--no-defaults",
    "--skip-networking",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-buffer-pool-size=16M",
    "--innodb-log-file-size=8M",
    "--innodb-flush-method=nosync",
    "--max-connections=20",
)


def find_mariadb() -> Path | None:
    """The program `mariadbd`, also where Debian keeps it; None: not here, or without its files."""
    found = shutil.which("mariadbd")
    paths = [Path(found)] if found else [place / "mariadbd" for place in _PLACES]
    return next((one for one in paths if one.exists() and _scripts(one).is_dir()), None)


class ThrowawayMariadb:
    """A running server with its superuser `SUPERUSER`; use `with`, or close it.

    Attributes:
        folder: everything it writes; readable by us.

    Raises:
        ConfigError: there is no MariaDB here, or root has no unprivileged user to run it as.
        ProcessError: it did not start.
    """

    def __init__(self) -> None:
        program = find_mariadb()
        if program is None:
            raise ConfigError("no MariaDB server here: install Debian's mariadb-server-core")
        self._program = program
        self._user = ServerUser(_USERS)
        self._password = secrets.token_urlsafe(16)
        self.folder = Path(tempfile.mkdtemp(prefix="hexgen-my-"))
        self._socket = self.folder / "socket"
        try:
            self._user.own(self.folder)
            self._make_tables()
            self._process = self._start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self._wait_ready()

    def url(self, database: str, user: str = SUPERUSER, password: str | None = None) -> str:
        """The address of one of its databases, for `source_of`."""
        word = self._password if password is None else password
        return f"mysql://{user}:{word}@localhost/{database}?unix_socket={self._socket}"

    def connect(self, database: str | None = None) -> Any:
        """A connection as superuser that commits every statement at once."""
        import pymysql

        return pymysql.connect(
            unix_socket=str(self._socket),
            user=SUPERUSER,
            password=self._password,
            database=database,
            autocommit=True,
        )

    def close(self) -> None:
        """Stop the server and remove its folder."""
        self._process.terminate()
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

    @property
    def _command(self) -> list[str | Path]:
        scripts = _scripts(self._program)
        return [
            self._program,
            *_SETTINGS,
            f"--datadir={self.folder / 'data'}",
            f"--tmpdir={self.folder}",
            f"--lc-messages-dir={scripts}",
        ]

    def _make_tables(self) -> None:
        """What the server keeps its users in."""
        data = self.folder / "data"
        data.mkdir()
        self._user.own(data)
        scripts = _scripts(self._program)
        parts = ["CREATE DATABASE mysql;", "USE mysql;"]
        parts += [(scripts / name).read_text() for name in _TABLES]
        made = subprocess.run(
            [*self._command, "--bootstrap"],
            input="\n".join(parts).encode(),
            capture_output=True,
            check=False,
            timeout=_START_S,
            cwd=self.folder,
            **self._user.arguments,
        )
        if made.returncode != 0:
            raise ProcessError(
                f"mariadbd --bootstrap: {made.stderr.decode(errors='replace')[-500:]}"
            )

    def _start(self) -> subprocess.Popen[bytes]:
        first = self.folder / "first.sql"
        first.write_text(
            f"CREATE USER {SUPERUSER}@localhost IDENTIFIED BY '{self._password}';\n"
            f"GRANT ALL PRIVILEGES ON *.* TO {SUPERUSER}@localhost WITH GRANT OPTION;\n"
        )
        first.chmod(0o600)
        self._user.own(first)
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(
                [*self._command, f"--socket={self._socket}", f"--init-file={first}"],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                **self._user.arguments,
            )

    def _wait_ready(self) -> None:
        until_s = time.monotonic() + _START_S
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > until_s:
                log = (self.folder / "log").read_text(errors="replace")[-500:]
                self._process.kill()
                self._process.wait()
                shutil.rmtree(self.folder, ignore_errors=True)
                raise ProcessError(f"mariadbd did not start: {log}")
            time.sleep(_POLL_S)

    def _listens(self) -> bool:
        """Whether it takes connections; it has read the file with its superuser by then."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(self._socket))
            except OSError:
                return False
        return True


def _scripts(program: Path) -> Path:
    """Where a server's SQL files and messages lie, beside the program's folder."""
    place = program.resolve().parent.parent / "share"
    return next((one for one in (place / "mysql", place / "mariadb") if one.is_dir()), place / "-")
