"""The two hosts of a session: real processes with a program of the test's, and the real loop in a thread."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from procguard import codec
from procguard.client import hosts as hosts_module
from procguard.client.hosts import ListenerProcess, ListenerThread
from procguard.client.link import Link
from procguard.client.link_words import LastWords, LinkMessage, Ready, Said
from procguard.client.witness import LifeLine
from procguard.messages import Heartbeat, Phase
from tests.client.fakes import DEADLINE_S, Clock, FakeWire, enrol, no_server, welcome

PROGRAM = """
import os, signal, socket, sys
from procguard.client.link import Link
from procguard.client.link_words import LastWords, Said
link = Link(socket.socket(fileno=int(sys.argv[1])), 30.0)
link.send(Said(20, f"{os.getcwd()} {os.getsid(0) == os.getpid()} {sys.argv[2]}"))
while (messages := link.receive()) is not None:
    for message in messages:
        if message == LastWords("exit"):
            sys.exit(3)
        if message == LastWords("hang up"):
            link.close()
            signal.pause()
        if message == Farewell():
            sys.exit(0)
"""

Start = Callable[[], ListenerProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts listener processes, and sees to it that none is left."""
    line = LifeLine()
    started: list[ListenerProcess] = []

    def command(link_fd: int, secret_fd: int, topic: bytes) -> Sequence[str]:
        return [sys.executable, "-c", PROGRAM, str(link_fd), topic.hex()]

    def start_one() -> ListenerProcess:
        started.append(ListenerProcess(command, line))
        started[-1].link._end.settimeout(DEADLINE_S)
        return started[-1]

    yield start_one
    for host in started:
        host.link.close()
        host._process.kill()
        host._process.wait()
    line.close()


def hear(link: Link) -> LinkMessage:
    messages = link.receive()
    assert messages is not None
    assert len(messages) == 1, "nothing was said in time"
    return messages[0]


def test_a_listener_is_a_process_apart_with_a_topic_of_its_own(start: Start) -> None:
    said = [hear(start().link) for _ in range(2)]
    words = [message.text.split() for message in said if isinstance(message, Said)]
    assert [word[:2] for word in words] == [["/", "True"]] * 2, (
        "in no folder of ours, in a session of its own"
    )
    assert words[0][2] != words[1][2]


def test_a_secret_is_handed_down_through_a_pipe() -> None:
    line = LifeLine()
    before = set(os.listdir("/proc/self/fd"))
    program = """
import os, socket, sys
from procguard.client.link import Link
from procguard.client.link_words import Said
found = open(int(sys.argv[2])).read()
elsewhere = [*sys.argv, *os.environ.values()]
Link(socket.socket(fileno=int(sys.argv[1])), 30.0).send(Said(20, f"{found} {found in ' '.join(elsewhere)}"))
"""

    def command(link_fd: int, secret_fd: int, topic: bytes) -> Sequence[str]:
        return [sys.executable, "-c", program, str(link_fd), str(secret_fd)]

    host = ListenerProcess(command, line, b"hush")
    host.link._end.settimeout(DEADLINE_S)
    assert hear(host.link) == Said(20, "hush False")
    assert host._process.wait(DEADLINE_S) == 0
    host.link.close()
    assert set(os.listdir("/proc/self/fd")) == before
    line.close()


def test_sent_home_it_goes_and_leaves_no_zombie(start: Start) -> None:
    host = start()
    hear(host.link)
    process = psutil.Process(host.pid)
    host.close()
    process.wait(DEADLINE_S)
    assert not process.is_running()


def test_how_it_ended_is_said(start: Start) -> None:
    host = start()
    hear(host.link)
    host.link.send(LastWords("exit"))
    assert host.link.receive() is None
    assert host.ended_with() == "exit code 3"
    killed = start()
    hear(killed.link)
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.link.receive() is None
    assert killed.ended_with() == "signal 9"


def test_one_that_has_dropped_its_link_is_ended(start: Start) -> None:
    host = start()
    hear(host.link)
    host.link.send(LastWords("hang up"))
    assert host.link.receive() is None
    assert host.ended_with() == "it did not read its link"
    assert host._process.returncode == -signal.SIGKILL


def test_one_that_does_not_go_by_itself_is_ended(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts_module, "END_TIMEOUT_S", 0.01)
    host = start()
    hear(host.link)
    process = psutil.Process(host.pid)
    process.suspend()
    host.close()
    process.wait(DEADLINE_S)


def test_one_that_cannot_be_started_leaves_nothing_open() -> None:
    line = LifeLine()
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        ListenerProcess(lambda link_fd, secret_fd, topic: ["/no/such/program"], line, b"hush")
    assert set(os.listdir("/proc/self/fd")) == before
    line.close()


def test_it_finds_this_very_package_and_what_the_trainer_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"here{os.pathsep}/there")
    found = hosts_module._python_path().split(os.pathsep)
    assert found[1:] == [str(Path("here").absolute()), "/there"]
    assert (Path(found[0]) / "procguard" / "client" / "hosts.py").samefile(hosts_module.__file__)


@pytest.mark.parametrize("hear_notices", [True, False])
def test_in_a_thread_runs_the_same_session(hear_notices: bool) -> None:
    clock = Clock()
    wire = FakeWire(clock, codec.decode, codec.encode)
    wire.is_patient = True
    line = LifeLine()
    line.board.write(phase=Phase.HEAL, progress=4, step=7)
    wire.deliver(welcome())
    host = ListenerThread(wire, line.board, no_server, hear_notices=hear_notices)
    host.link._end.settimeout(DEADLINE_S)
    assert host.pid is None
    host.link.send(enrol())
    assert hear(host.link) == Ready()
    host.close()
    assert host.ended_with() == "the end of its thread"
    assert wire.closed.wait(DEADLINE_S)
    beat = next(message for message in wire.sent if isinstance(message, Heartbeat))
    assert (beat.threaded, beat.phase, beat.progress, beat.step) == (True, Phase.HEAL, 4, 7)
    line.close()
