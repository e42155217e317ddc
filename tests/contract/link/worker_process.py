"""A worker's agent in a process of its own.

Usage: worker_process.py ENDPOINT INCARNATION MODE [KEY_FOLDER]. MODE `stay`: until stdin ends,
then says goodbye. MODE `leave`: ends as soon as it is registered, without a word.
"""

import sys
import time

from hexgen_sglang.plugin.agent import WorkerAgent
from hexgen_sglang.plugin.registration import LinkState
from hexgen_sglang.protocol.messages import Hello
from hexgen_sglang.transport.zmq_link import ZmqWorkerEnd, load_worker_keys


def main(endpoint, incarnation, mode, *key_folder):
    keys = load_worker_keys(key_folder[0]) if key_folder else None
    hello = Hello(1, "w1", incarnation, "http://h:1", "m", "h", "0", "0", 1, 1, "fcfs")
    agent = WorkerAgent(lambda: ZmqWorkerEnd(endpoint, keys), hello)
    agent.start()
    if mode == "stay":
        sys.stdin.read()
        agent.stop("stdin ended")
        return
    while agent.status().state is not LinkState.WELCOMED:
        time.sleep(0.01)


if __name__ == "__main__":
    main(*sys.argv[1:])
