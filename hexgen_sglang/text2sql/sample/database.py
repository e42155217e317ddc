"""Makes the sample database, always the same: no clock, no randomness but a fixed seed.

Runs in the command line, the demo and the tests. The tables are in `schema.sql`.
"""

from __future__ import annotations

import datetime
import os
import random
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from hexgen_sglang.core.errors import ConfigError

# Goes up with every change of the content, so that an old file in a cache is not taken for it.
CONTENT_VERSION = 1
_SEED = 20_240
_FIRST_DAY = datetime.date(2023, 1, 1)
_LAST_DAY = datetime.date(2024, 12, 31)

_DISTRICTS = (
    ("Old Harbour", 18_400),
    ("Mill Quarter", 25_100),
    ("North Bank", 31_900),
    ("Garden Hill", 22_700),
    ("Station Square", 14_300),
    ("Lakeside", 9_800),
)
_STATION_PLACES = ("Bridge", "Market", "Library", "Park")
_PLANS = (("Day", 0.0, 0), ("Basic", 6.0, 30), ("Plus", 12.0, 60), ("Student", 4.0, 45))
_PLAN_WEIGHTS = (2, 5, 3, 4)
_KINDS = (("city", 420.0), ("electric", 1450.0), ("cargo", 2100.0))
_KIND_WEIGHTS = (6, 3, 1)
_STATUSES = ("in service", "in repair", "retired")
_STATUS_WEIGHTS = (16, 3, 1)
_MECHANICS = (
    ("Ines Moll", 24.5),
    ("Tom Arden", 22.0),
    ("Jale Korkmaz", 26.0),
    ("Piet Visser", 21.5),
    ("Noor Haddad", 23.0),
)
_PROBLEMS = ("flat tyre", "brakes", "battery", "chain", "lights", "saddle")
_PROBLEM_COSTS = (18.0, 35.0, 190.0, 27.0, 22.0, 15.0)
_FIRST_NAMES = (
    "Ada", "Bela", "Chidi", "Dora", "Emre", "Femi", "Greta", "Hugo", "Iris", "Jonas",
    "Kaya", "Lena", "Milo", "Nadia", "Otis", "Paula", "Quinn", "Rosa", "Selim", "Tara",
)  # fmt: skip
_LAST_NAMES = (
    "Abel", "Brandt", "Costa", "Dahl", "Egger", "Fuchs", "Gomez", "Holm", "Ito", "Jansen",
    "Keller", "Lind", "Marek", "Novak", "Okoro", "Perez", "Rossi", "Sato", "Turan", "Weber",
)  # fmt: skip
_NUM_BIKES, _NUM_MEMBERS, _NUM_TRIPS, _NUM_REPAIRS = 90, 140, 1_100, 160

Row = tuple[str | int | float | None, ...]
T = TypeVar("T")


def ensure_sample_database(path: Path | None = None) -> Path:
    """The sample database's file, made unless it is there; safe to call concurrently.

    Args:
        path: where to make it; None: in the user's cache.

    Raises:
        ConfigError: the place cannot be written.
    """
    target = path if path is not None else _cached_path()
    if not target.exists():
        make_sample_database(target)
    return target


