"""What is read of databases' schemas, and how long that takes.

    .venv/bin/python launch/bench/introspection.py --json FILE DATABASE...

A database is an SQLite or DuckDB file, a folder of such files, or a server's URL.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hexgen_sglang.bench import machine
from hexgen_sglang.core.errors import HexgenError
from hexgen_sglang.text2sql import prompts
from hexgen_sglang.text2sql.examples import derive_examples
from hexgen_sglang.text2sql.introspection import read_schema
from hexgen_sglang.text2sql.source import Source, source_of
from hexgen_sglang.text2sql.values import read_values

ENDINGS = {".sqlite", ".duckdb", ".db"}


def sources(places: list[str]) -> Iterator[Source]:
    """The databases of these places.

    Raises:
        ConfigError: one is no database.
    """
    for place in places:
        if "://" not in place and Path(place).is_dir():
            files = sorted(one for one in Path(place).iterdir() if one.suffix in ENDINGS)
            yield from (source_of(one) for one in files)
        else:
            yield source_of(place)


def row(source: Source) -> dict[str, Any]:
    """Counts over one database's schema.

    Raises:
        ConfigError: it cannot be read.
    """
    began_s = time.perf_counter()
    schema = read_schema(source)
    schema_s = time.perf_counter() - began_s
    values = read_values(source, schema)
    columns = [column for table in schema.tables for column in table.columns]
    examples = derive_examples(schema)
    return {
        "database": Path(source.name).stem,
        "dialect": source.dialect.value,
        "tables": len(schema.tables),
        "columns": len(columns),
        "columns_of_keys": sum(column.is_key for column in columns),
        "foreign_keys": sum(column.references is not None for column in columns),
        "comments": sum(bool(one.comment) for one in [*schema.tables, *columns]),
        "columns_with_samples": sum(bool(column.samples) for column in columns),
        "indexed_values": len(values),
        "prompt_chars": len(prompts.database_part(schema, examples)),
        "schema_s": round(schema_s, 4),
        "values_s": round(time.perf_counter() - began_s - schema_s, 4),
    }


def main() -> int:
    """Read, print, write; 2 when a database cannot be read."""
    parser = argparse.ArgumentParser(description="Schemas as they are read.")
    parser.add_argument("databases", nargs="+")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    try:
        rows = [row(source) for source in sources(args.databases)]
    except HexgenError as error:
        print(f"introspection: {error}", file=sys.stderr)
        return 2
    for one in rows:
        print(", ".join(f"{key} {value}" for key, value in one.items()))
    print(f"{len(rows)} databases")
    if args.json is not None:
        result = {"databases": rows, "versions": machine.versions(), "machine": machine.machine()}
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
