"""The site is built strictly, needs nobody else's servers, and says what the code says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from hexgen_sglang.cli.main import COMMANDS
from hexgen_sglang.cluster.config import load_cluster
from hexgen_sglang.coordinator import openapi, placement_routes
from hexgen_sglang.coordinator.config import CoordinatorConfig, CoordinatorFile, convert
from hexgen_sglang.coordinator.metrics import Metrics
from hexgen_sglang.policies.dispatch import DISPATCH
from hexgen_sglang.policies.ordering import ORDERING
from hexgen_sglang.protocol.tag import WorkflowTag

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# References of a page to something that a browser would load; links to click are no such thing.
LOADED = re.compile(
    r"<(?:script|link|img|iframe|object)\b[^>]*?(?:src|href|data)=\"?(https?://[^\s\">]+)"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(folder),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = sorted(site.glob("*.html"))
    assert len(pages) > 12
    foreign = {url for page in pages for url in LOADED.findall(page.read_text())}
    assert foreign == set()


def test_pictures_are_there_and_need_nothing_else(site: Path) -> None:
    shown = {
        name
        for page in site.glob("*.html")
        for name in re.findall(r"pictures/[\w-]+\.svg", page.read_text())
    }
    assert len(shown) >= 3
    for name in shown:
        text = (site / name).read_text()
        assert "<title" in text
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace("HTTP", "")


def test_reference_pages_hold_everything_that_there_is(site: Path) -> None:
    for page, names in {
        "policies": [*DISPATCH, *ORDERING],
        "commands": [f"hexgen-sglang {name}" for name in COMMANDS],
        "configuration": CoordinatorConfig.__struct_fields__,
        "tags": WorkflowTag.__struct_fields__,
    }.items():
        text = (site / f"{page}.html").read_text()
        assert [name for name in names if name not in text] == [], page
        assert "generated:" not in text


def test_security_and_metrics_pages_are_part_of_it(site: Path) -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / page.with_suffix(".html").name).is_file()
        assert f"{page.name}\n" in (ROOT / "mkdocs.yml").read_text(), f"{page.name} is in no menu"


def test_routes_exist(documented: list[Any]) -> None:
    bodies = {"POST /workers": WorkflowTag, "PATCH /workflows/{workflow_id}": WorkflowTag}
    bodies |= placement_routes.BODIES
    paths = openapi.document(bodies, needs_key=True, has_open_metrics=False)["paths"]
    known = {
        (method.upper(), re.sub(r"\{\w+\}", "ID", path)) for path in paths for method in paths[path]
    }
    known |= {("GET", "/dashboard"), ("GET", "/ask")}
    for page in PAGES:
        # "..." stands for several.
        for method, path in re.findall(r"`(GET|POST|PATCH|DELETE) (/[\w/{}.]*)", page.read_text()):
            if path.endswith("..."):
                continue
            wanted = (method, re.sub(r"\{\w+\}|\bID\b", "ID", path))
            assert wanted in known, f"{page.name}: {method} {path}"


def test_metrics_exist() -> None:
    exposition = Metrics().exposition().decode()
    for name in ("operations.md", "kubernetes.md"):
        for metric in re.findall(r"`(hexgen_\w+)`", (ROOT / "docs" / name).read_text()):
            assert (
                f"# HELP {metric} " in exposition
                or f"# TYPE {metric.removesuffix('_total')} " in exposition
            )


def test_paths_in_the_repository_exist() -> None:
    for page in PAGES:
        for path in re.findall(
            r"`((?:launch|tests|docs|patches|kernels|hexgen_sglang)/[\w./-]+)`", page.read_text()
        ):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_configurations_are_accepted(documented: list[Any], tmp_path: Path) -> None:
    found = [fence for fence in documented if fence.language == "toml"]
    assert len(found) >= 2
    for fence in found:
        if "[cluster]" in fence.text:
            (tmp_path / "cluster.toml").write_text(fence.text)
            load_cluster(tmp_path / "cluster.toml")
        else:
            convert(tomllib.loads(fence.text), CoordinatorFile, str(fence))


def test_python_is_python(documented: list[Any]) -> None:
    found = [fence for fence in documented if fence.language == "python"]
    assert found
    for fence in found:
        # Blocks may await, as in a notebook.
        flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        compile(fence.text, str(fence), "exec", flags)
