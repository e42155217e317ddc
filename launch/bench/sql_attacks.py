"""How the SQL sandbox withstands hostile statements, on each kind of database.

Every statement of `tests/data/sql_attacks` is run as a model would have written it. It is
blocked when it gave a clear error (or, where the list says so, a harmless result), changed
nothing, showed nothing of a secret file or table, and ended within its limit. Statements that
the first look at the text refuses are run once more past it, on the database's own guards
(`blocked_by_database`). PostgreSQL and MariaDB, which stands for MySQL, are started here from the
machine's packages; without one its figures are null.

    .venv/bin/python launch/bench/sql_attacks.py --json FILE
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hexgen_sglang import __version__
from hexgen_sglang.text2sql.execution import SqlLimits, SqlOutcome
from hexgen_sglang.text2sql.sample.mariadb import ThrowawayMariadb, find_mariadb
from hexgen_sglang.text2sql.sample.postgresql import ThrowawayPostgresql, find_postgresql
from hexgen_sglang.text2sql.sandbox import Sandbox, SandboxProcess
from hexgen_sglang.text2sql.source import Dialect, Source, source_of
from hexgen_sglang.text2sql.statement import refusal

LISTS = Path(__file__).resolve().parents[2] / "tests" / "data" / "sql_attacks"
SECRET = "canary-7f3a9c1e"
NUM_ROWS = 200
LIMITS = SqlLimits(time_s=0.3)
# Far above the limit and the alarm that follows it, for a machine that is busy otherwise.
SLOWEST_S = 20.0
BAD_OUTCOMES = {SqlOutcome.REFUSED, SqlOutcome.ERROR, SqlOutcome.LIMIT}
READER_PASSWORD = "reader-of-items"
# What has to be installed for it.
SERVERS: dict[Dialect, tuple[Callable[[], Path | None], str]] = {
    Dialect.POSTGRESQL: (find_postgresql, "postgresql"),
    Dialect.MYSQL: (find_mariadb, "mariadb-server-core"),
}
POSTGRESQL_TABLES = f"""
CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price DOUBLE PRECISION);
INSERT INTO item SELECT i, 'item ' || i, i * 1.5 FROM generate_series(0, {NUM_ROWS - 1}) AS t(i);
CREATE VIEW seen AS SELECT id FROM item;
CREATE SEQUENCE counter;
CREATE TABLE secret (word TEXT);
INSERT INTO secret VALUES ('{SECRET}');
CREATE VIEW secret_view WITH (security_barrier) AS SELECT word FROM secret;
CREATE FUNCTION empty_item() RETURNS int LANGUAGE sql SECURITY DEFINER
    AS 'DELETE FROM item; SELECT 1';
CREATE ROLE reader LOGIN PASSWORD '{READER_PASSWORD}';
CREATE ROLE librarian LOGIN PASSWORD '{READER_PASSWORD}';
GRANT pg_read_server_files TO librarian;
GRANT SELECT ON item, seen TO reader;
GRANT USAGE ON SEQUENCE counter TO reader;
"""
# What a statement could have changed anywhere in the server.
POSTGRESQL_STATE = """
SELECT (SELECT md5(string_agg(item::text, ',' ORDER BY id)) FROM item),
    (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_proc),
    (SELECT count(*) FROM pg_namespace), (SELECT count(*) FROM pg_largeobject_metadata),
    (SELECT md5(string_agg(pg_authid::text, ',' ORDER BY oid)) FROM pg_authid),
    (SELECT count(*) FROM pg_db_role_setting), (SELECT last_value FROM counter),
    (SELECT relacl::text FROM pg_class WHERE relname = 'secret')
