"""Which database is meant: a file or a server, and the dialect that it speaks.

Plain values, made where a user names a database; nothing is opened beyond a file's header.
"""

from __future__ import annotations

import importlib.util
import urllib.parse
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from hexgen_sglang.core.errors import ConfigError

_HEADER_BYTES = 16
_SQLITE_HEADER = b"SQLite format 3\0"
_DUCKDB_MAGIC = b"DUCK"  # behind eight bytes of checksum


class Dialect(StrEnum):
    """The databases that can be asked."""

    SQLITE = "sqlite"
    DUCKDB = "duckdb"
    POSTGRESQL = "postgresql"
    MYSQL = "mysql"

    @property
    def parser(self) -> str:
        """The dialect's name in sqlglot."""
        return "postgres" if self is Dialect.POSTGRESQL else self.value

    @property
    def label(self) -> str:
        """The dialect's name for people and models."""
        return _LABELS[self]

    @property
    def is_file(self) -> bool:
        """Whether a database is one file that we open, not a server that we ask."""
        return self in {Dialect.SQLITE, Dialect.DUCKDB}


_LABELS = {
    Dialect.SQLITE: "SQLite",
    Dialect.DUCKDB: "DuckDB",
    Dialect.POSTGRESQL: "PostgreSQL",
    Dialect.MYSQL: "MySQL",
}
# URL scheme -> dialect, SQLAlchemy's scheme with the driver, the driver's module.
_SCHEMES = {
    "postgresql": (Dialect.POSTGRESQL, "postgresql+psycopg", "psycopg"),
    "postgres": (Dialect.POSTGRESQL, "postgresql+psycopg", "psycopg"),
    "mysql": (Dialect.MYSQL, "mysql+pymysql", "pymysql"),
    "mariadb": (Dialect.MYSQL, "mysql+pymysql", "pymysql"),
}


@dataclass(frozen=True, slots=True)
class Source:
    """One database.

    Attributes:
        location: a file's absolute path, or SQLAlchemy's URL of a server with user and
            password; not for people.
        name: for people: the path, or the URL without its password.
    """

    dialect: Dialect
    location: str = field(repr=False)
    name: str


def source_of(db: str | Path | Source) -> Source:
    """The database that a user names.

    Args:
        db: an SQLite or DuckDB file, or `postgresql://user:password@host/name`, or
            `mysql://user:password@host/name`.

    Raises:
        ConfigError: no such file, a file of another kind, an unknown scheme, or the extra for
            that server is not installed.
    """
    if isinstance(db, Source):
        return db
    if isinstance(db, str) and "://" in db:
        return _server(db)
    return _file(Path(db))


def _file(path: Path) -> Source:
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except OSError as error:
        raise ConfigError(f"db={str(path)!r}: {error.strerror or error}") from error
    if header == _SQLITE_HEADER:
        dialect = Dialect.SQLITE
    elif header[8:12] == _DUCKDB_MAGIC:
        dialect = Dialect.DUCKDB
    else:
        raise ConfigError(f"db={str(path)!r}: not an SQLite database file, nor a DuckDB one")
    location = str(path.resolve())
    return Source(dialect, location, location)


def _server(url: str) -> Source:
    scheme, _, rest = url.partition("://")
    if scheme not in _SCHEMES:
        raise ConfigError(f"db={scheme}://...: the scheme must be one of {', '.join(_SCHEMES)}")
    dialect, full_scheme, driver = _SCHEMES[scheme]
    for module in ("sqlalchemy", driver):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"db={scheme}://...: needs {module}; pip install 'hexgen-sglang[{dialect}]'"
            )
    parts = urllib.parse.urlsplit(url)
    user = f"{parts.username}@" if parts.username else ""
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError as error:
        raise ConfigError(f"db={scheme}://...: {error}") from error
    if not parts.path.strip("/"):
        raise ConfigError(f"db={scheme}://...: names no database; add /NAME behind the host")
    name = f"{scheme}://{user}{parts.hostname or ''}{port}{parts.path}"
    return Source(dialect, f"{full_scheme}://{rest}", name)
