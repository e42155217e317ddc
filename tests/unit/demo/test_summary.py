"""What a finished demo prints and writes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import msgspec
from rich.console import Console

from hexgen_sglang.demo.report import Report, RequestEntry, WorkerEntry, WorkflowEntry
from hexgen_sglang.demo.summary import print_summary, write_files

REQUEST = RequestEntry(
    *("link_schema", "worker-0", 1200, 1000, 16, 3.0),
    *("r1", 0, 1, 0.5, 1.0, 2.0, 3.5, "completed", 0),
)
FLOW = WorkflowEntry(
    *("w1", "How many [b]bikes[/b]?", 0.5, 30.0, True, 3.2),
    *("SELECT COUNT(*) FROM bike", "rows", "", 2, False, [], [], [REQUEST]),
)
LATE = msgspec.structs.replace(FLOW, met_deadline=False, outcome="no_valid_sql", is_right=None)
WORKER = WorkerEntry("worker-0", "http://127.0.0.1:1", "cpu", "m", "0.5.23", 1, 1200, 1000, 16, 2.5)
REPORT = Report([WORKER], [FLOW, LATE], 4.0, [], {"model": "m"})


def test_the_table_has_a_row_for_each_workflow() -> None:
    out = io.StringIO()
    print_summary(REPORT, Console(file=out, width=140))
    lines = out.getvalue().splitlines()
    (met,) = [line for line in lines if "2 rows, not the right ones" in line]
    (missed,) = [line for line in lines if "none that runs" in line]
    for line, word in ((met, "yes"), (missed, "no")):
        cells = [cell.strip() for cell in line.split("│")]
        assert cells[1:8] == [
            "How many [b]bikes[/b]?",
            "1",
            "1,200",
            "1,000",
            "3.2 s",
            "30 s",
            word,
        ]
    assert "deadlines met: 1 of 2" in out.getvalue()
    assert "worker-0: 1 requests, busy 2.5 s" in out.getvalue()


def test_both_files_are_written(tmp_path: Path) -> None:
    json_path, html_path = write_files(REPORT, tmp_path / "new" / "folder")
    assert msgspec.convert(json.loads(json_path.read_text()), Report) == REPORT
    assert "<!doctype html>" in html_path.read_text()