"""
# One statement each: the driver sends one at a time.
MYSQL_TABLES = (
    "CREATE DATABASE items",
    "USE items",
    "CREATE TABLE item (id INTEGER PRIMARY KEY, name VARCHAR(40), price DOUBLE)",
    f"INSERT INTO item SELECT seq, CONCAT('item ', seq), seq * 1.5 FROM seq_0_to_{NUM_ROWS - 1}",
    "CREATE VIEW seen AS SELECT id FROM item",
    "CREATE SEQUENCE counter",
    "CREATE TABLE secret (word TEXT)",
    f"INSERT INTO secret VALUES ('{SECRET}')",
    "CREATE VIEW secret_view AS SELECT word FROM secret",
    "CREATE FUNCTION empty_item() RETURNS INTEGER MODIFIES SQL DATA SQL SECURITY DEFINER "
    "BEGIN DELETE FROM item; RETURN 1; END",
    f"CREATE USER reader@localhost IDENTIFIED BY '{READER_PASSWORD}'",
    f"CREATE USER librarian@localhost IDENTIFIED BY '{READER_PASSWORD}'",
    "GRANT FILE ON *.* TO librarian@localhost",
    "GRANT SELECT ON items.item TO librarian@localhost",
    "GRANT SELECT ON items.item TO reader@localhost",
    "GRANT SELECT ON items.seen TO reader@localhost",
    "GRANT SELECT, INSERT ON items.counter TO reader@localhost",
    "GRANT EXECUTE ON FUNCTION items.empty_item TO reader@localhost",
)
MYSQL_STATE = """
SELECT (SELECT MD5(GROUP_CONCAT(CONCAT_WS('/', id, name, price) ORDER BY id)) FROM items.item),
    (SELECT COUNT(*) FROM information_schema.tables),
    (SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = 'items'),
    (SELECT COUNT(*) FROM information_schema.routines),
    (SELECT COUNT(*) FROM information_schema.triggers),
    (SELECT COUNT(*) FROM information_schema.events),
    (SELECT COUNT(*) FROM information_schema.schemata),
    (SELECT MD5(GROUP_CONCAT(CONCAT_WS('/', user, host, priv) ORDER BY user, host))
        FROM mysql.global_priv),
    (SELECT next_not_cached_value FROM items.counter),
    @@global.max_connections, @@global.read_only
"""


@dataclass(frozen=True)
class Attack:
    """One hostile statement.

    Attributes:
        blocked: True: must end with an error; False: must run, harmlessly; None: either.
    """

    name: str
    sql: str
    blocked: bool | None


@dataclass(frozen=True)
class Verdict:
    """How one attack ended; `faults` is empty when it was withstood."""

    name: str
    outcome: str
    message: str
    elapsed_s: float
    faults: tuple[str, ...]


class Arena:
    """A database in a folder with a secret file beside it, and how to tell what changed.

    Args:
        state: gives anything that compares unequal once the database's content has changed.
    """

    def __init__(self, source: Source, folder: Path, state: Callable[[], object]) -> None:
        self.source = source
        self.folder = folder
        self._state = state
        self._sandbox = Sandbox(source, LIMITS, num_processes=1)
        self._process = SandboxProcess(source.dialect)

    def attack(self, attack: Attack) -> Verdict:
        """Run it through the whole sandbox."""
        self._sandbox.run("SELECT 1")  # a process that was ended starts again, which takes time
        before, started_s = self._look(), time.monotonic()
        execution = self._sandbox.run(self._sql(attack))
        elapsed_s = time.monotonic() - started_s
        faults = self._faults(before, elapsed_s, f"{execution.rows} {execution.message}")
        failed = execution.outcome in BAD_OUTCOMES
        if attack.blocked is not None and failed is not attack.blocked:
            faults.append(f"outcome {execution.outcome}")
        if failed and not execution.message:
            faults.append("no message")
        message = execution.message.replace(str(self.folder), "FOLDER")
        return Verdict(attack.name, execution.outcome, message, elapsed_s, tuple(faults))

    def attack_database(self, attack: Attack) -> Verdict:
        """Run it past the first look at its text; harmless rows are fine here."""
        request = {"location": self.source.location, "sql": "SELECT 1", **asdict(LIMITS)}
        self._process.ask(request, SLOWEST_S)
        before, started_s = self._look(), time.monotonic()
        answer = self._process.ask(request | {"sql": self._sql(attack)}, SLOWEST_S)
        elapsed_s = time.monotonic() - started_s
        answer = answer or {"outcome": "limit", "message": "the process was ended"}
        faults = self._faults(before, elapsed_s, json.dumps(answer))
        return Verdict(attack.name, answer["outcome"], answer["message"], elapsed_s, tuple(faults))

    def is_refused_by_text(self, attack: Attack) -> bool:
        """Whether the first look at the text already ends it."""
        return refusal(self._sql(attack), LIMITS.max_sql_chars, self.source.dialect) is not None

    def close(self) -> None:
        """End the processes."""
        self._sandbox.close()
        self._process.stop()

    def _sql(self, attack: Attack) -> str:
        return attack.sql.replace("{folder}", str(self.folder))

    def _look(self) -> tuple[object, ...]:
        return self._state(), tuple(sorted(path.name for path in self.folder.iterdir()))

    def _faults(self, before: tuple[object, ...], elapsed_s: float, shown: str) -> list[str]:
        faults = []
        if self._look() != before:
            faults.append("changed something")
        if SECRET in shown or SECRET.encode().hex() in shown:
            faults.append("showed a secret")
        if elapsed_s > SLOWEST_S:
            faults.append(f"took {elapsed_s:.1f} s")
        return faults


def attacks_on(dialect: Dialect) -> list[Attack]:
    """The list for one kind of database."""
    text = (LISTS / f"{dialect.value}.json").read_text(encoding="utf-8")
    return [Attack(**one) for one in json.loads(text)]


@contextmanager
def arena_for(dialect: Dialect) -> Iterator[Arena]:
    """A fresh database of that kind with the table `item`, gone afterwards."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hexgen-attack-")))
        folder.chmod(0o755)  # the server's user could read the secret, were it allowed to
        (folder / "secret.txt").write_text(SECRET + "\n")
        (folder / "secret.csv").write_text(f"word\n{SECRET}\n")
        if dialect is Dialect.POSTGRESQL:
            source, state = _postgresql(stack)
        elif dialect is Dialect.MYSQL:
            source, state = _mysql(stack)
        else:
            path = folder / f"items.{dialect.value}"
            {Dialect.SQLITE: _make_sqlite, Dialect.DUCKDB: _make_duckdb}[dialect](path)
            source = source_of(path)

            def state() -> object:
                return hashlib.sha256(path.read_bytes()).hexdigest()

        arena = Arena(source, folder, state)
        stack.callback(arena.close)
        yield arena


