"""What only the wire can do wrong: ports that are taken, garbage, workers that go or never answer."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from procguard.adapters import ZMQCommunicationAdapter
from procguard.adapters.zmq import ZmqLighthouseTransport, ZmqMemberTransport
from procguard.client import Heart
from procguard.errors import UsageError
from procguard.guard_messages import GUARD, Answer, GuardMessage
from procguard.messages import Rejected
from procguard.supervisor.monitor import ProcessMonitor
from tests.adapters.test_communication_contract import DEADLINE_S, eventually
from tests.client.fakes import hello


@pytest.fixture
def adapter() -> Iterator[ZMQCommunicationAdapter]:
    with closing(ZMQCommunicationAdapter(port_base=0, timeout=20_000, heartbeat_interval_s=0.02)) as opened:
        opened.initialize()
        yield opened


def line_to(adapter: ZMQCommunicationAdapter) -> closing[ZmqMemberTransport]:
    host, _, port = adapter.address.rpartition(":")
    return closing(ZmqMemberTransport(host, int(port)))


def said_on(line: ZmqMemberTransport) -> GuardMessage:
    line.wait(DEADLINE_S)
    [frame] = line.receive(1)
    return GUARD.decode(frame)


def test_a_port_that_is_taken_names_the_key_and_the_remedy(adapter: ZMQCommunicationAdapter) -> None:
    port = int(adapter.address.rpartition(":")[2])
    with pytest.raises(
        UsageError, match=rf"communication\.adapter_config: .*port_base {port}.*another port_base"
    ):
        ZMQCommunicationAdapter(port_base=port).initialize()


def test_the_address_is_one_that_workers_reach() -> None:
    for host, seen in (
        ("0.0.0.0", "127.0.0.1"),
        ("::1", "[::1]"),
        ("::", "[::1]"),
        ("127.0.0.1", "127.0.0.1"),
    ):
        try:
            with ZMQCommunicationAdapter(host, 0) as adapter:
                assert adapter.environment("a")["PROCGUARD_GUARD"].rpartition(":")[0] == seen
        except UsageError:
            assert ":" in host, "only IPv6 may be missing here"


def test_garbage_stops_nobody(adapter: ZMQCommunicationAdapter, caplog: pytest.LogCaptureFixture) -> None:
    with line_to(adapter) as line:
        for frame in (b"", b"\xc1", b"GET / HTTP/1.1", bytes(1000)):
            line.send(frame)
        line.send(GUARD.encode(hello("stranger", job_id="guard")))
        assert isinstance(said_on(line), Rejected)
    assert "a frame was dropped" in caplog.text


def test_an_answer_nobody_asked_for_is_nothing(adapter: ZMQCommunicationAdapter) -> None:
    adapter.register_worker("a")
    with line_to(adapter) as line:
        line.send(GUARD.encode(Answer(bytes(16), 1, True, b"not JSON", "")))
        line.send(GUARD.encode(hello("a", job_id="guard")))
        said_on(line)
    assert adapter.connected_workers() == ["a"]


def test_a_worker_that_does_not_answer_costs_the_timeout(adapter: ZMQCommunicationAdapter) -> None:
    adapter.register_worker("a")
    with line_to(adapter) as line:
        line.send(GUARD.encode(hello("a", job_id="guard")))
        said_on(line)
        answer = adapter.request("a", "save", timeout_s=0.05)
    assert (answer.ok, answer.error) == (False, "worker 'a' did not answer within 0.05 s")


def test_a_worker_that_has_gone_is_known_to_have(adapter: ZMQCommunicationAdapter) -> None:
    adapter.register_worker("a")
    with line_to(adapter) as line:
        line.send(GUARD.encode(hello("a", job_id="guard")))
        said_on(line)
    gone = "worker 'a' is not connected any more"
    assert eventually(lambda: adapter.request("a", "save", timeout_s=0.05).error == gone)


def test_a_worker_that_never_came_is_told_apart(adapter: ZMQCommunicationAdapter) -> None:
    adapter.register_worker("a")
    assert "has not connected" in adapter.request("a", "save").error


def test_who_waits_when_it_closes_is_answered(adapter: ZMQCommunicationAdapter) -> None:
    adapter.register_worker("a")
    begun, release = threading.Event(), threading.Event()

    def do(command, arguments):
        begun.set()
        release.wait(DEADLINE_S)

    answers = []
    with Heart(do, environ=adapter.environment("a")) as heart:
        assert eventually(lambda: heart.connected)
        asking = threading.Thread(target=lambda: answers.append(adapter.request("a", "save")))
        asking.start()
        begun.wait(DEADLINE_S)
        adapter.close()
        asking.join(DEADLINE_S)
        release.set()
    assert [answer.error for answer in answers] == ["the adapter was closed meanwhile"]


def test_too_long_arguments_are_the_callers_mistake(adapter: ZMQCommunicationAdapter) -> None:
    with pytest.raises(UsageError, match="65536 can be sent: write them to a file"):
        adapter.request("a", "save", {"x": "y" * 70_000})


@pytest.mark.parametrize("worker_id", ["", "x" * 256, None])
def test_a_worker_has_a_name(adapter: ZMQCommunicationAdapter, worker_id: str) -> None:
    with pytest.raises(UsageError, match="worker_id is"):
        adapter.register_worker(worker_id)


# --- a transport that breaks


class Breaking(ZmqLighthouseTransport):
    """The real one, until it breaks."""

    broken = False

    def wait(self, timeout_s: float) -> None:
        super().wait(timeout_s)
        if self.broken:
            raise OSError("broken")


class Losing:
    """An adapter that has heard of worker a, and not of b, and may lose its transport."""

    def __init__(self) -> None:
        self.opened: list[Breaking] = []
        self.adapter = ZMQCommunicationAdapter(port_base=0, timeout=20_000, open_transport=self._open)
        self.beats: list[str] = []
        self.adapter.set_heartbeat_callback(self.beats.append)
        self.adapter.initialize()
        for worker_id in ("a", "b"):
            self.adapter.register_worker(worker_id)
        with line_to(self.adapter) as line:
            line.send(GUARD.encode(hello("a", job_id="guard")))
            said_on(line)

    def _open(self, host: str, port: int) -> Breaking:
        self.opened.append(Breaking(host, port))
        return self.opened[-1]

    def lose(self) -> None:
        self.opened[-1].broken = True
        self.opened[-1].wake()
        assert eventually(lambda: not self.adapter.connected_workers())


@pytest.fixture
def losing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Losing]:
    monkeypatch.setattr("procguard.adapters.zmq_communication.TURN_S_MAX", 0.01)
    made = Losing()
    yield made
    made.adapter.close()
    assert not [each for each in threading.enumerate() if each.name == "procguard-workers"]


def test_the_loss_of_the_transport_fails_nobody(losing: Losing) -> None:
    timeout_s = 0.5
    failed: list[str] = []
    monitor = ProcessMonitor(heartbeat_timeout=timeout_s, zombie_detection=False)
    monitor.set_failure_callback(failed.extend)
    monitor.register_worker("a", {"pid": os.getpid()})
    losing.adapter.set_heartbeat_callback(monitor.heartbeat)
    monitor.heartbeat("a")
    monitor.start()
    try:
        losing.lose()
        until = time.monotonic() + 2 * timeout_s
        assert eventually(lambda: failed or time.monotonic() > until)
        assert failed == []
    finally:
        monitor.stop()


def test_after_the_loss_it_beats_for_those_it_had_heard_of(losing: Losing) -> None:
    losing.lose()
    before = len(losing.beats)
    assert eventually(lambda: len(losing.beats) >= before + 5)
    assert set(losing.beats) == {"a"}
    losing.adapter.register_worker("a")  # started again, and never heard of since
    losing.adapter.close()
    last = len(losing.beats)
    assert losing.adapter.send_heartbeat("a") is False
    assert len(losing.beats) == last


def test_after_the_loss_every_call_still_says_what_is(losing: Losing) -> None:
    losing.lose()
    assert "the connection to the workers is lost" in losing.adapter.request("a", "save").error
    assert losing.adapter.environment("a")["PROCGUARD_WORKER_ID"] == "a"
    assert losing.adapter.send_heartbeat("b") is True
    losing.adapter.initialize()
    with line_to(losing.adapter) as line:
        line.send(GUARD.encode(hello("b", job_id="guard")))
        said_on(line)
    assert losing.adapter.connected_workers() == ["b"]
