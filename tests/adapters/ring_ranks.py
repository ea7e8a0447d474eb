"""Ranks of a ring for tests, and what else its tests ask of sockets."""

from __future__ import annotations

import os
import socket
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import numpy as np

from procguard.adapters.collective import RingProcessGroup
from tests.adapters.ranks import DEADLINE_S, GroupRanks


class Ranks(GroupRanks[RingProcessGroup]):
    def make(self, timeout: timedelta) -> RingProcessGroup:
        return RingProcessGroup(timeout)

    def full(self, size: int, value: float) -> Any:
        return np.full(size, value)


def error_of(future: Future[Any]) -> BaseException:
    error = future.exception(DEADLINE_S)
    assert error is not None
    return error


def port_of(handle: str) -> int:
    return int(handle.rpartition(":")[2])


def call_port(handle: str, text: bytes = b"") -> socket.socket:
    stranger = socket.create_connection(("127.0.0.1", port_of(handle)), DEADLINE_S)
    stranger.sendall(text)
    return stranger


def is_closed_by_peer(stranger: socket.socket) -> bool:
    try:
        while stranger.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


def sockets() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                found.add(int(name))
        except FileNotFoundError:
            pass  # the directory listing's own
    return found