def _items() -> list[tuple[int, str, float]]:
    return [(number, f"item {number}", number * 1.5) for number in range(NUM_ROWS)]


def _make_sqlite(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price REAL)")
        connection.executemany("INSERT INTO item VALUES (?, ?, ?)", _items())
        connection.execute("CREATE VIEW seen AS SELECT id FROM item")


def _make_duckdb(path: Path) -> None:
    import duckdb

    with closing(duckdb.connect(str(path))) as connection:
        connection.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price DOUBLE)")
        connection.executemany("INSERT INTO item VALUES (?, ?, ?)", _items())
        connection.execute("CREATE VIEW seen AS SELECT id FROM item")
        connection.execute("CREATE SEQUENCE counter")


def _postgresql(stack: ExitStack) -> tuple[Source, Callable[[], object]]:
    server = stack.enter_context(ThrowawayPostgresql())
    with server.connect() as connection:
        connection.execute("CREATE DATABASE items")
    admin = stack.enter_context(closing(server.connect("items")))
    admin.execute(POSTGRESQL_TABLES)
    source = source_of(server.url("items", "reader", READER_PASSWORD))
    return source, lambda: admin.execute(POSTGRESQL_STATE).fetchone()


def _mysql(stack: ExitStack) -> tuple[Source, Callable[[], object]]:
    server = stack.enter_context(ThrowawayMariadb())
    cursor = stack.enter_context(closing(server.connect())).cursor()
    for statement in MYSQL_TABLES:
        cursor.execute(statement)

    def state() -> object:
        cursor.execute(MYSQL_STATE)
        return cursor.fetchone()

    return source_of(server.url("items", "reader", READER_PASSWORD)), state


def measure(dialect: Dialect) -> dict[str, Any] | None:
    """The figures for one kind of database; None where there is no server for it."""
    find, package = SERVERS.get(dialect, (None, ""))
    if find is not None and find() is None:
        print(f"{dialect.label}: skipped, there is no server here (Debian's package {package})")
        return None
    attacks = attacks_on(dialect)
    with arena_for(dialect) as arena:
        whole = [arena.attack(one) for one in attacks]
        past_text = [one for one in attacks if arena.is_refused_by_text(one)]
        alone = [arena.attack_database(one) for one in past_text]
    return {
        "attacks": len(whole),
        "blocked": sum(not one.faults for one in whole),
        "refused_by_text": len(past_text),
        "blocked_by_database": sum(not one.faults for one in alone),
        "slowest_s": round(max(one.elapsed_s for one in [*whole, *alone]), 3),
        "faults": [asdict(one) for one in [*whole, *alone] if one.faults],
        "outcomes": {one.name: f"{one.outcome}: {one.message}"[:200] for one in whole},
    }


def main() -> None:
    """Parse the command line, attack, print, write; exit status 1 when something got through."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for dialect in Dialect:
        figures[dialect.value] = found = measure(dialect)
        if found is None:
            continue
        print(
            f"{dialect.label}: {found['blocked']} of {found['attacks']} attacks blocked; "
            f"{found['blocked_by_database']} of the {found['refused_by_text']} that the text "
            f"gave away by the database alone; slowest {found['slowest_s']:.2f} s"
        )
        for fault in found["faults"]:
            print(f"  {fault['name']}: {', '.join(fault['faults'])}: {fault['message']}")
    figures["made_by"] = {
        "hexgen-sglang": __version__,
        "Python": platform.python_version(),
        "limit_s": LIMITS.time_s,
    }
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    sys.exit(any(found["faults"] for found in figures.values() if found and "faults" in found))


if __name__ == "__main__":
    main()
