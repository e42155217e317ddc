"""The evaluation's report as one HTML page, without anything from elsewhere."""

from __future__ import annotations

import jinja2

from hexgen_sglang.text2sql.evaluation.report import EvalReport, Figures


def page_of(report: EvalReport) -> str:
    """The page; all text of questions, models and databases is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hexgen_sglang.text2sql.evaluation", "template"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["share"] = lambda share: "-" if share is None else f"{100 * share:.1f} %"
    environment.filters["seconds"] = lambda time_s: "-" if time_s is None else f"{time_s:.2f}"
    groups: list[tuple[str, Figures]] = [("all", report)]
    groups += [(f"difficulty: {name}", one) for name, one in report.by_difficulty.items()]
    if len(report.by_database) > 1:
        groups += [(f"database: {name}", one) for name, one in report.by_database.items()]
    return environment.get_template("page.html").render(report=report, groups=groups)
