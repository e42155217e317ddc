"""The supervisor with real child processes: readiness, death, stop, and a killed owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hexgen_sglang.cluster import guard
from hexgen_sglang.cluster.process import ChildProcess, stop_all, wait_ready
from hexgen_sglang.core.errors import ProcessError

# A parent that has a child of its own, as SGLang has; both refuse SIGTERM where told to.
FAMILY = """
import signal, subprocess, sys, time
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
print("family is up", flush=True)
time.sleep(600)
"""


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[..., ChildProcess]]:
    made: list[ChildProcess] = []

    def make(code: str, *arguments: str, name: str = "child") -> ChildProcess:
        command = [sys.executable, "-S", "-c", code, *arguments]
        made.append(ChildProcess(name, command, env=os.environ, log_path=tmp_path / f"{name}.log"))
        return made[-1]

    yield make
    stop_all(made, grace_s=0)


def until(condition: Callable[[], bool], timeout_s: float = 30) -> bool:
    """Wait for a condition; False after the time-out."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.02)
    return True


def log_has(process: ChildProcess, text: str) -> Callable[[], bool]:
    return lambda: text in process.log_tail()


def test_ready_when_the_probe_says_so_and_progress_is_told(child) -> None:
    process = child("import time; print('loading'); time.sleep(2); print('up'); time.sleep(600)")
    process.env["PYTHONUNBUFFERED"] = "1"
    told: list[tuple[str, str]] = []
    with process:
        wait_ready(
            [(process, log_has(process, "up"))],
            timeout_s=30,
            on_progress=lambda name, _elapsed_s, line: told.append((name, line)),
            poll_s=0.05,
        )
        assert process.is_running()
    assert ("child", "loading") in told
    assert process.exit_code() == -signal.SIGTERM


def test_a_child_that_dies_is_an_error_with_the_end_of_its_log(child) -> None:
    process = child("print('no such model'); raise SystemExit(3)")
    process.start()
    with pytest.raises(ProcessError, match=r"(?s)child: ended with status 3.*no such model"):
        wait_ready([(process, lambda: False)], timeout_s=30, poll_s=0.02)


def test_a_child_that_never_gets_ready_is_an_error(child) -> None:
    process = child(FAMILY)
    process.start()
    assert until(log_has(process, "family is up"))
    with pytest.raises(ProcessError, match=r"(?s)not ready after 0 s.*family is up"):
        wait_ready([(process, lambda: False)], timeout_s=0.1, poll_s=0.02)


def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    process = ChildProcess("ghost", ["/no/such/program"], env={}, log_path=tmp_path / "log")
    with pytest.raises(ProcessError, match="ghost: cannot start /no/such/program"):
        process.start()


def test_stop_ends_the_whole_family(child) -> None:
    process = child(FAMILY)
    process.start()
    assert until(log_has(process, "family is up"))
    assert len(process.members()) == 2
    process.stop(grace_s=20)
    assert process.members() == []
    assert process.exit_code() == -signal.SIGTERM
    process.stop()  # once more is no error


def test_stop_kills_what_ignores_sigterm(child) -> None:
    process = child(FAMILY, "stubborn")
    process.start()
    assert until(log_has(process, "family is up"))
    process.stop(grace_s=0.3)
    assert process.members() == []
    assert process.exit_code() == -signal.SIGKILL


def test_kill_takes_sub_processes_along(child) -> None:
    process = child(FAMILY)
    process.start()
    assert until(log_has(process, "family is up"))
    process.kill()
    assert process.members() == []
    assert process.exit_code() == -signal.SIGKILL


def test_a_restart_appends_to_the_log(child) -> None:
    process = child(FAMILY)
    for count in (1, 2):
        process.start()
        assert until(lambda wanted=count: process.log_tail().count("family is up") == wanted)
        process.kill()


OWNER = """
import os, signal, sys, time
from pathlib import Path
from hexgen_sglang.cluster.process import ChildProcess

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests that nohup started ignore it
child = ChildProcess("child", [sys.executable, "-S", "-c", sys.argv[1], *sys.argv[3:]],
                     env=os.environ, log_path=Path(sys.argv[2]))
child.start()
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_children_do_not_outlive_a_killed_owner(tmp_path: Path, signum: signal.Signals) -> None:
    log = tmp_path / "log"
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, FAMILY, str(log), "stubborn"],
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        leader = int(owner.stdout.readline())
        assert until(lambda: log.exists() and "family is up" in log.read_text())
        assert len(guard.group_members(leader)) == 2
        owner.send_signal(signum)
        owner.wait(timeout=30)
    assert until(lambda: guard.group_members(leader) == []), "the guard left something"


def test_a_killed_guard_is_replaced(tmp_path: Path) -> None:
    code = """
import os, signal, subprocess, sys, time
from pathlib import Path
from hexgen_sglang.cluster.process import ChildProcess

def start(name):
    child = ChildProcess(name, ["sleep", "600"], env=os.environ, log_path=Path(sys.argv[1]))
    child.start()
    return child

first = start("first")
def guards():
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(p) for p in children if b"guard.py" in Path(f"/proc/{p}/cmdline").read_bytes()]

while not (guard := guards()):  # it was spawned, but its command line may not be there yet
    time.sleep(0.01)
os.kill(guard[0], signal.SIGKILL)
os.waitpid(guard[0], 0)
print(first.pid, start("second").pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    )
    leaders = [int(pid) for pid in done.stdout.split()]
    assert len(leaders) == 2, done
    for leader in leaders:
        assert until(lambda group=leader: guard.group_members(group) == [])
