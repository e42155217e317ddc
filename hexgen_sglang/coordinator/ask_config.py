"""Settings of the page `/ask`: the table `[coordinator.ask]`. The page itself is `ask_page`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from hexgen_sglang.protocol.tag import Name

DatabaseName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class AskDatabase(Struct, frozen=True, forbid_unknown_fields=True):
    """One table `[coordinator.ask.databases.NAME]`.

    Attributes:
        db: an SQLite or DuckDB file, a server's URL, or "sample". Whoever may ask sees what this
            database's user may read.
        tenants: who may ask it, by the tenant of the caller's key; none: every caller.
    """

    db: Annotated[str, Meta(min_length=1, max_length=4_096)]
    tenants: Annotated[tuple[Name, ...], Meta(max_length=4_096)] = ()


class AskConfig(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Questions over databases on a page of the coordinator's; without databases it is off.

    Attributes:
        databases: which can be asked, by the name that the page shows.
        folder: every SQLite and DuckDB file in it, by its file name, for every caller; as it is
            when the coordinator starts.
        deadline_s: for one question, unless the page's user chooses another.
        max_deadline_s: the longest that can be chosen.
        num_candidates, max_rounds, num_checks, max_sql_tokens: as in the agent's settings.
        fallback_model: name of a smaller model that workers serve, too, for questions whose
            deadline the one that was chosen would miss; None: there is none.
        sql_time_s, max_rows: of each execution of model-written SQL.
        max_open: questions at once; further ones get 429.
    """

    databases: Annotated[dict[DatabaseName, AskDatabase], Meta(max_length=256)] = {}
    folder: Annotated[str, Meta(min_length=1, max_length=4_096)] | None = None
    deadline_s: Seconds = 60.0
    max_deadline_s: Seconds = 600.0
    num_candidates: Annotated[int, Meta(ge=1, le=32)] = 3
    max_rounds: Annotated[int, Meta(ge=0, le=10)] = 2
    num_checks: Annotated[int, Meta(ge=0, le=8)] = 2
    max_sql_tokens: Annotated[int, Meta(ge=8, le=4_096)] = 256
    fallback_model: Annotated[str, Meta(max_length=512, pattern=r"\S")] | None = None
    sql_time_s: Annotated[float, Meta(gt=0, le=600)] = 2.0
    max_rows: Annotated[int, Meta(ge=1, le=10_000)] = 200
    max_open: Annotated[int, Meta(ge=1, le=10_000)] = 32

    def __post_init__(self) -> None:
        if self.deadline_s > self.max_deadline_s:
            raise ValueError(
                f"deadline_s={self.deadline_s}: must be at most "
                f"max_deadline_s={self.max_deadline_s}"
            )

    @property
    def is_on(self) -> bool:
        """Whether there is a page."""
        return bool(self.databases) or self.folder is not None
