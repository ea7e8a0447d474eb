"""A worker's end: what it does with a guard, without one, and with one that comes and goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from procguard.adapters import ZMQCommunicationAdapter
from procguard.client import Heart, beat
from procguard.client.heart import LOOK_INTERVAL_S, _own_heart
from procguard.errors import ConfigError, UsageError
from procguard.guard_messages import GUARD, Answer, Command, FromGuard, GuardMessage
from procguard.messages import Heartbeat, Hello, HelloWanted, Incarnation, Settings, Welcome
from tests.adapters.test_communication_contract import eventually
from tests.client.fakes import Clock

REPOSITORY = Path(__file__).parent.parent.parent
ENVIRON = {"PROCGUARD_GUARD": "127.0.0.1:29520", "PROCGUARD_WORKER_ID": "a"}
WELCOME = Welcome(5, Incarnation(5, 1), 1, 0, Settings(1.0, 10.0, 10.0, 10.0, 0.0))


class FakeLine:
    """A connection on which the guard says what the test puts in ``incoming``."""

    def __init__(self) -> None:
        self.sent: list[GuardMessage] = []
        self.incoming: list[bytes] = []
        self.calls: list[str] = []

    def hears(self, *messages: FromGuard) -> None:
        self.incoming += [GUARD.encode(message) for message in messages]

    def send(self, frame: bytes) -> bool:
        self.sent.append(GUARD.decode(frame))
        return True

    def receive(self, count_max: int) -> list[bytes]:
        taken, self.incoming = self.incoming[:count_max], self.incoming[count_max:]
        return taken

    def reconnect(self) -> None:
        self.calls.append("reconnect")

    def close(self) -> None:
        self.calls.append("close")

    def wait(self, timeout_s: float, fds: Iterable[int] = ()) -> list[int]:
        raise AssertionError("beat() never waits")

    listen = notices = explain = wait


class Place:
    """A heart with a clock and a line of the test's own."""

    def __init__(self, on_command=None) -> None:
        self.clock, self.line = Clock(), FakeLine()
        self.heart = Heart(on_command, environ=ENVIRON, clock=self.clock, connect=lambda address: self.line)

    def beat(self, after_s: float = 1.0) -> list[GuardMessage]:
        """Let time pass and beat; what was said."""
        self.clock.advance(after_s)
        before = len(self.line.sent)
        assert self.heart.beat() is True
        return self.line.sent[before:]


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.heart.close()


# --- without a guard


def test_without_a_guard_it_does_nothing() -> None:
    heart = Heart(environ={})
    assert heart.beat() is False
    assert heart.start().connected is False
    heart.close()
    _own_heart.cache_clear()
    assert beat() is False


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"PROCGUARD_GUARD": "h:1"}, "guard h:1 is given without PROCGUARD_WORKER_ID"),
        ({"PROCGUARD_WORKER_ID": "a"}, "worker_id 'a' is given without PROCGUARD_GUARD"),
    ],
)
def test_half_a_place_is_a_mistake(environ, said) -> None:
    with pytest.raises(UsageError, match=said):
        Heart(environ=environ)


def test_a_place_that_cannot_be_is_named() -> None:
    with pytest.raises(ConfigError, match="PROCGUARD_GUARD: 'nowhere:' is not an address"):
        Heart(environ={"PROCGUARD_GUARD": "nowhere:", "PROCGUARD_WORKER_ID": "a"})
    with pytest.raises(UsageError, match="guard: '' is not an address"):
        Heart(guard="", worker_id="a", environ={})


# --- beating


def test_hello_and_then_beats(place: Place) -> None:
    [hello] = place.beat()
    assert isinstance(hello, Hello)
    assert (hello.replica_id, hello.process.pid) == ("a", os.getpid())
    place.line.hears(WELCOME)
    assert place.beat() == []
    assert place.heart.connected
    [beat] = place.beat()
    assert isinstance(beat, Heartbeat)


def test_beating_without_a_pause_costs_one_look_in_a_while(place: Place) -> None:
    place.beat()
    place.line.hears(WELCOME)
    assert place.beat(LOOK_INTERVAL_S / 2) == []
    assert place.line.incoming, "it has not looked"
    place.beat(LOOK_INTERVAL_S)
    assert not place.line.incoming


def test_a_beat_in_the_middle_of_another_waits_for_nobody(place: Place) -> None:
    inner = []

    def interrupted(frame: bytes) -> bool:  # as by a signal, in the same thread
        place.clock.advance(1.0)
        inner.append(place.heart.beat())
        return True

    place.line.send = interrupted  # type: ignore[method-assign]
    place.clock.advance(1.0)
    assert place.heart.beat() is True
    assert inner == [True]


def test_a_guard_that_was_started_again_is_told_who_this_is(place: Place) -> None:
    place.beat()
    place.line.hears(WELCOME)
    place.beat()
    place.line.hears(HelloWanted(6))
    [hello] = place.beat()
    assert isinstance(hello, Hello)


