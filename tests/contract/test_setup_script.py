"""`make setup` on machines that are not as it wishes, and when there is nothing to do.

Real runs of the script in a small copy of the checkout; nothing is downloaded. What it installs
is tested by every other test, all of which run in the environment that it made.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
TOOLS = [
    *("bash", "awk", "cat", "cut", "df", "dirname", "du", "env", "flock", "grep", "ls"),
    *("mkdir", "rm", "sha256sum", "touch"),
]
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what the script reads, and `bin/` as its whole PATH."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "launch" / "setup", root / "launch" / "setup")
    shutil.copy(ROOT / "setup.py", root)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, f"{tool} is needed by the script and by this test"
        (tmp_path / "bin" / tool).symlink_to(found)
    return root


def script(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def run(
    checkout: Path, command: str = "launch/setup/install.sh", **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shutil.which("bash") or "bash", "-c", command],
        cwd=checkout,
        env={"PATH": str(checkout.parent / "bin"), "HOME": str(checkout.parent)} | env,
        capture_output=True,
        text=True,
        timeout=100,
    )


def little_disk(checkout: Path) -> None:
    """A `df` that reports 3 GB free."""
    script(
        checkout.parent / "bin" / "df",
        "echo 'Filesystem 1024-blocks Used Available Capacity Mounted'\n"
        "echo '/dev/disk 99999999 0 3200000 9% /'",
    )


def finished_environment(checkout: Path) -> Path:
    """What a finished set-up leaves, as far as the script looks at it."""
    venv = checkout / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(sys.executable)
    (venv / "pyvenv.cfg").write_text("")
    script(venv / "bin" / "hexgen-sglang", "exit 0")
    stamp = run(
        checkout, "source launch/setup/install.sh; find_python; find_gpu; inputs_hash"
    ).stdout
    assert len(stamp.strip()) == 64
    (venv / ".hexgen-setup").write_text(stamp)
    return venv


def test_no_fitting_python_says_what_was_found(checkout: Path) -> None:
    script(checkout.parent / "bin" / "python3", "echo 3.9.18")
    script(checkout.parent / "bin" / "python", "echo 2.7.18")
    done = run(checkout)
    assert done.returncode == 1
    assert "needs Python 3.11 or 3.12; found: python3 is 3.9.18, python is 2.7.18" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_python_without_its_venv_module_is_passed_over(checkout: Path) -> None:
    script(
        checkout.parent / "bin" / "python3.11",
        'case "$2" in *ensurepip*) exit 1 ;; *) echo 3.11.2 ;; esac',
    )
    done = run(checkout)
    assert done.returncode == 1
    assert "found: python3.11 is 3.11.2 without its venv module" in done.stderr


def test_no_python_at_all(checkout: Path) -> None:
    done = run(checkout)
    assert done.returncode == 1
    assert "found: no Python" in done.stderr


def test_a_python_named_by_hand_must_fit(checkout: Path) -> None:
    script(checkout.parent / "mine", "echo 3.13.0")
    done = run(checkout, HEXGEN_PYTHON=str(checkout.parent / "mine"))
    assert done.returncode == 1
    assert "mine is Python 3.13.0; allowed: 3.11 or 3.12" in done.stderr


def test_too_little_disk_is_said_before_anything_is_made(checkout: Path) -> None:
    little_disk(checkout)
    done = run(checkout, HEXGEN_PYTHON=sys.executable)
    assert done.returncode == 1
    assert "needs about 8 GB of disk" in done.stdout
    assert "not enough disk: 8 GB needed" in done.stderr
    assert "3 GB free" in done.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.timeout(180)
def test_no_registry_is_a_clear_error_and_can_be_tried_again(checkout: Path) -> None:
    for _ in range(2):
        done = run(
            checkout,
            HEXGEN_PYTHON=sys.executable,
            PIP_INDEX_URL="http://127.0.0.1:9/simple",
            PIP_CONFIG_FILE=os.devnull,
            PIP_NO_CACHE_DIR="1",
            PIP_RETRIES="0",
        )
        assert done.returncode == 1
        assert "no package registry can be reached (pip could not get uv" in done.stderr
        assert f"1/5 make {checkout}/.venv with Python {HERE}." in done.stdout
    assert not (checkout / ".venv" / ".hexgen-setup").exists()


def test_a_second_run_does_nothing(checkout: Path) -> None:
    finished_environment(checkout)
    before = {path: path.lstat().st_mtime_ns for path in checkout.rglob("*")}
    done = run(checkout)
    assert done.returncode == 0, done.stderr
    assert "up to date" in done.stdout
    assert {path: path.lstat().st_mtime_ns for path in checkout.rglob("*")} == before


@pytest.mark.parametrize(
    "changed", ["requirements-cpu.txt", "sglang-version.txt", "verify.py", "../../setup.py"]
)
def test_a_changed_input_is_noticed(checkout: Path, changed: str) -> None:
    finished_environment(checkout)
    with (checkout / "launch" / "setup" / changed).open("a") as file:
        file.write("# another line\n")
    little_disk(checkout)
    done = run(checkout)
    assert done.returncode == 1
    assert "not enough disk" in done.stderr


def test_an_interrupted_run_is_not_taken_for_finished(checkout: Path) -> None:
    venv = finished_environment(checkout)
    (venv / ".hexgen-setup-unfinished").touch()
    little_disk(checkout)
    done = run(checkout)
    assert done.returncode == 1
    assert "not enough disk" in done.stderr


def test_a_folder_of_somebody_else_is_left_alone(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "precious.txt").write_text("mine")
    done = run(checkout, HEXGEN_PYTHON=sys.executable)
    assert done.returncode == 1
    assert "was not made by this script" in done.stderr
    assert [path.name for path in (checkout / ".venv").iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    ("listing", "forced", "gpu"),
    [
        ("echo 'GPU 0: Some Card (UUID: GPU-1)'", "0", "yes"),
        ("echo 'GPU 0: Some Card (UUID: GPU-1)'", "1", "no"),
        ("echo 'No devices found.'", "0", "no"),
        ("echo 'cannot talk to the driver' >&2; exit 9", "0", "no"),
    ],
)
def test_a_gpu_is_found_unless_told_otherwise(
    checkout: Path, listing: str, forced: str, gpu: str
) -> None:
    script(checkout.parent / "bin" / "nvidia-smi", listing)
    done = run(
        checkout, "source launch/setup/install.sh; find_gpu; echo $gpu", HEXGEN_FORCE_CPU=forced
    )
    assert done.stdout.strip() == gpu


@pytest.fixture(scope="module")
def lock() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock", ROOT / "launch" / "setup" / "lock.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pins_fit_setup_py_and_the_pinned_sglang(lock: ModuleType) -> None:
    text = (ROOT / "launch" / "setup" / "requirements-cpu.txt").read_text()
    assert f"sglang=={lock.SGLANG_VERSION} " in text.splitlines()[0]
    pins: dict[str, str] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate():
                (version,) = pin.specifier
                pins[lock.package_name(pin.name)] = version.version
    for line in lock.own_requirements():
        wanted = Requirement(line)
        assert wanted.specifier.contains(pins[lock.package_name(wanted.name)]), line


def test_the_pins_hold_no_package_that_needs_a_gpu(lock: ModuleType) -> None:
    text = (ROOT / "launch" / "setup" / "requirements-cpu.txt").read_text()
    names = [lock.package_name(line) for line in text.splitlines() if line[:1].isalnum()]
    # What torch's own wheel needs to be imported at all is not a choice.
    chosen = [name for name in names if not name.startswith(("nvidia-", "cuda-"))]
    assert [name for name in chosen if lock.GPU_ONLY.match(name)] == []
    assert len(chosen) > 100
