"""A coordinator link in a process of its own: prints what it is told, one JSON list a line.

Usage: coordinator_process.py ENDPOINT [KEY_FOLDER]. Answers each finished stage with a `Cancel`
of its workflow, so that the way back is exercised too.
"""

import asyncio
import json
import sys

from hexgen_sglang.coordinator.link import CoordinatorLink
from hexgen_sglang.protocol.messages import Cancel, Welcome
from hexgen_sglang.transport.zmq_link import ZmqCoordinatorEnd, load_coordinator_keys


def tell(*event):
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


class Teller:
    """Observer that prints."""

    def __init__(self):
        self.link = None
        self.tasks = set()

    def on_hello(self, hello):
        tell("hello", hello.worker_id, hello.incarnation)
        return Welcome(link_version=1, coordinator_id="c1", heartbeat_ms=200)

    def on_restart(self, worker_id):
        tell("restart", worker_id)

    def on_load(self, worker_id, load):
        tell("load", load.num_running)

    def on_request_finished(self, worker_id, message):
        tell("request", message.request_id)

    def on_step_times(self, worker_id, message):
        pass

    def on_stage_finished(self, worker_id, message):
        tell("stage", message.num_requests)
        cancel = Cancel(workflow_id=message.workflow_id, request_id=None)
        task = asyncio.create_task(self.link.send_to(worker_id, cancel))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def on_features(self, worker_id, message):
        tell("features", message.keeps_prefixes)

    def on_ordering_set(self, worker_id, message):
        tell("ordering", message.refusal)

    def on_goodbye(self, worker_id, reason):
        tell("goodbye", worker_id, reason)

    def on_lost(self, worker_id):
        tell("lost", worker_id)


async def main(endpoint, *key_folder):
    keys = load_coordinator_keys(key_folder[0]) if key_folder else None
    end = ZmqCoordinatorEnd(endpoint, keys)
    observer = Teller()
    observer.link = CoordinatorLink(end, observer, tick_s=0.05)
    tell("ready")
    await observer.link.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
