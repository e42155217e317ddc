"""Sources of the supported SGLang versions, downloaded once, read, never installed; what SGLang
says of argument vectors; and the blocks of code of the documentation.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hexgen_sglang.plugin.surface import SourceTree

DOWNLOAD_TIMEOUT_S = 240


def sources_of(version: str) -> Path:
    """The package folder `sglang` of a version, in the user's cache.

    Fails the test when the wheel cannot be had: without it nothing is known of that version.
    """
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "hexgen-sglang" / "sglang-sources" / version
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
            unpack(download(version, Path(draft)), Path(draft) / "sources", version)
            try:
                (Path(draft) / "sources").rename(folder)
            except OSError:
                assert folder.is_dir(), "another process was not first, so this is an error"
    return folder / "sglang"


def download(version: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--dest", str(folder), f"sglang=={version}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)
        reason = done.stderr.strip()
    except subprocess.TimeoutExpired:
        reason = f"no end after {DOWNLOAD_TIMEOUT_S} s"
    wheels = list(folder.glob("sglang-*.whl"))
    if len(wheels) != 1:
        pytest.fail(
            f"the sources of SGLang {version} cannot be downloaded, so nobody knows whether the "
            f"plugin works with it: {' '.join(command)}: {reason}",
            pytrace=False,
        )
    return wheels[0]


def unpack(wheel: Path, folder: Path, version: str) -> None:
    """Extract the Python sources, which the wheel says are of this version."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"sglang-{version}.dist-info/METADATA").decode()
        assert f"\nVersion: {version}\n" in metadata
        for name in archive.namelist():
            if name.startswith("sglang/") and name.endswith(".py"):
                archive.extract(name, folder)


@pytest.fixture(scope="session")
def sglang_tree() -> Callable[[str], SourceTree]:
    """`sglang_tree("0.5.23")`: the sources of a version; parsed files are kept."""
    return functools.cache(lambda version: SourceTree(sources_of(version)))


@pytest.fixture
def renamed_tree(
    sglang_tree: Callable[[str], SourceTree], tmp_path: Path
) -> Callable[[str, str], Path]:
    """`renamed_tree(version, target)`: sources in which one function or class has another name."""

    def make(version: str, target: str) -> Path:
        root = tmp_path / "sglang"
        source = sglang_tree(version).root
        shutil.copytree(source, root, copy_function=os.symlink)
        *owners, name = target.split(".")[1:]
        path = root
        while not path.with_suffix(".py").is_file():
            path /= owners.pop(0)
        path = path.with_suffix(".py")
        text = path.read_text(encoding="utf-8")
        for keyword in ("def", "class"):
            text = text.replace(f"{keyword} {name}(", f"{keyword} renamed_{name}(")
            text = text.replace(f"{keyword} {name}:", f"{keyword} renamed_{name}:")
        path.unlink()
        path.write_text(text, encoding="utf-8")
        return root

    return make


_PARSE_LAUNCH_LINES = """
import argparse, contextlib, io, json, sys
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.server_args import ServerArgs
from hexgen_sglang.core.errors import ConfigError
from hexgen_sglang.plugin.flags import config_from
parser = argparse.ArgumentParser(exit_on_error=False)
ServerArgs.add_cli_args(parser)
problems = []
for line in json.load(sys.stdin):
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            config_from(parser.parse_args(line))
        problems.append(None)
    except (SystemExit, argparse.ArgumentError, ConfigError) as error:
        problems.append(errors.getvalue() or str(error))
print(json.dumps(problems))
"""


@pytest.fixture(scope="session")
def launch_problems() -> Callable[[list[list[str]]], list[str | None]]:
    """What SGLang's own parser and our plugin say against argument vectors of launch_server."""

    def problems(lines: list[list[str]]) -> list[str | None]:
        done = subprocess.run(
            [sys.executable, "-c", _PARSE_LAUNCH_LINES],
            input=json.dumps(lines),
            env={**os.environ, "SGLANG_PLATFORM": "hexgen_torch_cpu"},
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stderr
        found: list[str | None] = json.loads(done.stdout.splitlines()[-1])
        return found

    return problems


@dataclass(frozen=True)
class Fence:
    """A block of code in a page, and what the comment line above it says of running it.

    `<!-- run -->`, `<!-- run: WHERE -->` or `<!-- not run: REASON -->`; `mark` is what stands
    before the reason, or "" where there is no such line.
    """

    page: str
    line: int
    language: str
    mark: str
    reason: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_shell(self) -> bool:
        """Also where no language is stated, but a program of ours is called."""
        calls = ("hexgen-sglang ", "python -m ", "launch/", "make ", "pip ", "kubectl ", "curl ")
        return self.language in ("console", "bash", "sh", "shell") or (
            not self.language and self.text.startswith(calls)
        )


_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>run(?:: \w+)?|not run)(?:: (?P<reason>[^\n]+))? -->\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_ROOT = Path(__file__).resolve().parents[2]


def fences() -> list[Fence]:
    """Every block of code of README, CONTRIBUTING and the documentation."""
    found = []
    for path in (
        _ROOT / "README.md",
        _ROOT / "CONTRIBUTING.md",
        *sorted((_ROOT / "docs").glob("*.md")),
    ):
        text = path.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start("text"))
            page = path.relative_to(_ROOT).as_posix()
            fields = [match[name] or "" for name in ("language", "mark", "reason", "text")]
            found.append(Fence(page, line, *fields))
    return found


@pytest.fixture(scope="session")
def documented() -> list[Fence]:
    return fences()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with a `fence` gets those whose mark is its module's `FENCE_MARK`, one by one."""
    if "fence" in metafunc.fixturenames:
        chosen = [fence for fence in fences() if fence.mark == metafunc.module.FENCE_MARK]
        metafunc.parametrize("fence", chosen, ids=str)
