"""Docker files: linted, and what they copy is there. No image is built: that needs an engine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "launch" / "docker").glob("*.Dockerfile"))
BINARIES = Path(sys.executable).parent


def instructions(path: Path) -> list[tuple[str, str]]:
    """Instruction and the rest of each, without comments; continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    joined = text.replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line]  # type: ignore[misc]


def context_sources(path: Path) -> list[str]:
    """What is copied from the build context."""
    rows = [rest.split() for name, rest in instructions(path) if name == "COPY"]
    return [name for row in rows if not row[0].startswith("--from") for name in row[:-1]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_hadolint_has_no_complaint(path: Path) -> None:
    done = subprocess.run(
        [BINARIES / "hadolint", str(path)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_copied_is_in_the_context(path: Path) -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    for name in context_sources(path):
        assert (ROOT / name).exists()
        assert f"!{name}" in ignore


def test_the_package_can_be_made_from_what_is_copied(tmp_path: Path) -> None:
    """With every file that belongs to it: a page without its assets would start and be empty."""
    source = tmp_path / "source"
    source.mkdir()
    for name in set.intersection(*(set(context_sources(path)) for path in FILES)):
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("hexgen_sglang-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("hexgen_sglang", "patches/hexgen_patches", "kernels/hexgen_kernels"):
        base = (ROOT / folder).parent
        wanted = [p for p in (ROOT / folder).rglob("*") if belongs_to_the_package(p)]
        assert wanted
        missing = [p for p in wanted if p.relative_to(base).as_posix() not in names]
        assert not missing


def belongs_to_the_package(path: Path) -> bool:
    if path.suffix == ".py":
        return (path.parent / "__init__.py").is_file()
    return path.suffix in {".html", ".js", ".css", ".j2", ".sql"}


def test_the_workers_image_has_the_tested_sglang() -> None:
    version = (ROOT / "launch" / "setup" / "sglang-version.txt").read_text().strip()
    text = (ROOT / "launch" / "docker" / "worker.Dockerfile").read_text()
    assert f"ARG SGLANG_IMAGE=lmsysorg/sglang:v{version}\n" in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_images_run_what_there_is_as_nobody(path: Path) -> None:
    found = dict(instructions(path))
    assert found["USER"] == "10001"
    entry = json.loads(found["ENTRYPOINT"])
    if entry[0] == "hexgen-sglang":
        command = [str(BINARIES / "hexgen-sglang"), *entry[1:], "--help"]
        assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    else:
        assert entry == ["python3", "-m", "sglang.launch_server"]
