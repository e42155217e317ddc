"""A Ray cluster of two nodes on this machine, until standard input ends.

A program of its own: Ray changes signal handlers, threads and warnings of its process. The head
has an L40S, the other node an A100. Prints the address; a line takes the other node away.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

SMALL = {"num_cpus": 1, "object_store_memory": 80 * 1024 * 1024}


def main() -> None:
    """Head, node, and the lines of standard input."""
    head = {**SMALL, "resources": {"l40s": 1}, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    node = cluster.add_node(resources={"a100": 1}, **SMALL)
    sys.stdout.write(f"{cluster.address}\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        cluster.remove_node(node, allow_graceful=False)
    cluster.shutdown()


if __name__ == "__main__":
    main()
