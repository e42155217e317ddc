"""What a running demo shows, on a terminal and elsewhere, and what it asks."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from hexgen_sglang.demo.live import Board, Flow, Lines, make_view
from hexgen_sglang.demo.run import is_right, pick_questions
from hexgen_sglang.text2sql.answer import Answer, AnswerOutcome, Question
from hexgen_sglang.text2sql.execution import Execution, SqlOutcome
from hexgen_sglang.text2sql.sample import sample_questions


def row(stage: str, outcome: str, worker: str = "worker-0") -> dict[str, Any]:
    return {"stage": stage, "outcome": outcome, "worker_id": worker}


def flow(*rows: dict[str, Any], **fields: Any) -> Flow:
    record = {"requests": list(rows), "ended": False} if rows else None
    return Flow(1, "How many bikes are there?", 30.0, 0.0, record=record, **fields)


WORKER = {
    "worker_id": "worker-0",
    "state": "ready",
    "num_in_flight": 3,
    "load": {"num_running": 2, "num_waiting": 1, "num_kv_tokens_used": 1234},
}


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=120), out


def test_a_flow_says_what_runs_and_what_waits() -> None:
    busy = flow(row("link", "completed"), *[row("draft", "running")] * 2, row("draft", "queued"))
    assert busy.now_doing() == "draft 1 queued 2 running"
    assert busy.num_done() == 1
    assert flow().now_doing() == ""


def test_lines_tell_each_change_once() -> None:
    screen, out = console(terminal=False)
    view = make_view(screen)
    assert isinstance(view, Lines)
    for elapsed_s in (1, 2, 9, 10, 19, 20):
        view.starting("worker-0", elapsed_s, "Load weight begin")
    assert out.getvalue().count("worker-0: starting") == 3
    first, second = flow(row("link", "running")), flow(row("draft", "queued"))
    for state in (first, first, second, second):
        view.update([WORKER], [state], 4.0)
    done = flow(row("draft", "completed"), result="3 rows", ended_s=9.0)
    view.update([WORKER], [done], 9.0)
    lines = [line for line in out.getvalue().splitlines() if "bikes" in line]
    assert [line.rsplit(": ", 1)[1] for line in lines] == ["link", "draft", "3 rows"]
    assert lines[0].startswith("[   4.0 s]  1. ")


def test_markup_in_a_question_is_shown_as_it_is() -> None:
    screen, out = console(terminal=False)
    odd = Flow(1, "[bold]What?[/bold]", None, 0.0, result="no_sql")
    Lines(screen).update([], [odd], 1.0)
    assert "[bold]What?[/bold]: no_sql" in out.getvalue()


def test_the_board_shows_workers_and_flows() -> None:
    screen, out = console(terminal=True)
    view = make_view(screen)
    assert isinstance(view, Board)
    view.starting("worker-0", 3.0, "loading")
    late = flow(row("draft", "running"))
    view.update([WORKER, {**WORKER, "worker_id": "worker-1", "load": None}], [late], 42.0)
    view.close()
    text = out.getvalue()
    for shown in ("loading", "worker-1", "1,234", "12 s late", "draft 1 running", "How many bikes"):
        assert shown in text


def test_questions_are_spread_over_the_sample() -> None:
    everything = list(sample_questions())
    assert pick_questions(len(everything)) == everything
    some = pick_questions(12)
    assert len({sample.question_id for sample in some}) == 12
    assert {sample.difficulty for sample in some} == {"easy", "medium", "hard"}


def answer(outcome: AnswerOutcome, *rows: tuple[Any, ...], truncated: bool = False) -> Answer:
    return Answer(Question("?"), outcome, "SELECT 1", rows=rows, truncated=truncated)


GOLD = Execution("SELECT 1", SqlOutcome.ROWS, rows=((1, "a"), (2, "b")))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (answer(AnswerOutcome.ROWS, (2.0, "b"), (1, "a")), True),
        (answer(AnswerOutcome.ROWS, (1, "a")), False),
        (answer(AnswerOutcome.EMPTY), False),
        (answer(AnswerOutcome.ROWS, (1, "a"), truncated=True), None),
        (answer(AnswerOutcome.NO_VALID_SQL), None),
        (answer(AnswerOutcome.NO_SQL), None),
    ],
)
def test_an_answer_is_right_when_its_rows_are_the_gold_ones(given: Answer, expected: Any) -> None:
    assert is_right(given, GOLD) is expected
