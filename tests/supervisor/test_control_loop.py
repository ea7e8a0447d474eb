"""The loop behind the socket: what it answers, and what a client gone wild cannot do to the others.

Most tests turn the loop by hand, in a time of their own; sockets and the threads of commands are real.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from procguard.errors import GuardError, UsageError
from procguard.supervisor import control_loop
from procguard.supervisor.control_loop import (
    ACCEPT_PAUSE_S,
    CLIENTS_COUNT_MAX,
    LOOK_S,
    PATIENCE_S,
    REQUESTS_AT_ONCE,
    REQUESTS_PER_S,
    ControlLoop,
)
from procguard.supervisor.control_socket import Peer, claim
from procguard.supervisor.control_words import REQUEST_BYTES_MAX
from tests.supervisor.fake_guard import DEADLINE_S, FakeCommands, worker

STATUS = b'{"verb": "status"}\n'
STOP = b'{"verb": "stop", "args": {"ids": ["w0"]}}\n'


def connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(DEADLINE_S)
    until = time.monotonic() + DEADLINE_S
    while True:
        try:
            connection.connect(str(path))
            return connection
        except BlockingIOError:  # the backlog is full: the loop takes its time for a flood
            assert time.monotonic() < until
            threading.Event().wait(0.001)


class Client:
    """Somebody at the socket."""

    def __init__(self, path: Path) -> None:
        self.socket = connected(path)
        self._file = self.socket.makefile("rb")

    def say(self, content: bytes) -> None:
        self.socket.sendall(content)

    def answer(self) -> dict[str, Any]:
        line = self._file.readline()
        assert line, "cut off"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def is_cut_off(self) -> bool:
        self.socket.setblocking(False)
        try:
            return self.socket.recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True
        finally:
            self.socket.settimeout(DEADLINE_S)

    def close(self) -> None:
        self._file.close()
        self.socket.close()


class Stage:
    """A loop that is turned by hand."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.now = 1000.0
        self.paused_s = 0.0
        self.commands = FakeCommands()
        self.path = folder / "s.sock"
        self.loop = ControlLoop(claim(self.path), self.commands, lambda: self.now, self._pause)
        self._stack = stack
        stack.callback(self._end)

    def _pause(self, seconds: float) -> None:
        self.paused_s += seconds
        self.now += seconds

    def _end(self) -> None:
        self.commands.go_on.set()
        self.loop.stop()
        self.loop.run()

    def client(self) -> Client:
        client = Client(self.path)
        self._stack.callback(client.close)
        self.loop.turn()
        return client

    def clients(self, count: int) -> list[Client]:
        return [self.client() for _ in range(count)]

    def turn(self, count: int = 1) -> None:
        for _ in range(count):
            self.loop.turn()

    def asked(self, client: Client, request: bytes = STATUS, turn_s: float = 0.0) -> dict[str, Any]:
        """What the client is answered, the loop being turned until it is."""
        client.say(request)
        return self.answered(client, turn_s)

    def answered(self, client: Client, turn_s: float = 0.0) -> dict[str, Any]:
        self.until_answered(client, turn_s)
        return client.answer()

    def until_answered(self, client: Client, turn_s: float = 0.0) -> None:
        """Turn until something is there to be read."""
        client.socket.setblocking(False)
        while True:
            try:
                assert client.socket.recv(1, socket.MSG_PEEK)
                break
            except BlockingIOError:
                self.loop.turn()
                self.now += turn_s
        client.socket.settimeout(DEADLINE_S)

    def pass_time(self, seconds: float) -> None:
        """It passes, and is noticed."""
        self.now += seconds
        self.loop.turn()


@pytest.fixture
def stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="pg-") as folder, ExitStack() as stack:
        yield Stage(Path(folder), stack)


# --- answers


