"""The floor under detection: what the kernel and ZeroMQ need by themselves on this machine, now."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

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
_DRAIN = """
import zmq
from procguard.codec import encode
from procguard.messages import KIND_OF, Heartbeat, Incarnation, Settings, Welcome
router = zmq.Context().socket(zmq.ROUTER)
print(router.bind_to_random_port("tcp://127.0.0.1"), flush=True)
welcome = encode(Welcome(1, Incarnation(1, 1), 1, 0, Settings(0.1, 1.0, 5.0, 0.3, 60.0)))
poller = zmq.Poller()
poller.register(router, zmq.POLLIN)
kind = KIND_OF[Heartbeat]
recv = router.recv
noblock = int(zmq.NOBLOCK)
while True:
    poller.poll()
    try:
        while True:
            peer = recv(noblock)
            frame = recv(noblock)
            if frame[2] != kind:
                router.send_multipart([peer, welcome])
    except zmq.Again:
        pass
"""
_SENDER = """
import socket, sys
blob = b"x" * int(sys.argv[1])
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True:
    with server.accept()[0] as connection:
        connection.sendall(blob)
"""
_ROUNDS = """
import sys, zmq
router = zmq.Context().socket(zmq.ROUTER)
print(router.bind_to_random_port("tcp://127.0.0.1"), flush=True)
count, answer = int(sys.argv[1]), bytes(int(sys.argv[2]))
while True:
    for peer in [router.recv_multipart()[0] for _ in range(count)]:
        router.send_multipart([peer, answer])
"""


_PIECE_BYTES = 1 << 20
"""Received in one go; of 64 KiB to 1 GiB the fastest (measured)."""


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


@contextmanager
def bare_drain() -> Iterator[tuple[str, int]]:
    """A ROUTER whose frames are taken and thrown away; each that is no heartbeat is answered with a Welcome.

    Yields its address and the process's id.
    """
    with _python(_DRAIN) as drain:
        try:
            yield f"127.0.0.1:{_line(drain)}", drain.pid
        finally:
            drain.kill()


def tcp_transfers_s(size_bytes: int, count: int) -> list[float]:
    """So many bytes from one process to another over TCP, each time into fresh memory; with the connect."""
    times = []
    with _python(_SENDER, str(size_bytes)) as sender:
        try:
            address = ("127.0.0.1", int(_line(sender)))
            for _ in range(count):
                start = time.monotonic()
                memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                with socket.create_connection(address) as connection, memoryview(memory) as view:
                    received = 0
                    while received < size_bytes:
                        received += connection.recv_into(view[received : received + _PIECE_BYTES])
                memory.close()
                times.append(time.monotonic() - start)
        finally:
            sender.kill()
    return times


@contextmanager
def bare_rounds(members: int, answer_bytes: int) -> Iterator[str]:
    """A ROUTER that answers all of so many members as soon as each has sent something. Yields its address."""
    with _python(_ROUNDS, str(members), str(answer_bytes)) as answerer:
        try:
            yield f"127.0.0.1:{_line(answerer)}"
        finally:
            answerer.kill()


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
