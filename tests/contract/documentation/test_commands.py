"""Commands of the documentation: run here, or marked with the reason why not; options exist."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from hexgen_sglang.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[3]
FENCE_MARK = "run"
MARKS = {"run", "run: coordinator", "run: kubectl", "not run"}
# What the launchers of `launch/` run.
LAUNCHERS = {
    "launch/worker": ["worker"],
    "launch/coordinator": ["coordinator"],
    "launch/cluster": ["cluster"],
    "launch/ray": ["cluster", "up", "--engine", "ray"],
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that looks like a checkout to the commands, and may be written to."""
    for name in ("launch", "docs", "mkdocs.yml", "hexgen_sglang", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "runs").mkdir()
    return tmp_path


def run(text: str, place: Path) -> subprocess.CompletedProcess[str]:
    """A block as a shell runs it; /etc/hexgen is a folder of the test."""
    binaries = str(Path(sys.executable).parent)
    (place / "etc").mkdir()
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text.replace("/etc/hexgen", str(place / "etc"))],
        cwd=place,
        env={**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.timeout(240)
def test_a_block_runs(fence: Any, place: Path) -> None:
    done = run(fence.text, place)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]


def test_every_block_of_commands_is_run_or_says_why_not(documented: list[Any]) -> None:
    shell = [fence for fence in documented if fence.is_shell]
    assert len(shell) > 20
    for fence in shell:
        assert fence.mark in MARKS, f"{fence}: no mark above it"
        assert (fence.mark == "not run") == bool(fence.reason), f"{fence}: reason"
    for page in {fence.page for fence in shell}:
        # A mark that stands above nothing would be believed to be one.
        marks = re.findall(r"^<!-- (?:not )?run\b", (ROOT / page).read_text(), re.MULTILINE)
        assert len(marks) == len([f for f in documented if f.page == page and f.mark]), page


def test_reasons_that_name_a_test_name_one_that_exists(documented: list[Any]) -> None:
    named = [path for f in documented for path in re.findall(r"tests/[\w/]+\.py", f.reason)]
    assert named
    assert [path for path in named if not (ROOT / path).is_file()] == []


def simple_commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a block; pipes and redirections part commands."""
    joined = text.replace("\\\n", " ")
    joined = re.sub(r"(^|\s)#.*$", "", joined, flags=re.MULTILINE)
    lexer = shlex.shlex(joined.replace("\n", " ;\n"), posix=True, punctuation_chars=";|&>")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    for word in lexer:
        if set(word) <= set(";|&>"):
            if words:
                yield words
            words = []
        else:
            words.append(word)
    if words:
        yield words


def own_calls(fence: Any) -> Iterator[list[str]]:
    """Arguments of `hexgen-sglang` in a block."""
    for words in simple_commands(fence.text):
        if words[0] == "hexgen-sglang":
            yield words[1:]
        elif words[0] in LAUNCHERS:
            yield [*LAUNCHERS[words[0]], *words[1:]]


def refusal(arguments: list[str]) -> str | None:
    """What the command line's parser has against these arguments, without running anything."""
    name, *rest = arguments
    if name not in COMMANDS:
        return f"no command {name}"
    application = typer.Typer(add_completion=False)
    application.command(name)(importlib.import_module(COMMANDS[name][0]).command)
    command = typer.main.get_command(application)
    context = command.make_context(name, [], resilient_parsing=True)
    context.resilient_parsing = False
    try:
        command.make_parser(context).parse_args(rest)
    except typer.TyperException as error:
        return str(error)
    return None


def test_commands_and_options_exist_also_where_they_are_not_run(documented: list[Any]) -> None:
    calls = [(fence, call) for fence in documented if fence.is_shell for call in own_calls(fence)]
    assert len(calls) > 20
    problems = {f"{fence}: {' '.join(call)}": refusal(call) for fence, call in calls}
    assert {text: why for text, why in problems.items() if why is not None} == {}
    assert refusal(["coordinator", "--prot", "1"]) is not None, "the check finds something"


@pytest.mark.timeout(300)  # importing SGLang takes 10 to 60 s on a busy machine
def test_sglang_takes_the_documented_server_flags(
    documented: list[Any],
    launch_problems: Callable[[list[list[str]]], list[str | None]],
    tmp_path: Path,
) -> None:
    from hexgen_sglang.transport.zmq_link import make_keys

    make_keys(tmp_path / "keys")
    lines = [
        [word.replace("/etc/hexgen/keys", str(tmp_path / "keys")) for word in words[3:]]
        for fence in documented
        if fence.is_shell
        for words in simple_commands(fence.text)
        if words[:3] == ["python", "-m", "sglang.launch_server"]
    ]
    assert len(lines) >= 3
    assert launch_problems(lines) == [None] * len(lines)
