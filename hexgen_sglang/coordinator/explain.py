"""The story of one workflow: `GET /workflows/{id}/explain`. Plain data from the tracker's records.

Where its time went, pass by pass through its stages, against the budgets it was given; what was
decided about each request, and what the next best would have cost. Instants are seconds since
the workflow's first request was accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hexgen_sglang.coordinator.access import ANYBODY, Caller
from hexgen_sglang.coordinator.decisions import Decision
from hexgen_sglang.coordinator.reports import workflow_row
from hexgen_sglang.coordinator.workflows import RequestRecord, Visit, Workflow
from hexgen_sglang.policies.dispatch import Price


def explanation(
    workflow: Workflow, price_terms: Sequence[str], now_s: float, caller: Caller = ANYBODY
) -> dict[str, Any]:
    """What is told of the workflow to `caller` at `now_s`.

    `price_terms`: names of the numbers in the prices of its decisions.
    """
    passes = _passes(workflow, now_s)
    return {
        **workflow_row(workflow, now_s, caller),
        "passes": passes,
        "late": _late(workflow, passes, now_s),
        "decisions": [
            _decision_row(row, price_terms, workflow.started_s) for row in workflow.decisions
        ],
        "num_decisions_forgotten": workflow.decisions.num_forgotten,
    }


def _passes(workflow: Workflow, now_s: float) -> list[dict[str, Any]]:
    """Every pass through a stage, by start, with the request that ended it last."""
    members = _members(workflow)
    rows: list[dict[str, Any]] = []
    num_visits: dict[str, int] = {}
    last_end_s = workflow.started_s
    for number, visit in enumerate(workflow.visits):
        num_visits[visit.stage] = num_visits.get(visit.stage, 0) + 1
        end_s = now_s if visit.num_open else visit.end_s
        elapsed_s = end_s - visit.start_s
        slowest = max(members[number], key=lambda r: _end_s(r, now_s), default=None)
        rows.append(
            {
                "stage": visit.stage,
                "visit": num_visits[visit.stage],
                "num_requests": visit.num_requests,
                "num_open": visit.num_open,
                "start_s": visit.start_s - workflow.started_s,
                "gap_before_s": max(0.0, visit.start_s - last_end_s),
                "elapsed_s": elapsed_s,
                "budget_s": visit.budget_s,
                "overrun_s": None if visit.budget_s is None else elapsed_s - visit.budget_s,
                "slowest": None if slowest is None else _parts(slowest, visit, now_s),
            }
        )
        last_end_s = max(last_end_s, end_s)
    return rows


def _members(workflow: Workflow) -> list[list[RequestRecord]]:
    """The records of each visit; passes through one stage follow each other."""
    members: list[list[RequestRecord]] = [[] for _ in workflow.visits]
    by_stage: dict[str, list[int]] = {}
    for number, visit in enumerate(workflow.visits):
        by_stage.setdefault(visit.stage, []).append(number)
    for record in workflow.records.values():
        begun = [
            number
            for number in by_stage.get(record.stage, ())
            if workflow.visits[number].start_s <= record.accepted_s
        ]
        if begun:
            members[begun[-1]].append(record)
    return members


def _parts(record: RequestRecord, visit: Visit, now_s: float) -> dict[str, Any]:
    """Where the time of a request went; null where nobody told.

    Without a link, `prefill_s` of a streamed answer includes the engine's queue, and nothing
    divides the time of an answer in one piece.
    """
    end_s = _end_s(record, now_s)
    sent_s = record.dispatched_s
    row: dict[str, Any] = {
        "request_id": record.request_id,
        "sibling_index": record.sibling_index,
        "worker_id": record.worker_id or None,
        "retries": record.retries,
        "moves": record.moves,
        "before_s": record.accepted_s - visit.start_s,
        "coordinator_queue_s": (end_s if sent_s is None else sent_s) - record.accepted_s,
        "engine_queue_s": record.engine_queue_s,
        "prefill_s": record.prefill_s,
        "decode_s": record.decode_s,
        "at_worker_s": None if sent_s is None else end_s - sent_s,
    }
    if sent_s is not None and record.prefill_s is None and record.first_byte_s is not None:
        row["prefill_s"] = record.first_byte_s - sent_s
        row["decode_s"] = end_s - record.first_byte_s
    return row


def _late(
    workflow: Workflow, passes: Sequence[dict[str, Any]], now_s: float
) -> dict[str, Any] | None:
    """By how much the deadline was missed, and the passes over budget, the worst first.

    A pass without a budget came when nothing was known of its stage; such follow, by length.
    None while the workflow is not late.
    """
    end_s = now_s if workflow.ended_s is None else workflow.ended_s
    if workflow.deadline_s is None or end_s <= workflow.deadline_s:
        return None
    over = [row for row in passes if row["overrun_s"] is not None and row["overrun_s"] > 0]
    over.sort(key=lambda row: -row["overrun_s"])
    unknown = [row for row in passes if row["overrun_s"] is None]
    unknown.sort(key=lambda row: -row["elapsed_s"])
    return {
        "by_s": end_s - workflow.deadline_s,
        "gaps_s": sum(row["gap_before_s"] for row in passes),
        "causes": [_cause(row) for row in (*over, *unknown)],
    }


def _cause(row: dict[str, Any]) -> dict[str, Any]:
    """A pass that made the workflow late: its overrun, and what its last request spent on what."""
    parts = row["slowest"] or {}
    waits = [parts.get("coordinator_queue_s"), parts.get("engine_queue_s")]
    return {
        "stage": row["stage"],
        "visit": row["visit"],
        "elapsed_s": row["elapsed_s"],
        "budget_s": row["budget_s"],
        "overrun_s": row["overrun_s"],
        "queueing_s": sum(wait for wait in waits if wait is not None),
        "prefill_s": parts.get("prefill_s"),
        "decode_s": parts.get("decode_s"),
    }


def _decision_row(row: Decision, price_terms: Sequence[str], started_s: float) -> dict[str, Any]:
    view = row.view
    slack_s = view.slack_s(row.first_s)
    prices = [_price_row(price, price_terms) for price in row.prices]
    return {
        "request_id": view.request_id,
        "stage": view.stage,
        "sibling_index": view.sibling_index,
        "first_s": row.first_s - started_s,
        "last_s": row.last_s - started_s,
        "num_times": row.num_times,
        "picked": row.picked,
        "waits_for": row.waits_for(),
        "inputs": {
            "num_candidates": row.num_candidates,
            "prompt_tokens": view.num_prompt_tokens,
            "expected_output_tokens": view.expected_output_tokens,
            "slack_s": slack_s,
            "predicted_stage_s": view.predicted_stage_s,
            "predicted_remaining_s": view.predicted_remaining_s,
        },
        "winner": prices[0] if prices else None,
        "runner_up": prices[1] if len(prices) > 1 else None,
    }


def _price_row(price: Price, price_terms: Sequence[str]) -> dict[str, Any]:
    return {
        "worker_id": price.worker_id,
        "has_room": price.has_room,
        "cached_tokens": price.num_cached_tokens,
        "num_in_flight": price.num_in_flight,
        "terms": dict(zip(price_terms, price.terms, strict=True)),
    }


def _end_s(record: RequestRecord, now_s: float) -> float:
    return now_s if record.finished_s is None else record.finished_s
