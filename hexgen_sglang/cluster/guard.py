"""Ends process groups when the process that owns them has died, whatever way it died.

Runs as a process of its own, started by `cluster.process` as a plain script: standard library
only, no import of ours. It reads its owner's pipe; the end of the pipe is the owner's death.
PR_SET_PDEATHSIG is not used for this: it fires when the thread that forked dies, and the
children's own children do not inherit it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Collection

AFTER_LEADER_S = 2.0  # what a leader's own children get to leave once it has gone
AFTER_KILL_S = 10.0  # a process in an uninterruptible wait can outlive SIGKILL for a while
OWNER_DIED_GRACE_S = 3.0


def group_members(leader: int) -> list[int]:
    """Ids of the living processes whose group or session is `leader`; zombies do not count.

    `leader` was started as leader of its own session. Reads /proc (Linux).
    """
    members = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as stat:
                # "pid (command) state ppid pgrp session ...": a command may hold ")" itself.
                state, _, group, session = stat.read().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if leader in (int(group), int(session)) and state not in "ZX":
            members.append(int(name))
    return members


def kill_groups(leaders: Collection[int]) -> list[int]:
    """SIGKILL every member of the groups and wait until they are gone.

    Returns the ids that still live after `AFTER_KILL_S` seconds (an uninterruptible wait).
    """
    deadline_s = time.monotonic() + AFTER_KILL_S
    while True:
        alive = [pid for leader in leaders for pid in group_members(leader)]
        if not alive or time.monotonic() > deadline_s:
            return alive
        for pid in alive:
            _signal(pid, signal.SIGKILL)
        time.sleep(0.02)


def end_groups(leaders: Collection[int], grace_s: float) -> list[int]:
    """SIGTERM the leaders, wait up to `grace_s` seconds for their groups, SIGKILL the rest.

    Only leaders get SIGTERM: an SGLang server drains its own sub-processes. Returns the ids
    that could not be ended.
    """
    for leader in leaders:
        if leader in group_members(leader):
            _signal(leader, signal.SIGTERM)
    now_s = time.monotonic()
    ends_s = dict.fromkeys(leaders, now_s + grace_s)
    while ends_s:
        for leader in list(ends_s):
            members = group_members(leader)
            if leader not in members:
                ends_s[leader] = min(ends_s[leader], time.monotonic() + AFTER_LEADER_S)
            if not members or time.monotonic() > ends_s[leader]:
                del ends_s[leader]
        if ends_s:
            time.sleep(0.05)
    return kill_groups(leaders)


def _signal(pid: int, signum: signal.Signals) -> None:
    """Send a signal to a process that may just have ended."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return


def main() -> None:
    """Follow the owner's list of groups (`+ID`, `-ID`, a line each) until its pipe ends."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    leaders: set[int] = set()
    for line in sys.stdin:
        change, pid = line[0], int(line[1:])
        if change == "+":
            leaders.add(pid)
        else:
            leaders.discard(pid)
    end_groups(leaders, OWNER_DIED_GRACE_S)


if __name__ == "__main__":
    main()
