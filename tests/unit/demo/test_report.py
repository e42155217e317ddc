"""The demo's report and page from recorded facts: numbers, failures, escaping, offline."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest

from hexgen_sglang.demo.page import render_page, tiles
from hexgen_sglang.demo.report import Report, WorkflowFacts, build_report


def request(stage: str, worker: str, accepted_s: float, finished_s: float, **more: Any) -> Any:
    row = {
        "request_id": f"{stage}-{accepted_s}",
        "stage": stage,
        "sibling_index": 0,
        "siblings": 1,
        "worker_id": worker,
        "accepted_s": accepted_s,
        "dispatched_s": accepted_s + 0.5,
        "first_byte_s": accepted_s + 1,
        "finished_s": finished_s,
        "prompt_tokens": 100,
        "cached_tokens": 40,
        "output_tokens": 7,
        "outcome": "completed",
        "retries": 0,
    }
    return {**row, **more}


def facts(workflow_id: str = "w1", started_s: float = 2.0, **more: Any) -> WorkflowFacts:
    fields: dict[str, Any] = {
        "workflow_id": workflow_id,
        "question": "How many artists?",
        "started_s": started_s,
        "deadline_s": 30.0,
        "sql": "SELECT COUNT(*) FROM artists",
        "outcome": "rows",
        "detail": "",
        "num_rows": 1,
        "is_right": None,
        "skipped": (),
        "notes": (),
        "record": {
            "requests": [
                request("link_schema", "worker-0", 0.0, 4.0),
                request("generate_candidate", "worker-1", 4.0, 9.0, siblings=2),
                request("generate_candidate", "worker-0", 4.0, 8.0, siblings=2, sibling_index=1),
            ],
            "met_deadline": True,
            "e2e_s": 9.1,
        },
    }
    return WorkflowFacts(**{**fields, **more})


def worker(worker_id: str) -> dict[str, Any]:
    return {
        "worker_id": worker_id,
        "url": "http://127.0.0.1:1",
        "model": "m",
        "hardware": "cpu",
        "sglang_version": "0.5.23",
    }


def report_of(
    *workflows: WorkflowFacts, workers: tuple[str, ...] = ("worker-0", "worker-1")
) -> Any:
    return build_report(workflows, [worker(name) for name in workers], 11.0, {"model": "m"})


def test_the_json_has_the_promised_fields() -> None:
    report = json.loads(msgspec.json.encode(report_of(facts())))
    assert set(report) >= {"workers", "workflows"}
    (flow,) = report["workflows"]
    assert set(flow) >= {"workflow_id", "met_deadline", "e2e_s", "sql", "outcome", "stages"}
    for stage in flow["stages"]:
        assert set(stage) >= {
            *("stage", "worker", "prompt_tokens", "cached_tokens", "output_tokens", "e2e_s"),
            *("start_s", "sibling_index", "siblings"),
        }
    assert report["failures"] == []
    assert msgspec.convert(report, Report) == report_of(facts())


def test_instants_are_moved_to_the_beginning_of_the_run() -> None:
    (flow,) = report_of(facts(started_s=2.0)).workflows
    first, second, third = flow.stages
    assert (first.start_s, first.dispatched_s, first.first_byte_s, first.end_s) == (2, 2.5, 3, 6)
    assert first.e2e_s == 4.0
    assert [(r.stage, r.sibling_index, r.start_s) for r in (second, third)] == [
        ("generate_candidate", 0, 6.0),
        ("generate_candidate", 1, 6.0),
    ]


def test_workers_are_credited_with_what_they_ran() -> None:
    first, second = report_of(facts()).workers
    assert (first.num_requests, first.prompt_tokens, first.cached_tokens) == (2, 200, 80)
    assert (second.num_requests, second.output_tokens) == (1, 7)
    # worker-0: 2.5 to 6 and 6.5 to 10; worker-1: 6.5 to 11
    assert (first.busy_s, second.busy_s) == (7.0, 4.5)


def test_busy_time_counts_overlapping_requests_once() -> None:
    record = {
        "requests": [
            request("a", "worker-0", 0, 10),
            request("b", "worker-0", 1, 5),
            request("c", "worker-0", 2, 11),
        ],
        "met_deadline": None,
        "e2e_s": 11.0,
    }
    (first,) = report_of(facts(started_s=0.0, record=record), workers=("worker-0",)).workers
    assert first.busy_s == 10.5


def test_a_request_that_never_left_the_queue_has_no_worker() -> None:
    unsent = request(
        "a",
        "",
        0.0,
        3.0,
        dispatched_s=None,
        first_byte_s=None,
        prompt_tokens=None,
        cached_tokens=None,
        output_tokens=None,
        outcome="failed",
    )
    record = {"requests": [unsent], "met_deadline": False, "e2e_s": 3.0}
    report = report_of(facts(record=record, outcome="model_failed", detail="HTTP 503"))
    (stage,) = report.workflows[0].stages
    assert stage.worker is None
    assert stage.e2e_s == 3.0
    assert report.workflows[0].total("prompt_tokens") == 0
    assert "HTTP 503" in render_page(report)


@pytest.mark.parametrize(
    ("workflows", "workers", "reason"),
    [
        ([facts(outcome="model_failed", detail="boom")], ("worker-0", "worker-1"), "w1: boom"),
        ([facts(outcome="model_failed")], ("worker-0", "worker-1"), "w1: model_failed"),
        ([facts(), facts("w2", record=None)], ("worker-0", "worker-1"), "w2: the coordinator saw"),
        ([facts()], ("worker-0", "worker-1", "idle"), "worker idle was not used"),
        ([facts()], (), "knows no worker"),
        ([], ("worker-0",), "no question"),
    ],
)
def test_what_makes_a_run_a_failure(workflows: Any, workers: Any, reason: str) -> None:
    report = report_of(*workflows, workers=workers)
    assert any(reason in failure for failure in report.failures), report.failures
    assert "This run failed" in render_page(report)


@pytest.mark.parametrize("outcome", ["rows", "empty", "no_valid_sql", "no_sql"])
def test_poor_sql_is_no_failure(outcome: str) -> None:
    assert report_of(facts(outcome=outcome)).failures == []


def test_tiles_sum_up_the_run() -> None:
    late = facts("w2", record={**facts().record, "met_deadline": False, "e2e_s": 40.0})  # type: ignore[dict-item]
    figures = {tile["label"]: tile["figure"] for tile in tiles(report_of(facts(), late))}
    assert figures["deadlines met"] == "1 of 2"
    assert figures["LLM requests"] == "6"
    assert figures["prompt tokens from cache"] == "40 %"
    assert figures["questions whose SQL ran"] == "2 of 2"
    assert figures["median latency"] == "24.6 s"


class _Page(HTMLParser):
    """What of a page could reach out, and the data inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.scripts: list[dict[str, str | None]] = []
        self.data = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag == "script":
            self.scripts.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        if self.scripts and self.scripts[-1].get("id") == "report" and not self.data:
            self.data = data


def test_the_page_is_self_contained_and_holds_the_report() -> None:
    text = render_page(report_of(facts()))
    page = _Page()
    page.feed(text)
    assert page.references == []
    assert not re.search(r"@import|url\(", text)
    assert json.loads(page.data) == msgspec.to_builtins(report_of(facts()))


def test_text_of_models_and_questions_cannot_become_markup() -> None:
    hostile = "</script><script>alert(1)</script><b>&"
    text = render_page(report_of(facts(question=hostile, sql=hostile, detail=hostile)))
    page = _Page()
    page.feed(text)
    assert len(page.scripts) == 2, "the data and our own script"
    assert "<b>&" not in text
    assert json.loads(page.data)["workflows"][0]["question"] == hostile


def test_a_run_without_any_request_still_makes_a_page() -> None:
    text = render_page(report_of(workers=()))
    assert "no question was asked" in text
