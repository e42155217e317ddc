"""Every metric is in docs/metrics.md, and what dashboards and rules ask for is a metric."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from hexgen_sglang.coordinator.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "metrics.md"
GRAFANA = ROOT / "launch" / "configs" / "grafana"
KINDS = {Counter: "counter", Gauge: "gauge", Histogram: "histogram"}
UNITS = ("_seconds", "_ratio", "_bytes", "_info")


def known() -> dict[str, MetricWrapperBase]:
    """Every metric of a coordinator, by the name that a query uses."""
    found = [one for one in vars(Metrics()).values() if isinstance(one, MetricWrapperBase)]
    return {name_of(one): one for one in found}


def name_of(metric: MetricWrapperBase) -> str:
    (family,) = metric.describe()
    return f"{family.name}_total" if isinstance(metric, Counter) else str(family.name)


def row_of(metric: MetricWrapperBase) -> str:
    """Its line in the reference."""
    (family,) = metric.describe()
    labels = ", ".join(f"`{name}`" for name in metric._labelnames) or "-"
    kind = KINDS[type(metric)]
    return f"| `{name_of(metric)}` | {kind} | {labels} | {family.documentation} |"


def asked(expression: str) -> set[str]:
    """The metrics in a query, without the endings of a histogram's series."""
    names = re.findall(r"\bhexgen_[a-z0-9_]+\b", expression)
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def queries(value: Any) -> Iterator[str]:
    """Every query below."""
    if isinstance(value, list):
        for one in value:
            yield from queries(one)
    elif isinstance(value, dict):
        for name, one in value.items():
            if isinstance(one, str) and name.lower().endswith(("query", "expr")):
                yield one
            yield from queries(one)


def test_the_reference_has_exactly_the_metrics_that_there_are() -> None:
    rows = {line for line in REFERENCE.read_text().splitlines() if line.startswith("| `hexgen_")}
    wanted = {row_of(metric) for metric in known().values()}
    ours = {row for row in rows if "| worker |" not in row}
    assert ours == wanted, "docs/metrics.md lacks:\n" + "\n".join(sorted(wanted - ours))


def test_the_reference_has_the_plugins_metrics_too() -> None:
    sources = (ROOT / "hexgen_sglang" / "plugin").rglob("*.py")
    made = re.compile(r'(?:Counter|Metric|Gauge|Histogram)\(\s*"(hexgen_\w+)"')
    wanted = {f"{name}_total" for file in sources for name in made.findall(file.read_text())}
    rows = [line for line in REFERENCE.read_text().splitlines() if "| worker |" in line]
    assert {line.split("`")[1] for line in rows} == wanted


def test_names_follow_prometheus() -> None:
    for name, metric in known().items():
        assert name.startswith("hexgen_")
        assert not name.endswith(("_ms", "_frac", "_percent", "_total_total"))
        if isinstance(metric, Histogram):
            assert name.endswith(UNITS), name
        if not isinstance(metric, Counter):
            assert not name.endswith("_total"), name
        assert {"le", "quantile", "job", "instance"}.isdisjoint(metric._labelnames)


def test_the_grafana_dashboard_asks_for_metrics_that_exist() -> None:
    board = json.loads((GRAFANA / "hexgen.json").read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    expressions = [row["expr"] for panel in panels for row in panel.get("targets", ())]
    assert len(expressions) > 20
    for expression in expressions:
        assert asked(expression), expression
        assert asked(expression) <= set(known()), expression
        assert expression.count("(") == expression.count(")")
        assert expression.count("{") == expression.count("}")
    for variable in board["templating"]["list"]:
        assert asked(" ".join(queries(variable))) <= set(known())
    places = [panel["gridPos"] for panel in panels]
    for number, one in enumerate(places):
        assert one["x"] + one["w"] <= 24
        for other in places[number + 1 :]:
            is_beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            is_above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
            assert is_beside or is_above, (one, other)


def test_scaling_rules_ask_for_metrics_that_exist() -> None:
    found = set()
    for file in (ROOT / "launch" / "kubernetes").rglob("*.yaml"):
        for document in yaml.safe_load_all(file.read_text()):
            found |= asked(" ".join(queries(document)))
    assert found
    assert found <= set(known())


def test_the_scrape_example_finds_the_coordinators_default_address() -> None:
    plain = yaml.safe_load((GRAFANA / "prometheus.yml").read_text())
    jobs = {row["job_name"]: row for row in plain["scrape_configs"]}
    assert jobs["hexgen-coordinator"]["static_configs"][0]["targets"] == ["127.0.0.1:8000"]
