"""What the link costs SGLang's scheduler thread: time of each call, and of a whole step.

Runs a loop of steps of fixed work in the main thread, as a scheduler does, with a worker's
agent whose coordinator is healthy (in a process of its own), absent, or stopped (SIGSTOP);
`none` is the control: the same calls, no thread behind them. Each step reports a new load and
one finished request, far more than an engine does. Times include the timer's own. On a busy
machine trust the calls and `agent_cpu_per_step_us` (CPU of all threads but the main one: the
most that the agent can take from it) rather than the difference of whole steps.

    .venv/bin/python launch/bench/link_overhead.py --json FILE
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hexgen_sglang import __version__
from hexgen_sglang.coordinator.link import CoordinatorLink
from hexgen_sglang.plugin.agent import WorkerAgent
from hexgen_sglang.plugin.registration import LinkState
from hexgen_sglang.protocol.messages import (
    Hello,
    Load,
    RequestFinished,
    StageFinished,
    Welcome,
)
from hexgen_sglang.transport.zmq_link import ZmqCoordinatorEnd, ZmqWorkerEnd

PEERS = ("none", "healthy", "absent", "stopped")


class Silent:
    """An observer that welcomes everyone and ignores what they say."""

    def on_hello(self, hello: Hello) -> Welcome:
        """Welcome it."""
        return Welcome(link_version=1, coordinator_id="bench", heartbeat_ms=500)

    def on_restart(self, worker_id: str) -> None:
        """Ignored."""

    def on_load(self, worker_id: str, load: Load) -> None:
        """Ignored."""

    def on_request_finished(self, worker_id: str, message: RequestFinished) -> None:
        """Ignored."""

    def on_stage_finished(self, worker_id: str, message: StageFinished) -> None:
        """Ignored."""

    def on_goodbye(self, worker_id: str, reason: str) -> None:
        """Ignored."""

    def on_lost(self, worker_id: str) -> None:
        """Ignored."""


async def serve() -> None:
    """A coordinator in this process; prints where it listens."""
    end = ZmqCoordinatorEnd("tcp://127.0.0.1:0")
    print(end.endpoint, flush=True)
    await CoordinatorLink(end, Silent()).run()


@contextmanager
def coordinator() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A coordinator process: its endpoint and the process."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


@contextmanager
def agent_with(peer: str) -> Iterator[WorkerAgent]:
    """An agent whose coordinator is `peer`, when its state shows that; not started for none."""
    hello = Hello(1, "bench", "1", "http://h:1", "m", "cpu", "0", "0", 8, 8, "fcfs")
    if peer == "none":
        yield WorkerAgent(_unused, hello)
        return
    with coordinator() as (endpoint, process):
        agent = WorkerAgent(lambda: ZmqWorkerEnd(endpoint), hello)
        if peer == "absent":
            process.kill()
            process.wait()
        agent.start()
        if peer != "absent":
            _wait(lambda: agent.status().state is LinkState.WELCOMED)
        if peer == "stopped":
            process.send_signal(signal.SIGSTOP)
        try:
            yield agent
        finally:
            agent.stop("measured")


def _unused() -> ZmqWorkerEnd:
    raise AssertionError("an agent that is not started does not connect")


def _wait(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline_s:
            raise SystemExit("link_overhead: the agent was not welcomed within 60 s")
        time.sleep(0.01)


def work(rounds: int) -> int:
    """Fixed pure Python work, which holds the interpreter lock as a scheduler step does."""
    total = 0
    for number in range(rounds):
        total += number * number
    return total


def rounds_for(step_us: float) -> int:
    """How many rounds of `work` last about `step_us` on this machine."""
    best_ns = min(_timed_ns(lambda: work(10_000)) for _ in range(20))
    return max(1, round(10_000 * step_us * 1000 / best_ns))


def _timed_ns(call: Callable[[], object]) -> int:
    started_ns = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - started_ns


def summary(samples_ns: list[int]) -> dict[str, float]:
    """Microseconds: median, 99th percentile, maximum, mean."""
    ordered = sorted(samples_ns)
    return {
        "median_us": statistics.median(ordered) / 1000,
        "p99_us": ordered[int(0.99 * (len(ordered) - 1))] / 1000,
        "max_us": ordered[-1] / 1000,
        "mean_us": statistics.mean(ordered) / 1000,
    }


@dataclass
class Samples:
    """Nanoseconds of each call and of each whole step, and what became of the reports."""

    calls: dict[str, list[int]]
    steps: list[int]
    idle_cpu_fracs: list[float]
    agent_cpu_s: float = 0.0
    num_reported: int = 0
    num_sent: int = 0
    num_dropped: int = 0

    def report(self) -> dict[str, Any]:
        """As it stands in the JSON file."""
        return {
            "calls": {name: summary(samples) for name, samples in self.calls.items()},
            "step": summary(self.steps),
            "agent_cpu_per_step_us": 1e6 * self.agent_cpu_s / len(self.steps),
            "idle_cpu_frac": statistics.median(self.idle_cpu_fracs),
            "num_reported": self.num_reported,
            "num_sent": self.num_sent,
            "num_dropped": self.num_dropped,
        }


def measure(agent: WorkerAgent, num_steps: int, rounds: int, samples: Samples) -> None:
    """Steps of work of `rounds`, with the agent's three calls timed one by one in each."""
    calls = samples.calls
    others_cpu_s = time.process_time() - time.thread_time()
    for step in range(num_steps):
        started_ns = time.perf_counter_ns()
        load = Load(step % 1000, step % 7, step, step)
        calls["report_load"].append(_timed_ns(partial(agent.report_load, load)))
        ended = RequestFinished("r", "w", "s", 100, 50, 20, 1.0, 2.0, 3.0, False)
        calls["report"].append(_timed_ns(partial(agent.report, ended)))
        calls["take_commands"].append(_timed_ns(agent.take_commands))
        work(rounds)
        samples.steps.append(time.perf_counter_ns() - started_ns)
    samples.agent_cpu_s += time.process_time() - time.thread_time() - others_cpu_s
    status = agent.status()
    samples.num_reported += status.num_reported
    samples.num_sent += status.num_sent
    samples.num_dropped += status.num_dropped


