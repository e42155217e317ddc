"""A MariaDB server of one's own, from the machine's MariaDB, to try MySQL's dialect on."""

from __future__ import annotations

import shutil
import signal
import socket
from pathlib import Path
from typing import Any

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.text2sql.sample.throwaway import ThrowawayServer

SUPERUSER = "boss"
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


class ThrowawayMariadb(ThrowawayServer):
    """A running server with its superuser `SUPERUSER`.

    Raises:
        ConfigError: there is no MariaDB here, or root has no unprivileged user to run it as.
        ProcessError: it did not start.
    """

    def __init__(self) -> None:
        program = find_mariadb()
        if program is None:
            raise ConfigError("no MariaDB server here: install Debian's mariadb-server-core")
        self._program = program
        super().__init__("mariadbd", _USERS, signal.SIGTERM)

    def url(self, database: str, user: str = SUPERUSER, password: str | None = None) -> str:
        """The address of one of its databases, for `source_of`."""
        word = self.password if password is None else password
        return f"mysql://{user}:{word}@localhost/{database}?unix_socket={self._socket}"

    def connect(self, database: str | None = None) -> Any:
        """A connection as superuser that commits every statement at once."""
        import pymysql

        return pymysql.connect(
            unix_socket=str(self._socket),
            user=SUPERUSER,
            password=self.password,
            database=database,
            autocommit=True,
        )

    @property
    def _socket(self) -> Path:
        return self.folder / "socket"

    def _prepared(self) -> list[str | Path]:
        data, scripts = self.folder / "data", _scripts(self._program)
        data.mkdir()
        self._user.own(data)
        command: list[str | Path] = [
            self._program,
            *_SETTINGS,
            f"--datadir={data}",
            f"--tmpdir={self.folder}",
            f"--lc-messages-dir={scripts}",
        ]
        # What the server keeps its users in.
        parts = ["CREATE DATABASE mysql;", "USE mysql;"]
        parts += [(scripts / name).read_text() for name in _TABLES]
        self._run([*command, "--bootstrap"], "\n".join(parts))
        first = self._secret(
            "first.sql",
            f"CREATE USER {SUPERUSER}@localhost IDENTIFIED BY '{self.password}';\n"
            f"GRANT ALL PRIVILEGES ON *.* TO {SUPERUSER}@localhost WITH GRANT OPTION;\n",
        )
        return [*command, f"--socket={self._socket}", f"--init-file={first}"]

    def _why_not_ready(self) -> str | None:
        """It takes connections once it has read the file with its superuser."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(self._socket))
            except OSError as error:
                return str(error)
        return None


def _scripts(program: Path) -> Path:
    """Where a server's SQL files and messages lie, beside the program's folder."""
    place = program.resolve().parent.parent / "share"
    return next((one for one in (place / "mysql", place / "mariadb") if one.is_dir()), place / "-")