def make_sample_database(path: Path) -> None:
    """Write the database to `path`, over whatever is there; it appears only when complete.

    Raises:
        ConfigError: the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    except OSError as error:
        raise ConfigError(f"sample database {path}: cannot be written: {error}") from error
    os.close(handle)
    draft = Path(name)
    try:
        _write(draft)
        draft.chmod(0o644)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _cached_path() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "hexgen-sglang" / "sample" / f"bikes-v{CONTENT_VERSION}.sqlite"


def _write(path: Path) -> None:
    schema = files(__package__).joinpath("schema.sql").read_text(encoding="utf-8")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("PRAGMA page_size = 4096; PRAGMA foreign_keys = on;" + schema)
        with connection:
            for table, rows in _tables():
                marks = ", ".join("?" * len(rows[0]))
                connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)


def _tables() -> Iterator[tuple[str, list[Row]]]:
    """Every table with its rows, parents first."""
    dice = _Dice()
    yield "district", [(number, *row) for number, row in enumerate(_DISTRICTS, 1)]
    stations = list(_stations(dice))
    yield "station", stations
    yield "bike", list(_bikes(dice))
    yield "plan", [(number, *row) for number, row in enumerate(_PLANS, 1)]
    yield "member", list(_members(dice))
    yield "trip", list(_trips(dice, len(stations)))
    yield "mechanic", [(number, *row) for number, row in enumerate(_MECHANICS, 1)]
    yield "repair", list(_repairs(dice))


class _Dice:
    """Seeded choices out of `random()` alone, whose sequence no Python version changes."""

    def __init__(self) -> None:
        self._random = random.Random(_SEED)

    def integer(self, low: int, high: int) -> int:
        """Uniform over low to high, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def pick(self, options: Sequence[T], weights: Sequence[int] | None = None) -> T:
        """One of the options, by weight."""
        if weights is None:
            return options[self.integer(0, len(options) - 1)]
        point = self._random.random() * sum(weights)
        for option, weight in zip(options, weights, strict=True):
            point -= weight
            if point < 0:
                return option
        return options[-1]

    def day(
        self, first: datetime.date = _FIRST_DAY, last: datetime.date = _LAST_DAY
    ) -> datetime.date:
        """Uniform over the days from first to last."""
        return first + datetime.timedelta(days=self.integer(0, (last - first).days))


def _stations(dice: _Dice) -> Iterator[Row]:
    number = 0
    for district_id, (district, _) in enumerate(_DISTRICTS, 1):
        for place in _STATION_PLACES[: dice.integer(3, 4)]:
            number += 1
            opened_on = dice.day(last=datetime.date(2023, 6, 30))
            yield number, f"{district} {place}", district_id, dice.integer(8, 30), str(opened_on)


def _bikes(dice: _Dice) -> Iterator[Row]:
    for number in range(1, _NUM_BIKES + 1):
        kind, price = dice.pick(_KINDS, _KIND_WEIGHTS)
        bought_on = dice.day(last=datetime.date(2024, 6, 30))
        status = dice.pick(_STATUSES, _STATUS_WEIGHTS)
        yield number, kind, str(bought_on), price + dice.integer(-20, 20), status


def _members(dice: _Dice) -> Iterator[Row]:
    for number in range(1, _NUM_MEMBERS + 1):
        # Walks through all pairs of names, so that no two members share one.
        first = _FIRST_NAMES[number % len(_FIRST_NAMES)]
        last = _LAST_NAMES[(number * 7 + number // len(_FIRST_NAMES)) % len(_LAST_NAMES)]
        plan_id = dice.pick(range(1, len(_PLANS) + 1), _PLAN_WEIGHTS)
        yield (
            number,
            f"{first} {last}",
            dice.integer(1950, 2006),
            str(dice.day()),
            plan_id,
            dice.integer(1, len(_DISTRICTS)),
        )


def _trips(dice: _Dice, num_stations: int) -> Iterator[Row]:
    for number in range(1, _NUM_TRIPS + 1):
        # Squaring makes some members and bikes busier than others.
        member_id = 1 + dice.integer(0, 999) ** 2 * _NUM_MEMBERS // 1_000_000
        bike_id = 1 + dice.integer(0, 999) ** 2 * _NUM_BIKES // 1_000_000
        minutes = dice.integer(4, 45) + (dice.integer(10, 60) if dice.integer(1, 6) == 1 else 0)
        started_at = f"{dice.day()} {dice.integer(5, 22):02}:{dice.integer(0, 59):02}"
        yield (
            number,
            member_id,
            bike_id,
            dice.integer(1, num_stations),
            dice.integer(1, num_stations),
            started_at,
            minutes,
            round(0.5 + 0.12 * minutes, 2),
        )


def _repairs(dice: _Dice) -> Iterator[Row]:
    for number in range(1, _NUM_REPAIRS + 1):
        problem, cost = dice.pick(list(zip(_PROBLEMS, _PROBLEM_COSTS, strict=True)))
        opened_on = dice.day()
        is_open = dice.integer(1, 12) == 1
        closed_on = (
            None if is_open else str(opened_on + datetime.timedelta(days=dice.integer(0, 14)))
        )
        yield (
            number,
            dice.integer(1, _NUM_BIKES),
            dice.integer(1, len(_MECHANICS)),
            problem,
            str(opened_on),
            closed_on,
            None if is_open else cost + dice.integer(0, 12),
        )