def test_garbage_is_dropped(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.line.incoming += [b"", b"\xc1", GUARD.encode(WELCOME)]
    place.beat()
    assert place.heart.connected
    assert "was dropped" in caplog.text


def test_a_command_is_carried_out_by_the_one_who_beats() -> None:
    threads = []
    place = Place(
        lambda command, arguments: threads.append(threading.current_thread()) or [command, arguments]
    )
    place.line.hears(WELCOME, Command(7, "save", b'{"step": 3}'), Command(8, "save", b"no JSON"))
    answers = [said for said in place.beat() if isinstance(said, Answer)]
    assert threads == [threading.current_thread()]
    assert [(answer.number, answer.ok) for answer in answers] == [(7, True), (8, False)]
    assert answers[0].result == b'["save", {"step": 3}]'
    assert answers[1].error.startswith("JSONDecodeError")
    place.heart.close()


def test_who_takes_no_commands_says_so(place: Place) -> None:
    place.line.hears(WELCOME, Command(7, "save", b"{}"))
    [answer] = [said for said in place.beat() if isinstance(said, Answer)]
    assert not answer.ok
    assert "Heart(on_command=...)" in answer.error


def test_a_result_too_long_to_send_is_a_refusal() -> None:
    place = Place(lambda command, arguments: "x" * 70_000)
    place.line.hears(Command(7, "save", b"{}"))
    [answer] = [said for said in place.beat() if isinstance(said, Answer)]
    assert not answer.ok
    assert "65536 can be sent" in answer.error
    place.heart.close()


def test_close_drops_what_nobody_takes_and_can_be_said_again(place: Place) -> None:
    place.beat()
    place.heart.close()
    place.heart.close()
    assert place.line.calls == ["reconnect", "close"]
    assert place.heart.beat() is False


def test_last_answers_are_not_dropped_at_close(place: Place) -> None:
    place.line.hears(WELCOME)
    place.beat()
    place.heart.close()
    assert place.line.calls == ["close"]


def test_a_forked_child_does_not_speak_for_its_parent(place: Place) -> None:
    place.heart._process = -1  # as seen from a child
    assert place.heart.beat() is False
    place.heart.close()
    assert place.line.calls == []
    place.heart._process = os.getpid()


# --- with a real guard


def test_a_long_command_does_not_stop_the_thread_from_beating() -> None:
    released, heard = threading.Event(), []
    with ZMQCommunicationAdapter(port_base=0, heartbeat_interval_s=0.01) as adapter:
        adapter.set_heartbeat_callback(heard.append)
        adapter.register_worker("a")
        with Heart(lambda command, arguments: released.wait(20), environ=adapter.environment("a")) as heart:
            assert eventually(lambda: heart.connected)
            asking = threading.Thread(target=adapter.send_command, args=("a", "save"))
            asking.start()
            before = len(heard)
            assert eventually(lambda: len(heard) > before + 5)
            assert heart.beat() is True
            released.set()
            asking.join()


def test_a_guard_that_starts_again_on_its_port_is_found_again() -> None:
    heard: list[str] = []
    first = ZMQCommunicationAdapter(port_base=0, heartbeat_interval_s=0.02)
    first.initialize()
    first.register_worker("a")
    port = int(first.address.rpartition(":")[2])
    with Heart(environ=first.environment("a")) as heart:
        assert eventually(lambda: heart.connected)
        first.close()

        def again() -> ZMQCommunicationAdapter | None:
            adapter = ZMQCommunicationAdapter(port_base=port, heartbeat_interval_s=0.02)
            try:
                adapter.initialize()
            except UsageError:  # the next port went to somebody else meanwhile
                return None
            return adapter

        second = eventually(again)
        second.set_heartbeat_callback(heard.append)
        second.register_worker("a")
        assert eventually(lambda: heard)
        assert eventually(lambda: second.connected_workers() == ["a"])
        second.close()


def test_one_line_in_a_program_of_ones_own_is_enough() -> None:
    program = (
        "import sys\nfrom procguard.client import beat\nwhile beat() and sys.stdin.readable():\n    pass\n"
    )
    heard: list[str] = []
    with ZMQCommunicationAdapter(port_base=0, heartbeat_interval_s=0.01) as adapter:
        adapter.set_heartbeat_callback(heard.append)
        adapter.register_worker("a")
        environ = {**os.environ, **adapter.environment("a"), "PYTHONPATH": str(REPOSITORY)}
        process = subprocess.Popen([sys.executable, "-c", program], env=environ)
        try:
            assert eventually(lambda: len(heard) >= 3)
        finally:
            process.kill()
            process.wait()
    alone = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(REPOSITORY)}, timeout=60, check=False
    )
    assert alone.returncode == 0


def test_a_forked_child_beats_for_itself() -> None:
    program = (
        "import os, time\nfrom procguard.client import beat\n"
        "beat()\nos.fork()\n"
        "while True:\n"
        "    beat()\n"
        "    time.sleep(0.01)\n"
    )
    with ZMQCommunicationAdapter(port_base=0, heartbeat_interval_s=0.01) as adapter:
        adapter.register_worker("a")
        environ = {**os.environ, **adapter.environment("a"), "PYTHONPATH": str(REPOSITORY)}
        process = subprocess.Popen([sys.executable, "-c", program], env=environ, start_new_session=True)
        try:

            def speakers() -> int:
                assert adapter._roll is not None
                return len(adapter._roll._workers["a"])

            assert eventually(lambda: speakers() == 2)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
