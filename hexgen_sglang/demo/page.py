"""The page of a demo run: one HTML file that needs no network, made from the report alone.

Pure: a report in, HTML text out. Style, script and template lie in the folder `template`.
"""

from __future__ import annotations

import statistics
from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hexgen_sglang.demo.report import Report

OUTCOME_WORDS = {
    "empty": "ran, no rows",
    "no_valid_sql": "none that runs",
    "no_sql": "none was written",
    "model_failed": "requests failed",
}
RAN = ("rows", "empty")


def render_page(report: Report) -> str:
    """The whole page; every text of the report is escaped."""
    environment = Environment(
        loader=PackageLoader("hexgen_sglang.demo", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    return template.render(
        report=report,
        tiles=tiles(report),
        data=msgspec.to_builtins(report),
        seconds=_seconds,
        count=_count,
        outcome=outcome_words,
        css=_file(environment, "report.css"),
        script=_file(environment, "report.js"),
    )


def tiles(report: Report) -> list[dict[str, str]]:
    """The figures on top of the page: label and figure."""
    flows = report.workflows
    requests = [request for flow in flows for request in flow.stages]
    prompt = sum(flow.total("prompt_tokens") for flow in flows)
    cached = sum(flow.total("cached_tokens") for flow in flows)
    latencies = [flow.e2e_s for flow in flows if flow.e2e_s is not None]
    with_deadline = [flow for flow in flows if flow.deadline_s is not None]
    met = sum(flow.met_deadline is True for flow in with_deadline)
    figures = [
        ("deadlines met", f"{met} of {len(with_deadline)}"),
        ("median latency", _seconds(statistics.median(latencies) if latencies else None)),
        ("whole run", _seconds(report.duration_s)),
        ("LLM requests", _count(len(requests))),
        ("prompt tokens from cache", f"{100 * cached / prompt:.0f} %" if prompt else "-"),
        ("questions whose SQL ran", f"{sum(f.outcome in RAN for f in flows)} of {len(flows)}"),
    ]
    return [{"label": label, "figure": figure} for label, figure in figures]


def outcome_words(outcome: str, num_rows: int | None, is_right: bool | None = None) -> str:
    """What came of a question's SQL, in words; arguments as in `WorkflowEntry`."""
    words = OUTCOME_WORDS.get(outcome, outcome)
    if outcome == "rows":
        words = f"{_count(num_rows)} row" + ("" if num_rows == 1 else "s")
    if is_right is None:
        return words
    return f"{words}, {'right' if is_right else 'not the right ones'}"


def _file(environment: Environment, name: str) -> Markup:
    """A file of ours as it is: style and script are not to be escaped."""
    loader: Any = environment.loader
    return Markup(loader.get_source(environment, name)[0])


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
