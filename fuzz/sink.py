"""A bare ROUTER that reads all that comes and makes nothing of it: the floor under a flood.

What a flood costs beside it, it costs the machine: the sender, the kernel and ZeroMQ.
"""

from __future__ import annotations

import json
import sys
import threading
from contextlib import suppress

import zmq

from benchmarks.crowd import crowd_context
from procguard.adapters.zmq_sockets import ROUTER, open_socket

WAIT_MS = 100


def main() -> None:
    """Say where it listens, and read until stdin ends."""
    context = crowd_context()
    router = open_socket(context, zmq.ROUTER, ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    print(json.dumps({"port": port}), flush=True)
    end = threading.Thread(target=sys.stdin.read, daemon=True)
    end.start()
    while end.is_alive():
        router.poll(WAIT_MS)
        with suppress(zmq.Again):
            while True:
                router.recv(zmq.NOBLOCK)


if __name__ == "__main__":
    main()