def measure_idle(idle_s: float, samples: Samples) -> None:
    """CPU of this process while its main thread sleeps."""
    time.sleep(0.75 * idle_s)  # until the agent has noticed that there is no more news
    cpu_s, wall_s = time.process_time(), time.monotonic()
    time.sleep(idle_s)
    samples.idle_cpu_fracs.append((time.process_time() - cpu_s) / (time.monotonic() - wall_s))


def run(num_steps: int, step_us: float, num_rounds: int, idle_s: float) -> dict[str, Any]:
    """All settings in turn, several times, so that a change of the machine's mood meets all."""
    rounds = rounds_for(step_us)
    samples = {
        peer: Samples({"report_load": [], "report": [], "take_commands": []}, [], [])
        for peer in PEERS
    }
    for _ in range(num_rounds):
        for peer in PEERS:
            with agent_with(peer) as agent:
                measure(agent, num_steps // num_rounds, rounds, samples[peer])
                measure_idle(idle_s, samples[peer])
    peers = {peer: of_peer.report() for peer, of_peer in samples.items()}
    for measured in peers.values():
        for statistic in ("median_us", "mean_us"):
            alone_us = peers["none"]["step"][statistic]
            measured["added_step_" + statistic] = measured["step"][statistic] - alone_us
    return {
        "version": __version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "num_steps": num_steps,
        "step_us": step_us,
        "timer": summary([_timed_ns(_nothing) for _ in range(20_000)]),
        "peers": peers,
    }


def _nothing() -> None:
    """What the timer itself costs."""


def show(report: dict[str, Any]) -> None:
    """A line for each call, and one for the step, of each setting."""
    for peer, measured in report["peers"].items():
        for name, call in {**measured["calls"], "whole step": measured["step"]}.items():
            print(
                f"{peer:8} {name:14} median {call['median_us']:8.2f}   mean {call['mean_us']:8.2f}"
                f"   p99 {call['p99_us']:8.2f}   max {call['max_us']:9.1f} us"
            )
        print(
            f"{peer:8} a step more    median {measured['added_step_median_us']:+8.2f}   "
            f"mean {measured['added_step_mean_us']:+8.2f} us;  "
            f"agent's CPU {measured['agent_cpu_per_step_us']:.2f} us a step;  "
            f"idle CPU {100 * measured['idle_cpu_frac']:.2f} % of a core;  "
            f"dropped {measured['num_dropped']} of {measured['num_reported']}"
        )


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--steps", type=int, default=6_000, help="steps of each setting (6000)")
    parser.add_argument("--step-us", type=float, default=2_000.0, help="work in a step (2000)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each setting (3)")
    parser.add_argument("--idle-s", type=float, default=2.0, help="seconds without news (2)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return
    report = run(options.steps, options.step_us, options.rounds, options.idle_s)
    show(report)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
