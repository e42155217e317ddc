"""The databases that the page offers: named by the configuration, opened when first asked.

Runs in the coordinator's process. Opening one reads its schema and indexes its values, in a
thread. Model-written SQL runs in the sandbox that an open database brings along, nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hexgen_sglang.coordinator.access import Caller
from hexgen_sglang.coordinator.ask_config import AskConfig
from hexgen_sglang.coordinator.http_errors import ApiError
from hexgen_sglang.core.errors import ConfigError, WorkerUnavailableError
from hexgen_sglang.text2sql.source import Source, source_of

if TYPE_CHECKING:
    from hexgen_sglang.text2sql.budget import StageTimes
    from hexgen_sglang.text2sql.database import Database

log = logging.getLogger(__name__)

SAMPLE = "sample"


@dataclass
class OfferedDatabase:
    """One database of the configuration.

    Attributes:
        tenants: who may ask it; none: every caller.
        opened: once it was asked.
    """

    name: str
    source: Source
    tenants: tuple[str, ...] = ()
    opened: OpenDatabase | None = None
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    def is_for(self, caller: Caller) -> bool:
        """Whether this caller may ask it."""
        return not self.tenants or caller.tenant is None or caller.tenant in self.tenants


@dataclass(frozen=True)
class OpenDatabase:
    """A database ready to be asked, and what its questions' stages took so far."""

    database: Database
    times: StageTimes


class OfferedDatabases:
    """All of them, by name. Opened ones stay open until `close`.

    Args:
        config: names them.

    Raises:
        ConfigError: a file is not there or no database, a folder has none, or a name is there
            twice.
    """

    def __init__(self, config: AskConfig) -> None:
        self._config = config
        self._by_name = _offered(config)
        self._is_closed = False

    def visible_to(self, caller: Caller) -> list[OfferedDatabase]:
        """What the caller may ask, by name."""
        return [self._by_name[name] for name in sorted(self._by_name) if self._is_for(name, caller)]

    def named(self, name: str, caller: Caller) -> OfferedDatabase:
        """The database that the caller calls so.

        Raises:
            ApiError: 404, also for one that is not for this caller: what there is is not told.
        """
        if name not in self._by_name or not self._is_for(name, caller):
            raise ApiError(
                404, f"database={name!r}: not offered here", code="no_database", param="database"
            )
        return self._by_name[name]

    async def open(self, offered: OfferedDatabase) -> OpenDatabase:
        """The database, opened if it is not; takes seconds for a large one.

        Raises:
            ConfigError: it cannot be read, or its user may do too much.
            WorkerUnavailableError: the coordinator is stopping.
        """
        async with offered.opening:
            if self._is_closed:
                raise WorkerUnavailableError("the coordinator is stopping")
            if offered.opened is None:
                offered.opened = await asyncio.to_thread(self._opened, offered.source)
                log.info("database %s: opened", offered.name)
        return offered.opened

    async def close(self) -> None:
        """End all sandboxes; what runs there is waited for, which takes bounded time."""
        self._is_closed = True
        for offered in self._by_name.values():
            async with offered.opening:
                opened, offered.opened = offered.opened, None
            if opened is not None:
                await asyncio.to_thread(opened.database.close)

    def _is_for(self, name: str, caller: Caller) -> bool:
        return self._by_name[name].is_for(caller)

    def _opened(self, source: Source) -> OpenDatabase:
        from hexgen_sglang.text2sql.budget import StageTimes
        from hexgen_sglang.text2sql.database import Database
        from hexgen_sglang.text2sql.execution import SqlLimits

        limits = SqlLimits(time_s=self._config.sql_time_s, max_rows=self._config.max_rows)
        return OpenDatabase(Database(source, limits), StageTimes())


def _offered(config: AskConfig) -> dict[str, OfferedDatabase]:
    found = {
        name: OfferedDatabase(name, _source(name, row.db), row.tenants)
        for name, row in config.databases.items()
    }
    for name, source in _in_folder(config.folder).items():
        if name in found:
            raise ConfigError(
                f"ask.databases: {name!r} is in ask.folder as well; name it otherwise"
            )
        found[name] = OfferedDatabase(name, source)
    return found


def _source(name: str, db: str) -> Source:
    try:
        if db == SAMPLE:
            from hexgen_sglang.text2sql.sample import ensure_sample_database

            return source_of(ensure_sample_database())
        return source_of(db)
    except ConfigError as error:
        raise ConfigError(f"ask.databases.{name}: {error}") from error


def _in_folder(folder: str | None) -> Mapping[str, Source]:
    """Its database files, by file name; other files are none of ours."""
    if folder is None:
        return {}
    try:
        paths = sorted(path for path in Path(folder).iterdir() if path.is_file())
    except OSError as error:
        raise ConfigError(f"ask.folder={folder!r}: {error.strerror or error}") from error
    found: dict[str, Source] = {}
    for path in paths:
        try:
            found[path.name] = source_of(path)
        except ConfigError as error:
            log.debug("ask.folder: %s", error)
    if not found:
        raise ConfigError(f"ask.folder={folder!r}: holds no SQLite or DuckDB file")
    return found
