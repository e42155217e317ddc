"""Jobs in spawned processes: order kept, errors told, a dead process noticed."""

from __future__ import annotations

import functools
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hexgen_sglang.coordinator.tuning_config import TuningConfig
from hexgen_sglang.coordinator.tuning_messages import Start, line
from hexgen_sglang.core.errors import ConfigError, ProcessError
from hexgen_sglang.policies.settings import positive
from hexgen_sglang.tuner.runs import Runs


def test_results_come_in_the_order_of_the_jobs_and_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    with Runs(math.factorial, 2, lambda done, total: told.append((done, total))) as runs:
        assert runs(list(range(12))) == [math.factorial(n) for n in range(12)]
        assert runs([3]) == [6]
        assert runs([]) == []
    assert told == [*((done, 12) for done in range(1, 13)), (1, 1)]


def test_error_of_a_job_reaches_the_caller_and_the_processes_go_on() -> None:
    with Runs(functools.partial(positive, "rate"), 2) as runs:
        with pytest.raises(ConfigError, match="rate=-1"):
            runs([1.0, -1.0])
        assert runs([2.0]) == [2.0]


def test_dead_process_is_an_error_and_not_a_hang() -> None:
    with Runs(os._exit, 2) as runs, pytest.raises(ProcessError, match="died"):
        runs([3, 3])


def test_one_process_is_this_one() -> None:
    with Runs(lambda job: (job, os.getpid()), 1) as runs:
        assert runs([1, 2]) == [(1, os.getpid()), (2, os.getpid())]
    with pytest.raises(ConfigError, match="at least 1"):
        Runs(math.sqrt, 0)


def test_a_tuner_that_is_told_to_end_ends_at_once_and_without_complaint() -> None:
    """It is waiting for its next line then, in a thread."""
    profile = Path(__file__).parents[2] / "launch/configs/accelerators/a100.toml"
    tuning = TuningConfig(mode="advise", profiles={"a100": str(profile)}, engine="fcfs")
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "hexgen_sglang.tuner.shadow"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    ) as process:
        assert process.stdin is not None
        process.stdin.write(line(Start(tuning, "paper", "early", {"alpha": 0.4})))
        process.stdin.flush()
        deadline_s = time.monotonic() + 60
        while not _reads(process.pid):
            assert time.monotonic() < deadline_s, "it does not begin to read"
            time.sleep(0.05)
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, b"")


def _reads(pid: int) -> bool:
    """Whether it handles SIGTERM and has a second thread."""
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(row.split(":", 1) for row in rows)
    handled = int(status["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1
    return bool(handled) and int(status["Threads"]) > 1
