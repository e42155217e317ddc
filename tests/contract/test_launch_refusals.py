"""A server that cannot have what its flags ask for does not start, and says why in one line.

Runs SGLang's real launchers; all of them end before a model is loaded.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hexgen_sglang.plugin.config import ENVIRONMENT_VARIABLE

pytestmark = pytest.mark.timeout(300)  # importing SGLang takes 10 to 60 s on a busy machine

LAUNCH_SERVER = "import runpy; runpy.run_module('sglang.launch_server', run_name='__main__')"
SGLANG_SERVE = "import sys; sys.argv[1:1] = ['serve']; from sglang.cli.main import main; main()"


def launch(how: str, *flags: str, before: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"{before}\n{how}", "--model-path", "/no/such/model", *flags]
    env = {**os.environ, "SGLANG_PLATFORM": "hexgen_torch_cpu", "HF_HUB_OFFLINE": "1", **env}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # with it SGLang is compiled anew in each process
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=env)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]


def test_launch_server_names_flag_value_and_range() -> None:
    done = launch(LAUNCH_SERVER, "--schedule-policy", "hexgen", "--hexgen-ordering", "best")
    assert done.returncode != 0
    assert last_line(done).startswith("hexgen-sglang: --hexgen-ordering=best: must be one of fcfs")


def test_sglang_serve_takes_our_flags_and_refuses_the_same_way() -> None:
    done = launch(SGLANG_SERVE, "--model-type", "llm", "--hexgen-worker-id", "left")
    assert done.returncode != 0
    wanted = "hexgen-sglang: --hexgen-worker-id=left: needs --hexgen-coordinator"
    assert last_line(done) == wanted


def test_a_missing_hook_target_stops_the_launch_and_is_named() -> None:
    before = (
        "from sglang.srt.managers.scheduler_components import load_inquirer\n"
        "del load_inquirer.SchedulerLoadInquirer.get_loads"
    )
    done = launch(LAUNCH_SERVER, "--hexgen-coordinator", "tcp://127.0.0.1:5555", before=before)
    assert done.returncode != 0
    assert "refusing to serve with SGLang" in last_line(done)
    assert "load_inquirer.SchedulerLoadInquirer.get_loads: missing" in last_line(done)


def test_settings_of_another_server_in_the_environment_do_not_count() -> None:
    """The variable is damaged on purpose: whoever read it would fail with its name."""
    done = launch(LAUNCH_SERVER, **{ENVIRONMENT_VARIABLE: "damaged"})
    assert done.returncode != 0
    assert "/no/such/model" in done.stderr
    assert ENVIRONMENT_VARIABLE not in done.stderr
