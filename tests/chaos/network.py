"""Hosts with a network between them that can be made bad, on one machine.

Each host is a network namespace with one interface, a TUN device whose other end is held here: every packet
that one host sends to another passes through a thread of ours, which drops it, keeps it for a while, or
passes it on. The hosts' TCP is the kernel's own, so what follows from a lost packet is what follows in life.
This takes namespaces and TUN devices only; the kernel's own emulator (``tc netem``) and ``nft`` are missing
on many machines that have both.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

TUN = Path("/dev/net/tun")
TUNSETIFF = 0x400454CA
IFF_TUN_WITHOUT_HEADER = 0x0001 | 0x1000
PACKET_BYTES_MAX = 1 << 16
MTU_BYTES = 1_400
NETWORKS = 512
"""Of 256 addresses each, in 198.18.0.0/15, which is set aside for trials like these (RFC 2544)."""
IDLE_S = 1.0


class Weather(NamedTuple):
    """What becomes of a packet on its way from one host to another."""

    loss: float = 0.0
    """Share of packets that vanish."""
    delay_s: float = 0.0
    jitter_s: float = 0.0
    """Up to so much is added to the delay, or taken from it, of each packet by itself."""
    hole_bytes: int = PACKET_BYTES_MAX
    """Packets longer than this vanish, and nobody is told: a router that sends no ICMP."""


FINE = Weather()
CUT = Weather(loss=1.0)


def why_not() -> str:
    """What this machine lacks for it; empty if nothing."""
    if shutil.which("ip") is None:
        return "there is no `ip` command"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not os.access(TUN, os.R_OK | os.W_OK):
        return f"{TUN} cannot be opened"
    tried = _ip("netns", "add", name := f"pg-try-{os.getpid()}", check=False)
    if tried.returncode != 0:
        return f"no network namespace can be made: {tried.stderr.strip()}"
    _ip("netns", "del", name)
    return ""


def _ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=check, timeout=30)


class Network:
    """Hosts by name. The first is this machine itself, the others are namespaces.

    Use as a context manager: at its end no namespace is left, and no device.
    """

    def __init__(self, here: str, *others: str, seed: int = 1) -> None:
        self._names = (here, *others)
        number = os.getpid() % NETWORKS  # so that two test runs at once do not share one
        self._prefix = f"198.{18 + number // 256}.{number % 256}"
        self._rng = random.Random(seed)
        self._weather: dict[tuple[str, str], Weather] = {}
        self._tun: dict[str, int] = {}
        self._over, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._route)
        self.passed = self.dropped = 0

    def address(self, name: str) -> str:
        return f"{self._prefix}.{self._names.index(name) + 1}"

    def on(self, name: str) -> list[str]:
        """What to put in front of a command, for it to run on that host."""
        return [] if name == self._names[0] else ["ip", "netns", "exec", self._space(name)]

    def between(self, origin: str, target: str, weather: Weather) -> None:
        """The way from one host to another; not the way back."""
        self._weather[self.address(origin), self.address(target)] = weather

    def everywhere(self, weather: Weather) -> None:
        for origin in self._names:
            for target in self._names:
                self.between(origin, target, weather)

    def _space(self, name: str) -> str:
        return f"pg-{os.getpid()}-{name}"

    def __enter__(self) -> Network:
        try:
            for name in self._names:
                self._add(name)
        except BaseException:
            self._remove()
            raise
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.close()
        self._thread.join()
        self._over.close()
        self._remove()

    def _add(self, name: str) -> None:
        """A device whose packets are read and written here, and which then moves to its host."""
        device = f"pg{os.getpid() % 100_000}-{self._names.index(name)}"
        tun = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
        self._tun[self.address(name)] = tun
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN_WITHOUT_HEADER))
        there: tuple[str, ...] = ()
        if name != self._names[0]:
            _ip("netns", "add", self._space(name))
            _ip("link", "set", device, "netns", self._space(name))
            there = ("-n", self._space(name))
            _ip(*there, "link", "set", "lo", "up")
        _ip(*there, "addr", "add", f"{self.address(name)}/24", "dev", device)
        _ip(*there, "link", "set", device, "mtu", str(MTU_BYTES), "up")

    def _remove(self) -> None:
        for tun in self._tun.values():
            os.close(tun)
        for name in self._names[1:]:
            _ip("netns", "del", self._space(name), check=False)

    def _route(self) -> None:
        """Until ``__exit__``: take what is sent, and pass it on when it is due."""
        under_way: list[tuple[float, int, int, bytes]] = []
        order = count()
        while True:
            wait_s = under_way[0][0] - time.monotonic() if under_way else IDLE_S
            readable, _, _ = select.select([self._over, *self._tun.values()], [], [], max(0.0, wait_s))
            if self._over in readable:
                return
            for tun in readable:
                with suppress(BlockingIOError):
                    packet = os.read(tun, PACKET_BYTES_MAX)
                    arrival = self._arrival(packet)
                    if arrival is not None:
                        heapq.heappush(under_way, (arrival[0], next(order), arrival[1], packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, _, target, packet = heapq.heappop(under_way)
                with suppress(OSError):  # its queue is full: one more that is lost
                    os.write(target, packet)
                    self.passed += 1

    def _arrival(self, packet: bytes) -> tuple[float, int] | None:
        """When, and where by its device; None: it vanishes."""
        if packet[0] >> 4 != 4:
            return None
        origin, target = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
        if target not in self._tun:
            return None
        weather = self._weather.get((origin, target), FINE)
        if len(packet) > weather.hole_bytes or self._rng.random() < weather.loss:
            self.dropped += 1
            return None
        late_s = weather.delay_s + self._rng.uniform(-weather.jitter_s, weather.jitter_s)
        return time.monotonic() + max(0.0, late_s), self._tun[target]