def test_one_connection_may_ask_again_and_again(stage: Stage) -> None:
    client = stage.client()
    assert stage.asked(client)["result"]["guard"]["pid"] == 4242
    assert stage.asked(client, STOP) == {"ok": True, "result": {"w0": True}}
    assert stage.asked(client, b"rubbish\n")["usage"] is True
    assert stage.asked(client, b"\n")["usage"] is True
    assert stage.asked(client, STATUS + STOP)["ok"] is True
    assert stage.answered(client) == {"ok": True, "result": {"w0": True}}


def test_a_refusal_says_whose_fault_it_is(stage: Stage) -> None:
    client = stage.client()
    stage.commands.refusal = GuardError("the disk is full")
    assert stage.asked(client, STOP) == {"ok": False, "error": "the disk is full", "usage": False}
    stage.commands.refusal = UsageError("no such thing")
    assert stage.asked(client, STOP) == {"ok": False, "error": "no such thing", "usage": True}


def test_a_bug_of_ours_is_one_sentence_and_a_log_entry(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    client = stage.client()
    stage.commands.refusal = ZeroDivisionError("oh")
    with caplog.at_level(logging.ERROR):
        answer = stage.asked(client, STOP)
    assert answer["error"] == "the guard could not stop: ZeroDivisionError: oh; its log has more"
    assert "Traceback" in caplog.text
    assert stage.asked(client)["ok"] is True


def test_a_stop_that_takes_long_holds_up_nobody(stage: Stage) -> None:
    stage.commands.slow = {"stop"}
    slow, quick = stage.client(), stage.client()
    slow.say(STOP)
    stage.turn()
    assert stage.commands.busy.wait(DEADLINE_S)
    assert stage.asked(quick)["ok"] is True
    stage.commands.go_on.set()
    assert stage.answered(slow)["ok"] is True


def test_who_leaves_while_it_is_done_is_no_matter(stage: Stage) -> None:
    stage.commands.slow = {"stop"}
    client, other = stage.client(), stage.client()
    client.say(STOP)
    stage.turn()
    assert stage.commands.busy.wait(DEADLINE_S)
    client.close()
    stage.commands.go_on.set()
    assert stage.asked(other)["ok"] is True
    assert stage.commands.told == [("stop", ["w0"], False)]


def test_somebody_else_is_told_whose_guard_it_is(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_loop, "peer_of", lambda connection: Peer(1, os.geteuid() + 7))
    client = stage.client()
    assert (
        client.answer()["error"]
        == f"this guard belongs to uid {os.geteuid()}, and you are uid {os.geteuid() + 7}"
    )
    assert client.is_cut_off()
    monkeypatch.setattr(control_loop, "peer_of", lambda connection: Peer(1, 0))
    assert stage.asked(stage.client())["ok"] is True


# --- what a client cannot do


def test_half_a_line_is_held_for_a_while_only(stage: Stage) -> None:
    half, idle = stage.client(), stage.client()
    half.say(b'{"verb": ')
    stage.turn()
    stage.pass_time(PATIENCE_S - 1)
    half.say(b'"st')  # a byte now and then buys no time
    stage.turn()
    assert not half.is_cut_off()
    stage.pass_time(2)
    assert half.is_cut_off()
    assert not idle.is_cut_off()


def test_a_line_without_end_is_refused(stage: Stage) -> None:
    client = stage.client()
    client.socket.setblocking(False)
    sent = 0
    while sent <= REQUEST_BYTES_MAX:
        sent += client.socket.send(b"x" * 50_000)
        stage.turn()
    client.socket.settimeout(DEADLINE_S)
    assert "more than" in client.answer()["error"]
    assert client.is_cut_off()


def test_who_never_reads_is_let_go(stage: Stage) -> None:
    stage.commands.workers = [worker("w" * 1000) for _ in range(2000)]
    silent, other = stage.client(), stage.client()
    silent.say(STATUS * 50)
    stage.until_answered(silent)
    assert stage.asked(other, b'{"verb": "tasks"}\n')["ok"] is True
    stage.pass_time(PATIENCE_S - 1)
    silent.say(STATUS)
    stage.pass_time(2)
    with pytest.raises(ConnectionError):
        silent.say(STATUS)
    assert stage.asked(other, b'{"verb": "tasks"}\n')["ok"] is True


def test_the_longest_idle_makes_room(stage: Stage) -> None:
    first, second = stage.client(), stage.client()
    stage.now += 1
    others = stage.clients(CLIENTS_COUNT_MAX - 2)
    stage.asked(first)  # idle no longer
    newcomer = stage.client()
    assert second.is_cut_off()
    assert not first.is_cut_off()
    assert not any(other.is_cut_off() for other in others)
    assert stage.asked(newcomer)["ok"] is True


def test_who_has_asked_is_never_sent_away_for_others(stage: Stage) -> None:
    stage.commands.slow = {"stop"}
    clients = stage.clients(CLIENTS_COUNT_MAX)
    for client in clients:
        client.say(STOP)
    stage.turn()
    newcomer = stage.client()
    assert (
        newcomer.answer()["error"] == f"the guard is busy with {CLIENTS_COUNT_MAX} requests; ask again later"
    )
    stage.commands.go_on.set()
    assert all(stage.answered(client)["ok"] for client in clients)


def test_a_flood_of_requests_gets_its_budget(stage: Stage) -> None:
    began_at = stage.now
    for client in stage.clients(10):
        client.say(STOP * 100)
    while len(stage.commands.told) < REQUESTS_AT_ONCE + 50:
        stage.turn()
        stage.now += 0.01
    passed_s = stage.now - began_at
    assert len(stage.commands.told) <= REQUESTS_AT_ONCE + REQUESTS_PER_S * passed_s + 1
    assert stage.asked(stage.client(), turn_s=0.01)["ok"] is True


def test_turns_without_end_are_slowed_down(stage: Stage) -> None:
    dripping = stage.client()
    for _ in range(1000):
        dripping.say(b" ")
        stage.turn()
    assert stage.now - 1000.0 == pytest.approx(stage.paused_s)
    assert stage.paused_s >= 1.5


def test_no_descriptors_left_is_a_pause_not_an_end(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    here = stage.client()

    class Exhausted:
        def __init__(self, listener: socket.socket) -> None:
            self._listener = listener

        def accept(self) -> Any:
            raise OSError(errno.EMFILE, "Too many open files")

        def __getattr__(self, name: str) -> Any:
            return getattr(self._listener, name)

    listener = stage.loop._listener
    with socket.socket(socket.AF_UNIX) as knocking:
        knocking.settimeout(DEADLINE_S)
        knocking.connect(str(stage.path))
        monkeypatch.setattr(stage.loop, "_listener", Exhausted(listener))
        stage.loop._accept(stage.now)
        monkeypatch.setattr(stage.loop, "_listener", listener)
        assert stage.asked(here)["ok"] is True
        stage.pass_time(max(ACCEPT_PAUSE_S, LOOK_S))
        stage.turn()
        knocking.sendall(STATUS)
        stage.turn(2)
        assert knocking.recv(10)


def test_a_bad_moment_of_the_loop_is_not_its_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    moments = iter([RuntimeError("bad"), None])

    def turn(every_second: object = None) -> None:
        moment = next(moments)
        if moment:
            raise moment
        stage.loop.stop()

    monkeypatch.setattr(stage.loop, "turn", turn)
    with caplog.at_level(logging.ERROR):
        stage.loop.run()
    assert "had a bad moment" in caplog.text


def test_ten_thousand_connections_and_a_person() -> None:
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        path = Path(folder) / "s.sock"
        commands = FakeCommands()
        loop = ControlLoop(claim(path), commands)
        thread = threading.Thread(target=loop.run)
        thread.start()
        try:
            held = []
            for number in range(10_000):
                connection = connected(path)
                if number % 100:
                    connection.close()
                else:
                    held.append(connection)
            person = Client(path)
            person.say(STATUS)
            assert person.answer()["ok"] is True
            person.close()
            for connection in held:
                connection.close()
        finally:
            loop.stop()
            thread.join(DEADLINE_S)
        assert not thread.is_alive()
