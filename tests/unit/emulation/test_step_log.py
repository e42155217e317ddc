"""The step log on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.plugin.emulation.accounting import StepAccounting, StepRecord
from hexgen_sglang.plugin.emulation.step_log import StepLog


def test_every_step_is_a_line_and_the_summary_is_complete_after_closing(tmp_path: Path) -> None:
    accounting = StepAccounting(2.0)
    log = StepLog(tmp_path / "worker", {"profile": "a100"}, accounting.summary)
    for number in range(500):
        record = StepRecord(float(number), "decode", 1, 0, 10, 1.0, 1.0, 0.0, 0.002)
        accounting.add(record, begins_busy_period=number == 0)
        log.add(record)
    log.close()
    lines = (tmp_path / "worker" / "steps.jsonl").read_text().splitlines()
    header, *steps = [json.loads(line) for line in lines]
    assert header == {"profile": "a100"}
    assert [row["start_s"] for row in steps] == [float(number) for number in range(500)]
    assert steps[0].keys() >= {"kind", "predicted_s", "slept_s", "overhead_s", "num_requests"}
    summary = json.loads((tmp_path / "worker" / "summary.json").read_text())
    assert summary["num_steps"]["decode"] == 500
    assert summary["time_scale"] == 2.0


def test_the_summary_is_there_before_the_first_step(tmp_path: Path) -> None:
    log = StepLog(tmp_path, {}, StepAccounting(1.0).summary)
    assert json.loads((tmp_path / "summary.json").read_text())["valid"] is None
    log.close()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="--hexgen-step-log"):
        StepLog(tmp_path / "file", {}, StepAccounting(1.0).summary)
