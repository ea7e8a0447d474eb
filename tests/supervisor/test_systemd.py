"""What the service manager is told, over a real datagram socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from procguard.supervisor.systemd import ServiceManager


@pytest.fixture
def told(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        yield listening


def test_it_is_told_of_ready_alive_and_stopping(told: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": told.getsockname(), "WATCHDOG_USEC": "3000000", "PATH": "/bin"}
    service = ServiceManager(environ)
    assert environ == {"PATH": "/bin"}, "the guard's own socket is not its workers'"
    assert service.watchdog_interval_s == 1.0
    service.ready("guarding 2 workers")
    service.alive()
    service.stopping("by SIGTERM")
    assert [told.recv(100) for _ in range(3)] == [
        b"READY=1\nSTATUS=guarding 2 workers",
        b"WATCHDOG=1",
        b"STOPPING=1\nSTATUS=by SIGTERM",
    ]


def test_an_abstract_socket_will_do() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0procguard-test-{os.getpid()}")
        listening.setblocking(False)
        ServiceManager({"NOTIFY_SOCKET": f"@procguard-test-{os.getpid()}"}).alive()
        assert listening.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "3000000"},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "relative", "WATCHDOG_USEC": ""},
    ],
)
def test_without_one_or_with_another_ones_nothing_is_told_and_nothing_raised(environ: dict[str, str]) -> None:
    service = ServiceManager(environ)
    assert service.watchdog_interval_s is None
    service.ready("guarding")
    service.alive()
