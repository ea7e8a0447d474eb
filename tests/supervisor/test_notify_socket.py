"""NOTIFY_SOCKET: the words of sd_notify(3), and what a hostile sender cannot do."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procguard.errors import StateError
from procguard.supervisor.health_words import (
    Beat,
    BeatTimeout,
    Event,
    Extended,
    Ready,
    Spoke,
    Stopping,
    Triggered,
)
from procguard.supervisor.notify_socket import (
    DATAGRAM_BYTES_MAX,
    DATAGRAMS_PER_WAKE_MAX,
    PATH_BYTES_MAX,
    STATUS_CHARACTERS_MAX,
    Datagram,
    NotifySocket,
    parse,
    socket_path,
)
from tests.supervisor.programs import NOTIFY, process, until


@pytest.fixture
def notify(tmp_path: Path) -> Iterator[NotifySocket]:
    opened = NotifySocket(tmp_path / "notify.sock")
    yield opened
    opened.close()


@pytest.fixture
def sender(notify: NotifySocket) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connected:
        connected.connect(str(notify.path))
        yield connected


@pytest.mark.parametrize(
    ("content", "events"),
    [
        (b"READY=1", (Ready(),)),
        (b"READY=1\n", (Ready(),)),
        (b"WATCHDOG=1", (Beat(),)),
        (b"WATCHDOG=trigger", (Triggered(),)),
        (b"STOPPING=1", (Stopping(),)),
        (b"WATCHDOG_USEC=2500000", (BeatTimeout(2.5),)),
        (b"EXTEND_TIMEOUT_USEC=30000000", (Extended(30.0),)),
        (b"READY=1\nSTATUS=up\nWATCHDOG=1", (Ready(), Beat())),
        (b"RELOADING=1\nMONOTONIC_USEC=17", (Spoke(),)),
        (b"STATUS=loading", (Spoke(),)),
        (b"", (Spoke(),)),
        (b"READY=0", (Spoke(),)),
        (b"READY", (Spoke(),)),
        (b"WATCHDOG_USEC=0", (Spoke(),)),
        (b"WATCHDOG_USEC=-1", (Spoke(),)),
        (b"WATCHDOG_USEC=1e9", (Spoke(),)),
        (b"WATCHDOG_USEC=\xc2\xb2", (Spoke(),)),  # a digit to Python, not a number
        (b"EXTEND_TIMEOUT_USEC=" + b"9" * 5000, (Extended(86_400.0),)),
        (os.urandom(4096).replace(b"=", b"-"), (Spoke(),)),
    ],
)
def test_what_a_datagram_means(content: bytes, events: tuple[Event, ...]) -> None:
    assert parse(content, 7).events == events


def test_what_else_a_datagram_may_say() -> None:
    content = b"STATUS=step 7 of 9\nMAINPID=1\nFDSTORE=1\nX_PROCGUARD_STACK_SIGNAL=44\nX_OTHER=5"
    assert parse(content, 7) == Datagram(7, (Spoke(),), "step 7 of 9", 44, ("MAINPID", "FDSTORE"))


def test_a_status_steers_no_terminal() -> None:
    said = parse(b"STATUS=\x1b[2J\x07step\x0b7 \xff" + b"x" * 1000, 7).status
    assert said is not None
    assert said.startswith("?[2J?step")
    assert said.isprintable()
    assert len(said) <= STATUS_CHARACTERS_MAX


LINES = st.sampled_from(
    [
        *(b"READY=", b"WATCHDOG=", b"WATCHDOG_USEC=", b"EXTEND_TIMEOUT_USEC=", b"STOPPING=", b"STATUS="),
        *(b"MAINPID=", b"FDSTORE=", b"X_PROCGUARD_STACK_SIGNAL=", b"1", b"trigger", b"99999999999", b"\n"),
        *(b"\0", b"=", b"\xff", "\N{SUPERSCRIPT TWO}".encode(), b"-", b" "),
    ]
)


@given(st.one_of(st.binary(max_size=200), st.lists(LINES, max_size=20).map(b"".join)))
def test_whatever_is_sent_is_understood_or_left_out(content: bytes) -> None:
    said = parse(content, 7)
    for event in said.events:
        if isinstance(event, Extended):
            assert 0 <= event.extra_s <= 86_400
        if isinstance(event, BeatTimeout):
            assert 0 < event.timeout_s <= 86_400
    assert said.status is None or said.status.isprintable()
    assert said.stack_signal is None or said.stack_signal >= 0


def test_the_kernel_says_who_has_sent_it(notify: NotifySocket) -> None:
    with process(
        f"{NOTIFY}\nsay('READY=1')\nsys.stdin.read()", env={"NOTIFY_SOCKET": str(notify.path)}
    ) as worker:
        heard: list[Datagram] = []
        until(lambda: heard.extend(notify.receive()) or heard)
        assert heard == [Datagram(worker.pid, (Ready(),))]


def test_nothing_has_come(notify: NotifySocket) -> None:
    assert notify.receive() == []


def test_descriptors_are_closed_which_is_what_a_barrier_waits_for(
    notify: NotifySocket, sender: socket.socket
) -> None:
    reading, writing = os.pipe()
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(sender, [b"BARRIER=1"], [writing] * 200)
    os.close(writing)
    (heard,) = notify.receive()
    assert heard.unheeded == ("BARRIER",)
    assert os.read(reading, 1) == b""  # the other end is closed everywhere
    assert len(os.listdir("/proc/self/fd")) == before - 1
    os.close(reading)


def test_what_is_too_long_is_dropped(notify: NotifySocket, sender: socket.socket) -> None:
    sender.send(b"READY=1\n" + b"x" * DATAGRAM_BYTES_MAX)
    sender.send(b"WATCHDOG=1")
    assert [each.events for each in notify.receive()] == [(Beat(),)]


def test_a_flood_is_taken_in_by_and_by(notify: NotifySocket, sender: socket.socket) -> None:
    sender.setblocking(False)
    sent = 0
    received = 0
    while sent < 2 * DATAGRAMS_PER_WAKE_MAX:
        try:
            sent += bool(sender.send(b"WATCHDOG=1"))
        except BlockingIOError:
            batch = len(notify.receive())
            assert 0 < batch <= DATAGRAMS_PER_WAKE_MAX
            received += batch
    while batch := len(notify.receive()):
        received += batch
    assert received == sent


def test_it_is_for_this_user_only_and_goes_with_its_guard(tmp_path: Path) -> None:
    opened = NotifySocket(tmp_path / "new" / "notify.sock")
    assert stat.S_IMODE(opened.path.stat().st_mode) == 0o600
    opened.close()
    assert not opened.path.exists()


def test_what_a_killed_guard_left_behind_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
        left.bind(str(tmp_path / "notify.sock"))
    NotifySocket(tmp_path / "notify.sock").close()


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match=r"file/notify\.sock: workers cannot report here"):
        NotifySocket(tmp_path / "file" / "notify.sock")


def test_a_path_too_long_is_replaced_by_a_short_one_always_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert socket_path(tmp_path) == tmp_path / "notify.sock"
    deep = tmp_path / ("d" * 120)
    path = socket_path(deep)
    assert len(os.fsencode(path)) <= PATH_BYTES_MAX
    assert path == socket_path(deep) != socket_path(tmp_path / ("e" * 120))
    opened = NotifySocket(path)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    opened.close()


def test_a_directory_that_somebody_else_has_made_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"procguard-{os.getuid()}" / "x.sock"
    path.parent.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    path.parent.rename(tmp_path / "procguard-12345")
    with pytest.raises(StateError, match="belongs to somebody else"):
        NotifySocket(tmp_path / "procguard-12345" / "x.sock")
