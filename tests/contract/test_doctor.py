"""`hexgen-sglang doctor` against the installed SGLang, a changed one, and none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hexgen_patches
import hexgen_sglang
from hexgen_patches.declarations import SUPPORTED
from hexgen_patches.manifest import HOOKS

UNCACHED = "PYTHONDONTWRITEBYTECODE"  # with it SGLang is compiled anew in each process

pytestmark = pytest.mark.timeout(300)  # importing SGLang takes 10 to 60 s on a busy machine

STREAM_OUTPUT = (
    "sglang.srt.managers.scheduler_components.output_streamer.SchedulerOutputStreamer.stream_output"
)
GET_LOADS = "sglang.srt.managers.scheduler_components.load_inquirer.SchedulerLoadInquirer.get_loads"


def doctor(*arguments: str, before: str = "") -> tuple[int, str]:
    """Exit status and standard output; `before` is Python code that runs ahead of it."""
    code = f"{before}\nimport sys\nfrom hexgen_sglang.cli.main import main\nmain()"
    command = [sys.executable, "-c", code, "doctor", *arguments]
    env = {name: value for name, value in os.environ.items() if name != UNCACHED}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=env)
    return done.returncode, done.stdout


def report_of(*arguments: str, before: str = "") -> tuple[int, dict[str, Any]]:
    status, output = doctor("--json", *arguments, before=before)
    return status, json.loads(output)


def test_the_installed_sglang_takes_every_hook() -> None:
    status, report = report_of()
    assert (status, report["ok"], report["applied"]) == (0, True, True)
    assert [row["target"] for row in report["hooks"]] == [hook.target for hook in HOOKS]
    assert all(row["ok"] for row in (*report["hooks"], *report["relies_on"]))


def test_targets_that_are_gone_or_taken_by_another_plugin_at_run_time_are_named() -> None:
    before = (
        "from sglang.srt.managers.scheduler_components import load_inquirer, output_streamer\n"
        "from sglang.srt.plugins.hook_registry import HookRegistry, HookType\n"
        "del load_inquirer.SchedulerLoadInquirer.get_loads\n"
        f"HookRegistry.register({STREAM_OUTPUT!r}, lambda *args: None, HookType.AFTER)\n"
        "HookRegistry.apply_hooks()"
    )
    status, report = report_of(before=before)
    assert (status, report["ok"]) == (1, False)
    broken = {row["target"]: row["problem"] for row in report["hooks"] if not row["ok"]}
    assert set(broken) == {STREAM_OUTPUT, GET_LOADS}
    assert broken[STREAM_OUTPUT] == "our hook is not applied to it"
    assert broken[GET_LOADS].startswith("missing")


def test_a_renamed_target_in_a_source_folder_is_named(renamed_tree) -> None:
    root = renamed_tree(SUPPORTED[0], STREAM_OUTPUT)
    status, report = report_of("--source", str(root))
    assert status == 1
    assert [row["target"] for row in report["hooks"] if not row["ok"]] == [STREAM_OUTPUT]
    status, text = doctor("--source", str(root))
    assert status == 1
    assert f"broken: {STREAM_OUTPUT}" in text


def test_without_sglang_it_says_so(tmp_path: Path) -> None:
    """In an environment that has everything that is here but SGLang."""
    site = next(Path(entry) for entry in sys.path if entry.endswith("site-packages"))
    for entry in site.iterdir():
        if not entry.name.lower().startswith("sglang"):
            (tmp_path / entry.name).symlink_to(entry)
    ours = [Path(package.__file__).parents[1] for package in (hexgen_sglang, hexgen_patches)]
    code = (
        f"import sys; sys.path += {[str(path) for path in (*ours, tmp_path)]!r}\n"
        "from hexgen_sglang.cli.main import main\nmain()"
    )
    command = [sys.executable, "-S", "-c", code, "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "SGLang is not installed in this Python environment" in done.stdout
