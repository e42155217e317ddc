"""How much time a schedule policy adds to one scheduler step with many requests waiting.

    .venv/bin/python launch/bench/scheduler_step.py --waiting 1000 --json FILE

Builds a real SGLang `Scheduler` (tiny model, torch on the CPU, SGLang's own radix cache) in
this process, fills a waiting queue with real `Req` objects, and times `calc_priority`, the call
that SGLang makes before it admits requests. Before each call the head of the queue leaves and
a new request comes, as in a busy server. Policies take turns step by step. `lpm` is SGLang's
own and falls back to arrival order above 128 waiting requests; so 128 is measured as well.

`hexgen_reprioritised` is `hexgen` when a workflow's deadline changed before every step, which
makes every key anew: its worst case.

`hexgen_with_link` times the whole path of our hooks in a step (a request arrives, commands are
taken, the queue is ordered, a request ends and is reported, a load when one is due) with a
coordinator that answers, that stopped reading, and that is absent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["SGLANG_PLATFORM"] = "hexgen_torch_cpu"

from hexgen_sglang.cluster.ports import free_port
from hexgen_sglang.models.tiny import make_tiny_model

LPM_LIMIT = 128
PROMPT_TOKENS = 800
SHARED_TOKENS = 600
NUM_TEMPLATES = 16
KV_TOKENS = 65_536
SEED = 7


def main() -> None:
    """Measure, print a table, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--waiting", type=int, default=1000, help="requests in the queue")
    parser.add_argument("--steps", type=int, default=400, help="timed steps for each policy")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    scheduler = build_scheduler(endpoint)
    bench = Bench(scheduler, random.Random(SEED))
    report = {
        "waiting": args.waiting,
        "steps": args.steps,
        "policies": bench.compare_policies(args.waiting, args.steps),
        f"policies_at_{LPM_LIMIT}": bench.compare_policies(LPM_LIMIT, args.steps),
        "hexgen_with_link": bench.with_link(args.waiting, args.steps, endpoint),
        "how": __doc__,
        "machine": describe_machine(),
    }
    print_report(report)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def build_scheduler(endpoint: str) -> Any:
    """SGLang's scheduler as its own process would build it, with our hooks in place."""
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from sglang.srt.server_args import PortArgs, prepare_server_args

    cpu = "--device cpu --attention-backend torch_native --sampling-backend pytorch"
    small = f"--grammar-backend none --disable-overlap-schedule --max-total-tokens {KV_TOKENS}"
    ours = f"--schedule-policy hexgen --hexgen-coordinator {endpoint} --port {free_port()}"
    flags = [*cpu.split(), *small.split(), *ours.split(), "--log-level", "error"]
    server_args = prepare_server_args(["--model-path", str(make_tiny_model()), *flags])
    server_args.resolve_once()
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.runtime_context import SpawnRanks, publish

    publish(server_args, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
    return Scheduler(server_args, PortArgs.init_new(server_args))


class Bench:
    """Queues of real requests over one real scheduler's radix cache."""

    def __init__(self, scheduler: Any, chance: random.Random) -> None:
        self.scheduler = scheduler
        self.chance = chance
        vocabulary = scheduler.model_config.vocab_size
        self.token = lambda: chance.randrange(1, vocabulary)
        self.templates = [
            array("q", [self.token() for _ in range(SHARED_TOKENS)]) for _ in range(NUM_TEMPLATES)
        ]
        self.num_made = 0
        for template in self.templates[: NUM_TEMPLATES // 2]:
            self._put_into_cache(template)

    def _put_into_cache(self, tokens: array[int]) -> None:
        from sglang.srt.mem_cache.base_prefix_cache import InsertParams
        from sglang.srt.mem_cache.radix_cache import RadixKey

        slots = self.scheduler.token_to_kv_pool_allocator.alloc(len(tokens))
        key = RadixKey(token_ids=tokens, extra_key=None)
        self.scheduler.tree_cache.insert(InsertParams(key=key, value=slots))

    def message(self) -> Any:
        """One request as SGLang's front sends it; three in four carry a workflow tag."""
        from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
        from sglang.srt.sampling.sampling_params import SamplingParams

        self.num_made += 1
        number = self.num_made
        tag = {
            "workflow_id": f"workflow-{number // 8}",
            "stage": "generate_candidate",
            "budget_ms": self.chance.randrange(1_000, 60_000),
            "predicted_remaining_ms": self.chance.randrange(0, 5_000),
        }
        own = [self.token() for _ in range(PROMPT_TOKENS - SHARED_TOKENS)]
        params = SamplingParams(max_new_tokens=64)
        params.custom_params = {"hexgen": tag} if number % 4 else None
        return TokenizedGenerateReqInput(
            rid=f"{number:032x}",
            input_text="",
            input_ids=self.chance.choice(self.templates) + array("q", own),
            input_embeds=None,
            mm_inputs=None,
            token_type_ids=None,
            sampling_params=params,
            return_logprob=False,
            logprob_start_len=-1,
            top_logprobs_num=0,
            token_ids_logprob=None,
            stream=False,
        )

    def request(self, message: Any) -> Any:
        """The scheduler's `Req` of a message."""
        from sglang.srt.managers.schedule_batch import Req

        return Req(message.rid, "", message.input_ids, message.sampling_params)

    def arrived(self) -> Any:
        """A request that has just come in, with its instant of arrival."""
        from hexgen_sglang.plugin.request_view import stamp_arrival

        message = self.message()
        stamp_arrival(message, time.perf_counter())
        return self.request(message)

    def compare_policies(self, num_waiting: int, num_steps: int) -> dict[str, Any]:
        """Microseconds of `calc_priority` for each policy."""
        from hexgen_patches.schedule_policy import HexgenSchedulePolicy
        from hexgen_sglang.plugin.ordering import QueueOrder

        sglang_own = HexgenSchedulePolicy.__mro__[1]
        cache = self.scheduler.tree_cache
        policies = {
            name: (HexgenSchedulePolicy if name == "hexgen" else sglang_own)(
                name, cache, False, False, False
            )
            for name in ("fcfs", "lpm", "hexgen")
        }
        policies["hexgen_reprioritised"] = HexgenSchedulePolicy(
            "hexgen", cache, False, False, False
        )
        policies["hexgen_reprioritised"].hexgen_order = changing = QueueOrder("least_slack", {})
        queues = {name: [self.arrived() for _ in range(num_waiting)] for name in policies}
        taken: dict[str, list[float]] = {name: [] for name in policies}
        for step in range(-num_steps // 10, num_steps):
            for name, policy in policies.items():
                queue = queues[name]
                queue.pop(0)
                queue.append(self.arrived())
                changing.reprioritise(f"workflow-{self.num_made // 8}", None, 0.0, 0.0)
                begin_s = time.perf_counter()
                policy.calc_priority(queue, None)
                if step >= 0:
                    taken[name].append(time.perf_counter() - begin_s)
        figures = {name: summary(seconds) for name, seconds in taken.items()}
        for name in figures:
            added_us = figures[name]["median_us"] - figures["fcfs"]["median_us"]
            figures[name]["added_to_fcfs_us"] = round(added_us, 2)
        return figures

    def with_link(self, num_waiting: int, num_steps: int, endpoint: str) -> dict[str, Any]:
        """Microseconds of all our hooks in a step, by what the coordinator does."""
        figures = {"no_link": summary(self._steps_with_link(num_waiting, num_steps, None))}
        for behaviour, coordinator in COORDINATORS.items():
            with coordinator(endpoint):
                seconds = self._steps_with_link(num_waiting, num_steps, behaviour)
                figures[behaviour] = summary(seconds)
        return figures

    def _steps_with_link(
        self, num_waiting: int, num_steps: int, behaviour: str | None
    ) -> list[float]:
        from hexgen_sglang.plugin.scheduler_process import this_process

        process, scheduler = this_process(), self.scheduler
        queue = scheduler.waiting_queue
        queue[:] = [self.arrived() for _ in range(num_waiting)]
        if behaviour is not None:
            process.start_link(scheduler)
            wait_for_link(process, registered=behaviour != "absent")
        taken = []
        for _ in range(num_steps):
            message = self.message()
            leaving = queue.pop(0)
            messages = [message]
            begin_s = time.perf_counter()
            process.received(scheduler.request_receiver, messages)
            process.before_input(scheduler, messages)
            received_s = time.perf_counter() - begin_s
            queue.append(self.request(message))
            begin_s = time.perf_counter()
            scheduler.policy.calc_priority(queue, None)
            if process.telemetry is not None:
                process.telemetry.ended(leaving, aborted=False)
            taken.append(received_s + time.perf_counter() - begin_s)
            time.sleep(0.002)  # a forward pass: the agent's thread has the interpreter then
        process.stop_link("measured")
        process.telemetry = None
        return taken


def wait_for_link(process: Any, *, registered: bool) -> None:
    """Wait until the agent is where it should be before timing begins."""
    deadline_s = time.monotonic() + 10
    while registered and any(link.state != "welcomed" for link in process._agent.statuses()):
        if time.monotonic() > deadline_s:
            raise SystemExit(f"the agent was not welcomed: {process._agent.statuses()}")
        time.sleep(0.05)


@contextmanager
def absent(endpoint: str) -> Iterator[None]:
    """Nobody listens at the endpoint."""
    yield


def answering(endpoint: str) -> Any:
    """A coordinator's end that reads everything."""
    return coordinator_thread(endpoint, reads_on=True)


def stalled(endpoint: str) -> Any:
    """A coordinator's end that welcomes the worker and never reads again."""
    return coordinator_thread(endpoint, reads_on=False)


COORDINATORS: dict[str, Callable[[str], Any]] = {
    "answering": answering,
    "stalled": stalled,
    "absent": absent,
}


@contextmanager
def coordinator_thread(endpoint: str, *, reads_on: bool) -> Iterator[None]:
    """A real ZMQ coordinator end in a thread of its own."""
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        from hexgen_sglang.protocol.messages import LINK_VERSION, Hello, Welcome
        from hexgen_sglang.transport.zmq_link import ZmqCoordinatorEnd

        end = ZmqCoordinatorEnd(endpoint, None)
        ready.set()
        welcomed = False
        while not stop.is_set():
            if welcomed and not reads_on:
                await asyncio.sleep(0.05)
                continue
            try:
                peer, message = await asyncio.wait_for(end.receive(), 0.05)
            except TimeoutError:
                continue
            if isinstance(message, Hello):
                await end.send(peer, Welcome(LINK_VERSION, "bench", heartbeat_ms=1000))
                welcomed = True
        end.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait(10)
    try:
        yield
    finally:
        stop.set()
        thread.join()


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, mean and 99th percentile in microseconds."""
    ordered = sorted(seconds)
    return {
        "median_us": round(statistics.median(ordered) * 1e6, 2),
        "mean_us": round(statistics.fmean(ordered) * 1e6, 2),
        "p99_us": round(ordered[int(0.99 * (len(ordered) - 1))] * 1e6, 2),
    }


def describe_machine() -> dict[str, str]:
    """What the figures were measured on."""
    from importlib.metadata import version

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": str(os.cpu_count()),
        "python": sys.version.split()[0],
        "sglang": version("sglang"),
    }


def print_report(report: dict[str, Any]) -> None:
    """The figures as text."""
    for key in ("policies", f"policies_at_{LPM_LIMIT}", "hexgen_with_link"):
        print(key)
        for name, figures in report[key].items():
            cells = "  ".join(f"{unit} {value:>9}" for unit, value in figures.items())
            print(f"  {name:<21} {cells}")


if __name__ == "__main__":
    main()
