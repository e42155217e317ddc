"""What a database looks like: tables, columns, keys, comments and a few of its values.

Plain values, made by `introspection`. How they are written into a prompt is the templates'
business.
"""

from __future__ import annotations

from dataclasses import dataclass

from hexgen_sglang.text2sql.source import Dialect

_NUMERIC = ("INT", "REAL", "NUM", "FLOA", "DOUB", "DEC")
# Words that SQLite does not take as a bare name.
_RESERVED_TEXT = (
    "ADD ALL ALTER AND AS AUTOINCREMENT BETWEEN CASE CHECK COLLATE COMMIT CONSTRAINT CREATE "
    "DEFAULT DEFERRABLE DELETE DISTINCT DROP ELSE ESCAPE EXCEPT EXISTS FOREIGN FROM GROUP "
    "HAVING IF IN INDEX INSERT INTERSECT INTO IS ISNULL JOIN LIMIT NOT NOTHING NOTNULL NULL "
    "ON OR ORDER PRIMARY REFERENCES RETURNING SELECT SET TABLE THEN TO TRANSACTION UNION "
    "UNIQUE UPDATE USING VALUES WHEN WHERE "
)
# Those that PostgreSQL, and DuckDB with its parser, do not take, beyond SQLite's.
_RESERVED_BY_POSTGRESQL = (
    "ANALYSE ANALYZE ANY ARRAY ASC ASYMMETRIC AUTHORIZATION BINARY BOTH CAST COLLATION COLUMN "
    "CONCURRENTLY CROSS CURRENT_CATALOG CURRENT_DATE CURRENT_ROLE CURRENT_SCHEMA CURRENT_TIME "
    "CURRENT_TIMESTAMP CURRENT_USER DESC DESCRIBE DO END FALSE FETCH FOR FREEZE FULL GRANT "
    "ILIKE INITIALLY INNER LAMBDA LATERAL LEADING LEFT LIKE LOCALTIME LOCALTIMESTAMP NATURAL "
    "OFFSET ONLY OUTER OVERLAPS PIVOT PLACING QUALIFY RIGHT SEMI SESSION_USER SHOW SIMILAR SOME "
    "SUMMARIZE SYMMETRIC SYSTEM_USER TABLESAMPLE TRAILING TRUE UNPIVOT USER VARIADIC VERBOSE "
    "WINDOW WITH ANTI ASOF POSITIONAL "
)
_RESERVED = frozenset(_RESERVED_TEXT.split())
_RESERVED_ELSEWHERE = _RESERVED | frozenset(_RESERVED_BY_POSTGRESQL.split())


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        type: as declared, in upper case; "" when none is.
        is_key: part of the primary key.
        references: "table.column" of its foreign key, or None.
        samples: up to the wanted number of different values of a text column, as SQL text,
            the most frequent first.
        is_category: its values are few and repeat; then `samples` begins with the usual ones.
        comment: what the database's makers say of it, on one line; "" when nothing.
    """

    name: str
    type: str
    is_key: bool = False
    references: str | None = None
    samples: tuple[str, ...] = ()
    is_category: bool = False
    comment: str = ""

    @property
    def target(self) -> tuple[str, str] | None:
        """Table and column that its foreign key names, or None."""
        table, dot, column = (self.references or "").rpartition(".")
        return (table, column) if dot else None

    @property
    def is_text(self) -> bool:
        """Whether it is declared to hold text, or nothing at all."""
        return not self.type or any(word in self.type for word in ("CHAR", "TEXT", "CLOB"))

    @property
    def is_measure(self) -> bool:
        """Whether it holds numbers that can be averaged: no key, and of a numeric type."""
        numeric = any(word in self.type for word in _NUMERIC)
        return numeric and not self.is_key and self.references is None


@dataclass(frozen=True, slots=True)
class Table:
    """One table or view, with its columns in order, and what its makers say of it."""

    name: str
    columns: tuple[Column, ...]
    comment: str = ""

    @property
    def label(self) -> Column:
        """The column that names a row to people: `name` or the like, else text, else the first."""
        texts = [column for column in self.columns if column.is_text and not column.is_key]
        named = [one for one in texts if one.name.lower().endswith(("name", "title"))]
        return [*named, *texts, *self.columns][0]


@dataclass(frozen=True, slots=True)
class Schema:
    """A database's tables: a file's in the order in which they were made, else by name."""

    tables: tuple[Table, ...]
    dialect: Dialect = Dialect.SQLITE

    def table(self, name: str) -> Table | None:
        """The table of that name, compared without case; None when there is none."""
        return next((one for one in self.tables if one.name.lower() == name.lower()), None)


def quoted(name: str, dialect: Dialect = Dialect.SQLITE) -> str:
    """The name as SQL text of a dialect, in quotes where it needs them."""
    if dialect is Dialect.MYSQL:
        # Its reserved words differ between versions.
        return "`" + name.replace("`", "``") + "`"
    reserved = _RESERVED if dialect is Dialect.SQLITE else _RESERVED_ELSEWHERE
    folds = dialect is Dialect.POSTGRESQL and name != name.lower()
    if name.isascii() and name.isidentifier() and not folds and name.upper() not in reserved:
        return name
    return '"' + name.replace('"', '""') + '"'
