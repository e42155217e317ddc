"""A PostgreSQL server of one's own, from the machine's PostgreSQL, to try things on."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.text2sql.sample.throwaway import ThrowawayServer

_USERS = ("postgres", "nobody")
_SETTINGS = ("listen_addresses=", "fsync=off", "max_connections=20", "shared_buffers=16MB")


def find_postgresql() -> Path | None:
    """The folder with `initdb` and `postgres`, also where Debian keeps them; None: not here."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((one for one in places if (one / "postgres").exists()), None)


class ThrowawayPostgresql(ThrowawayServer):
    """A running server with its superuser `postgres`.

    Raises:
        ConfigError: there is no PostgreSQL here, or root has no unprivileged user to run it as.
        ProcessError: it did not start.
    """

    def __init__(self) -> None:
        programs = find_postgresql()
        if programs is None:
            raise ConfigError("no PostgreSQL server here: install Debian's package postgresql")
        self._programs = programs
        # A fast shutdown: sessions are ended.
        super().__init__("postgres", _USERS, signal.SIGINT)

    def url(self, database: str, user: str = "postgres", password: str | None = None) -> str:
        """The address of one of its databases, for `source_of`."""
        word = self.password if password is None else password
        return f"postgresql://{user}:{word}@/{database}?host={self.folder}"

    def connect(self, database: str = "postgres") -> Any:
        """A connection as superuser that commits every statement at once."""
        import psycopg

        return psycopg.connect(self.url(database), autocommit=True)

    def _prepared(self) -> list[str | Path]:
        data, word = self.folder / "data", self._secret("password", self.password)
        self._run(
            [self._programs / "initdb", "--pgdata", data, "--username=postgres", "--no-sync",
             "--auth=scram-sha-256", f"--pwfile={word}", "--encoding=UTF8"],
        )  # fmt: skip
        settings = [word for setting in _SETTINGS for word in ("-c", setting)]
        return [self._programs / "postgres", "-D", data, "-k", self.folder, *settings]

    def _why_not_ready(self) -> str | None:
        import psycopg

        try:
            self.connect().close()
        except psycopg.OperationalError as error:
            return str(error)
        return None
