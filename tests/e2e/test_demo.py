"""The demo as a user runs it, with the tiny model: it ends well, reports, and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(600)

RUN_LIMIT_S = 480
NUM_QUESTIONS = 4


def command(folder: Path) -> list[str]:
    arguments = ["--tiny", "--questions", str(NUM_QUESTIONS), "--out", str(folder)]
    return [str(Path(sys.executable).with_name("hexgen-sglang")), "demo", *arguments]


def check_request(stage: dict[str, Any], workers: set[str]) -> None:
    assert stage["worker"] in workers
    assert stage["outcome"] == "completed"
    assert stage["prompt_tokens"] > stage["cached_tokens"] >= 0
    assert stage["output_tokens"] > 0
    assert 0 <= stage["start_s"] <= stage["dispatched_s"] <= stage["end_s"]
    assert stage["e2e_s"] == pytest.approx(stage["end_s"] - stage["start_s"], abs=0.01)
    assert 0 <= stage["sibling_index"] < stage["siblings"]


def test_a_run_ends_well_and_leaves_a_report(tmp_path: Path, descendants) -> None:
    done = subprocess.run(
        command(tmp_path),
        env=descendants.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_LIMIT_S,
    )
    assert done.returncode == 0, done.stdout
    assert descendants.left_after(5) == {}

    report = json.loads((tmp_path / "report.json").read_text())
    assert report["failures"] == []
    workers = {row["worker_id"] for row in report["workers"]}
    assert workers == {"worker-0", "worker-1"}
    flows = report["workflows"]
    assert len({flow["workflow_id"] for flow in flows}) == NUM_QUESTIONS
    assert len({flow["deadline_s"] for flow in flows}) > 1, "some tight, some relaxed"
    for flow in flows:
        assert flow["met_deadline"] in (True, False)
        assert flow["e2e_s"] > 0
        assert flow["outcome"] in ("rows", "empty", "no_valid_sql", "no_sql")
        for stage in flow["stages"]:
            check_request(stage, workers)
        stages = [stage["stage"] for stage in flow["stages"]]
        assert len(set(stages)) > 1, "stages of one workflow"
        later = [stage for stage in flow["stages"] if stage["stage"] != stages[0]]
        assert sum(stage["cached_tokens"] for stage in later) > 0, "prefixes are reused"
    used = {stage["worker"] for flow in flows for stage in flow["stages"]}
    assert used == workers

    page = (tmp_path / "report.html").read_text()
    assert all(flow["workflow_id"] in page for flow in flows)


@pytest.mark.parametrize("moment", ["starting", "asking"])
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, descendants, moment: str) -> None:
    """`starting`: while the workers load; `asking`: while questions are under way."""
    awaited = {"starting": "worker-0: starting", "asking": " 1. "}[moment]
    with subprocess.Popen(
        command(tmp_path),
        env=descendants.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        lines = []
        for line in demo.stdout:
            lines.append(line)
            if awaited in line:
                break
        else:
            pytest.fail("".join(lines))
        assert len(descendants.alive()) >= 4
        began_s = time.monotonic()
        os.kill(demo.pid, signal.SIGINT)
        rest = demo.stdout.read()
        status = demo.wait(timeout=60)
    assert status == 130, "".join(lines) + rest
    assert time.monotonic() - began_s < 45
    assert descendants.left_after(5) == {}
    assert not (tmp_path / "report.json").exists()
