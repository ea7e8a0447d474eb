"""The client: what it says where there is no guard, a strange one, a silent one, or somebody else's."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from procguard.errors import GuardError, GuardUnreachable, UsageError
from procguard.supervisor.control_client import ControlClient
from procguard.supervisor.control_socket import Peer, claim, listener_pid
from tests.supervisor.fake_guard import DEADLINE_S, FakeCommands, fake_guard


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        yield Path(os.path.realpath(name))


@contextlib.contextmanager
def somebody(path: Path, says: bytes | None) -> Iterator[None]:
    """Who answers each line with the same bytes, or (None) hangs up."""
    listener = claim(path)
    listener.settimeout(DEADLINE_S)
    over = threading.Event()

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                if over.is_set():
                    return
                connection.settimeout(DEADLINE_S)
                if connection.recv(1000) and says is not None:
                    connection.sendall(says)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        listener_pid(path)  # one more connection, which ends it
        thread.join(DEADLINE_S)
        listener.close()


def test_it_asks_and_is_answered(folder: Path) -> None:
    with fake_guard(folder) as (server, commands), ControlClient(server.path) as client:
        assert client.ask("stop", ids=["w0"], force=True) == {"w0": True}
        assert client.ask("status")["recovery"] is None
        with pytest.raises(UsageError, match="no worker 'w7'"):
            client.ask("start", ids=["w7"])
        commands.refusal = GuardError("not now")
        with pytest.raises(GuardError, match="not now"):
            client.ask("start", ids=["w0"])


def test_nobody_there(folder: Path) -> None:
    with pytest.raises(GuardUnreachable, match=r"no guard runs at .*: there is no such socket"):
        ControlClient(folder / "none.sock").ask("status")
    claim(folder / "s.sock").close()
    with pytest.raises(GuardUnreachable, match=r"the one that made this socket has ended"):
        ControlClient(folder / "s.sock").ask("status")
    (folder / "file").write_text("")
    with pytest.raises(GuardUnreachable, match="no guard runs at"):
        ControlClient(folder / "file").ask("status")
    with pytest.raises(GuardUnreachable, match="cannot ask the guard at"):
        ControlClient(folder / ("x" * 200)).ask("status")


def test_somebody_elses_guard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Socket(socket.socket):
        def connect(self, address: object) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("procguard.supervisor.control_client.socket.socket", Socket)
    with pytest.raises(GuardError, match=r"belongs to (\w+), and only \1 and root .* sudo -u \1 procguard"):
        ControlClient(folder / "s.sock").ask("status")


def test_a_stranger_where_our_guard_would_be_is_not_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("procguard.supervisor.control_client.os.geteuid", lambda: 1234)
    monkeypatch.setattr("procguard.supervisor.control_client.peer_of", lambda connection: Peer(1, 4321))
    with fake_guard(folder) as (server, commands), ControlClient(server.path) as client:
        with pytest.raises(GuardError, match="is uid 4321, not you"):
            client.ask("stop", ids=["w0"])
        assert commands.told == []


def test_a_silent_guard_is_not_waited_for_without_end(folder: Path) -> None:
    commands = FakeCommands()
    commands.slow = {"stop"}
    with fake_guard(folder, commands) as (server, _), ControlClient(server.path, timeout_s=0.05) as client:
        with pytest.raises(GuardUnreachable, match=rf"pid {os.getpid()} did not answer .* within 0.05 s"):
            client.ask("stop", ids=["w0"])
        client.timeout_s = DEADLINE_S
        assert (
            client.ask("status")["recovery"] is None
        )  # over a new connection: the old answer is not mistaken


@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"{}\n", b"\xff\n", b"[[\n"])
def test_a_stranger_at_the_socket(folder: Path, says: bytes) -> None:
    with (
        somebody(folder / "s.sock", says),
        ControlClient(folder / "s.sock") as client,
        pytest.raises(GuardError, match="does not understand"),
    ):
        client.ask("status")


def test_one_who_hangs_up(folder: Path) -> None:
    with (
        somebody(folder / "s.sock", None),
        ControlClient(folder / "s.sock") as client,
        pytest.raises(GuardUnreachable, match="ended, or cut the connection, before it answered"),
    ):
        client.ask("stop", ids=["w0"])


def test_a_kept_connection_survives_a_restart_of_the_guard(folder: Path) -> None:
    with ControlClient(folder / "s.json.sock") as client:
        for _ in range(3):
            with fake_guard(folder):
                assert client.ask("tasks")["queue"] == ["t3"]
        with pytest.raises(GuardUnreachable):
            client.ask("tasks")


def test_what_changes_something_is_not_said_twice_by_itself(folder: Path) -> None:
    with ControlClient(folder / "s.json.sock") as client:
        with fake_guard(folder):
            client.ask("tasks")
        with fake_guard(folder) as (_, commands):
            with pytest.raises(GuardUnreachable, match="may have been done"):
                client.ask("restart", ids=["w0"])
            assert commands.told == []
            assert client.ask("restart", ids=["w0"]) == {"w0": True}
