"""What importing the package and `hexgen-sglang --help` may load, and where packages come from."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from hexgen_sglang.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ["torch", "sglang", "transformers", "aiohttp", "zmq", "numpy", "starlette", "sqlglot"]
REPORT = f"""
import json, sys
print("loaded:" + json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""


def loaded_after(code: str) -> tuple[list[str], str]:
    """The heavy modules in a new interpreter after `code`, and its whole output."""
    done = subprocess.run(
        [sys.executable, "-c", code + REPORT], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("loaded:")[2]), done.stdout


def run_command(arguments: list[str]) -> str:
    """Code that runs the command line in the same interpreter."""
    return f"""
import sys
from hexgen_sglang.cli.main import main
sys.argv = ["hexgen-sglang", *{arguments!r}]
try:
    main()
except SystemExit as leave:
    assert not leave.code, leave.code
"""


def test_importing_the_package_is_light() -> None:
    loaded, _ = loaded_after("import hexgen_sglang, hexgen_patches, hexgen_kernels")
    assert loaded == []


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"]])
def test_help_and_version_are_light(arguments: list[str]) -> None:
    loaded, _ = loaded_after(run_command(arguments))
    assert loaded == []


def test_help_lists_every_command() -> None:
    _, output = loaded_after(run_command(["--help"]))
    for name, (_, summary) in COMMANDS.items():
        assert f"{name} " in output
        assert summary.split()[0] in output


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself_without_torch_or_sglang(command: str) -> None:
    loaded, output = loaded_after(run_command([command, "--help"]))
    assert "Usage" in output
    assert not {"torch", "sglang", "transformers"} & set(loaded)


def test_no_package_named_kernels_hides_the_one_of_hugging_face() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "patches" / "__init__.py").exists()


@pytest.mark.parametrize(
    ("package", "folder"),
    [
        ("hexgen_sglang", "hexgen_sglang"),
        ("hexgen_patches", "patches/hexgen_patches"),
        ("hexgen_kernels", "kernels/hexgen_kernels"),
    ],
)
def test_packages_come_from_where_setup_py_maps_them(package: str, folder: str) -> None:
    module = importlib.import_module(package)
    assert module.__file__ is not None
    assert Path(module.__file__).parent == ROOT / folder
