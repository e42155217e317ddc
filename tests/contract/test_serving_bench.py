"""What `kernels/bench/serving.py` makes of a GPU's answers, on answers that are made up here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "kernels" / "bench" / "serving.py"


@pytest.fixture(scope="module")
def serving() -> ModuleType:
    spec = importlib.util.spec_from_file_location("serving_bench", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def served(rate: float, answer: list[tuple[int, float]], reason: str) -> dict[str, Any]:
    return {
        "answers": [answer],
        "rates": {8: {"median": rate, "least": rate, "most": rate}},
        "layer_steps": {f'steps{{backend="hexgen_shared_prefix",reason="{reason}"}}': 64.0},
    }


def test_answers_are_compared_up_to_where_they_part(serving: ModuleType) -> None:
    left = [[(5, -1.0), (6, -2.0), (7, -3.0)], [(8, -1.0)]]
    right = [[(5, -1.01), (9, -2.05), (7, -9.0)], [(8, -1.0)]]
    compared, worst = serving.difference(left, right)
    assert compared == 3
    assert worst == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("logprob", "reason", "ok"),
    [(-1.01, "shared", True), (-1.2, "shared", False), (-1.01, "nothing_worth_sharing", False)],
)
def test_a_run_that_shared_nothing_or_says_something_else_is_no_success(
    serving: ModuleType, logprob: float, reason: str, ok: bool
) -> None:
    engine, ours = served(100.0, [(5, -1.0)], ""), served(250.0, [(5, logprob)], reason)
    found = serving.comparison(engine, ours)
    assert found["ok"] is ok
    assert [row["ratio"] for row in found["tokens_per_s"]] == [2.5]


@pytest.mark.timeout(300)  # importing SGLang takes 10 to 60 s on a busy machine
def test_sglang_takes_the_servers_flags(
    serving: ModuleType,
    launch_problems: Callable[[list[list[str]]], list[str | None]],
    tmp_path: Path,
) -> None:
    model = serving.write_model(tmp_path)
    lines = [
        serving.worker(backend, model).command()[3:]
        for backend in (serving.TRITON, serving.SHARED_PREFIX)
    ]
    assert launch_problems(lines) == [None, None]
