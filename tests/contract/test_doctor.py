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


def test_a_target_that_is_gone_at_run_time_is_named() -> None:
    module, _, name = STREAM_OUTPUT.rpartition(".")
    owner_module, _, owner = module.rpartition(".")
    before = (
        f"import {owner_module} as module\n"
        f"module.{owner}.renamed_{name} = module.{owner}.{name}\n"
        f"del module.{owner}.{name}"
    )
    status, report = report_of(before=before)
    assert (status, report["ok"]) == (1, False)
    broken = [row for row in report["hooks"] if not row["ok"]]
    assert [row["target"] for row in broken] == [STREAM_OUTPUT]
    assert "missing" in broken[0]["problem"]


def test_a_hook_that_another_plugin_displaced_is_named() -> None:
    owner_module = STREAM_OUTPUT.rsplit(".", 2)[0]
    before = (
        f"import {owner_module}\n"
        "from sglang.srt.plugins.hook_registry import HookRegistry, HookType\n"
        f"HookRegistry.register({STREAM_OUTPUT!r}, lambda *args: None, HookType.AFTER)\n"
        "HookRegistry.apply_hooks()"
    )
    status, report = report_of(before=before)
    assert status == 1
    (broken,) = (row for row in report["hooks"] if not row["ok"])
    assert broken["target"] == STREAM_OUTPUT
    assert broken["problem"] == "our hook is not applied to it"


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
