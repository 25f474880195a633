"""A Ray cluster of two nodes on the loopback of a network of its own, for tests/test_cluster.py.

Prints its address when it is up. Each line of its input kills the second node and begins another.
"""

import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys

CLONE_NEWNET = 0x40000000


def main() -> None:
    # Where a network of one's own is not allowed, that of the machine has to do.
    if ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:  # ip link set lo up
            fcntl.ioctl(asked, 0x8914, struct.pack("16sh14x", b"lo", 0x41))
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False}
    # a dead node is known after 5 s, not 15
    head["_system_config"] = {"health_check_period_ms": 1000}
    cluster = Cluster(True, head_node_args=head)
    second = cluster.add_node(num_cpus=1)
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.remove_node(second, allow_graceful=False)
        second = cluster.add_node(num_cpus=1)
        print("again", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    os.environ["RAY_raylet_start_wait_time_s"] = "120"
    main()
