"""Jobs in spawned processes: order kept, errors told, a dead process noticed."""

from __future__ import annotations

import functools
import math
import os

import pytest

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
