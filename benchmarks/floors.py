"""The floor under detection: what the kernel and ZeroMQ need by themselves on this machine, now."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import zmq

_HOLDER = """
import sys, time
from procguard.client.witness import LifeLine
line = LifeLine()
print(line.memfd, flush=True)
time.sleep(1000)
"""
_WAITER = """
import sys, time, os
from procguard.client.robust_mutex import RobustMutex, map_shared
memfd = os.open(f"/proc/{sys.argv[1]}/fd/{sys.argv[2]}", os.O_RDWR)
mutex = RobustMutex(map_shared(memfd, 4096))
print("waiting", flush=True)
mutex.wait_for_owner()
print(time.monotonic(), flush=True)
"""
_ECHO = """
import sys, time, zmq
socket = zmq.Context().socket(zmq.DEALER)
socket.connect(sys.argv[1])
for _ in range(int(sys.argv[2])):
    socket.send(b"%.9f" % time.monotonic())
    socket.recv()
"""


def mutex_wakes_ms(count: int) -> list[float]:
    """From ``kill`` of a process that holds a robust mutex to the wake of the one that waits for it."""
    times = []
    for _ in range(count):
        with _python(_HOLDER) as holder:
            memfd = _line(holder)
            with _python(_WAITER, str(holder.pid), memfd) as waiter:
                _line(waiter)
                _await_asleep(waiter.pid)
                start = time.monotonic()
                os.kill(holder.pid, signal.SIGKILL)
                times.append((float(_line(waiter)) - start) * 1000)
    return times


def zmq_hops_ms(count: int) -> list[float]:
    """One message from a DEALER in one process to a ROUTER in another, waited for with ``poll``."""
    times = []
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        with _python(_ECHO, f"tcp://127.0.0.1:{port}", str(count)):
            for _ in range(count):
                router.poll()
                at = time.monotonic()
                peer, sent = router.recv_multipart()
                times.append((at - float(sent)) * 1000)
                router.send_multipart([peer, b""])
    return times


def _python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _await_asleep(pid: int) -> None:
    """Until the process sleeps, in the lock: it said that it would wait just before it did."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/stat") as stat:
            if stat.read().rpartition(")")[2].split()[0] == "S":
                return
