"""What every communication adapter promises (procguard/adapters/communication.py), held against ours.

A worker is played by what the adapter has for one: in memory a callback, on the wire ``procguard.client``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from procguard.adapters import CommunicationAdapter, MockCommunicationAdapter, ZMQCommunicationAdapter
from procguard.client import Heart
from procguard.errors import UsageError

DEADLINE_S = 20.0
Do = Callable[[str, Mapping[str, Any]], Any]


class MemoryWorld:
    def __init__(self) -> None:
        self.adapter = MockCommunicationAdapter()

    def worker(self, worker_id: str, do: Do | None = None) -> Callable[[], object]:
        """Someone who does what is said; returns how to have it beat."""
        self.adapter.set_command_callback(worker_id, do)
        return lambda: self.adapter.send_heartbeat(worker_id)

    def close(self) -> None:
        pass


class ZmqWorld:
    def __init__(self) -> None:
        self.adapter = ZMQCommunicationAdapter(port_base=0, timeout=10_000, heartbeat_interval_s=0.02)
        self._hearts: list[Heart] = []

    def worker(self, worker_id: str, do: Do | None = None) -> Callable[[], object]:
        heart = Heart(do or (lambda command, arguments: None), environ=self.adapter.environment(worker_id))
        self._hearts.append(heart)
        heart.start()
        return lambda: None  # it beats by itself

    def close(self) -> None:
        for heart in self._hearts:
            heart.close()


World = MemoryWorld | ZmqWorld


@pytest.fixture(params=[MemoryWorld, ZmqWorld], ids=["memory", "zmq"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    opened = request.param()
    opened.adapter.initialize()
    yield opened
    opened.close()
    opened.adapter.close()


@pytest.fixture
def adapter(world: World) -> CommunicationAdapter:
    return world.adapter


def eventually(look: Callable[[], Any]) -> Any:
    """What ``look`` says once it is true; at the latest when the deadline is over."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return found


def connected(world: World, worker_id: str, do: Do | None = None) -> Callable[[], object]:
    """A registered worker that can be given commands."""
    world.adapter.register_worker(worker_id)
    beat = world.worker(worker_id, do)
    assert eventually(lambda: worker_id in world.adapter.connected_workers())
    return beat


# --- commands


def test_a_command_is_carried_out_and_answered(world, adapter):
    seen = []
    connected(
        world, "a", lambda command, arguments: seen.append((command, arguments)) or {"saved": [1, None]}
    )
    answer = adapter.request("a", "checkpoint", {"step": 7, "name": "\u00e9"})
    assert answer.ok
    assert (answer.result, answer.error) == ({"saved": [1, None]}, "")
    assert seen == [("checkpoint", {"step": 7, "name": "\u00e9"})]


def test_send_command_says_whether_it_was(world, adapter):
    def do(command, arguments):
        if arguments["step"] != 1:
            raise ValueError("not that step")

    connected(world, "a", do)
    assert adapter.send_command("a", "checkpoint", step=1) is True
    assert adapter.send_command("a", "checkpoint", step=2) is False


def test_a_workers_exception_is_the_answer(world, adapter):
    def do(command, arguments):
        raise OSError("disk full")

    connected(world, "a", do)
    answer = adapter.request("a", "checkpoint")
    assert not answer.ok
    assert answer.error == "OSError: disk full"


def test_a_result_that_cannot_be_sent_is_a_refusal(world, adapter):
    connected(world, "a", lambda command, arguments: {1, 2})
    answer = adapter.request("a", "look")
    assert not answer.ok
    assert "TypeError" in answer.error


def test_commands_arrive_in_order_once_each(world, adapter):
    seen = []
    connected(world, "a", lambda command, arguments: seen.append(arguments["n"]))
    assert all(adapter.send_command("a", "count", n=n) for n in range(50))
    assert seen == list(range(50))


def test_each_worker_gets_its_own(world, adapter):
    for name in ("a", "b", "c"):
        connected(world, name, lambda command, arguments, name=name: name)
    assert [adapter.request(name, "who").result for name in ("b", "c", "a")] == ["b", "c", "a"]


def test_commands_from_many_threads(world, adapter):
    for name in ("a", "b"):
        connected(world, name, lambda command, arguments: arguments["n"] * 2)
    answers = {}

    def ask(n):
        answers[n] = adapter.request("ab"[n % 2], "double", {"n": n})

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: answer.result for n, answer in answers.items()} == {n: 2 * n for n in range(12)}


@pytest.mark.parametrize("arguments", [{"x": object()}, {"x": {1}}, {"x": float("nan")}, {"x": b"raw"}])
def test_arguments_that_cannot_be_sent_are_the_callers_mistake(world, adapter, arguments):
    connected(world, "a")
    with pytest.raises(UsageError, match=r"the arguments of 'look' cannot be sent .* use JSON's types"):
        adapter.request("a", "look", arguments)


@pytest.mark.parametrize("command", ["", 5, None])
def test_a_command_has_a_name(adapter, command):
    with pytest.raises(UsageError, match="command is"):
        adapter.request("a", command)


def test_nobody_there_is_an_answer_too(adapter):
    answer = adapter.request("nobody", "look")
    assert not answer.ok
    assert answer.error == "no worker 'nobody' is registered"
    assert adapter.send_command("nobody", "look") is False


def test_an_unregistered_worker_is_not_given_commands(world, adapter):
    connected(world, "a")
    adapter.unregister_worker("a")
    adapter.unregister_worker("a")
    assert adapter.connected_workers() == []
    assert adapter.send_command("a", "look") is False


# --- beats


def test_a_beat_reaches_the_callback(world, adapter):
    heard = []
    adapter.set_heartbeat_callback(heard.append)
    beat = connected(world, "a")
    assert eventually(lambda: (beat(), heard.count("a") >= 3)[1])
    assert set(heard) == {"a"}


def test_a_beat_can_be_said_for_a_worker(adapter):
    heard = []
    adapter.set_heartbeat_callback(heard.append)
    adapter.register_worker("a")
    assert adapter.send_heartbeat("a") is True
    assert heard == ["a"]
    assert adapter.send_heartbeat("b") is False
    assert heard == ["a"]


def test_a_callback_that_fails_does_no_harm(world, adapter, caplog):
    heard = []

    def fails(worker_id):
        heard.append(worker_id)
        raise RuntimeError("mine")

    adapter.set_heartbeat_callback(fails)
    beat = connected(world, "a")
    assert eventually(lambda: (beat(), len(heard) >= 3)[1])
    assert adapter.send_command("a", "look") is True
    assert "heartbeat callback failed" in caplog.text


def test_a_callback_cannot_give_commands(world, adapter):
    refused = []

    def asks(worker_id):
        try:
            adapter.request(worker_id, "look")
        except UsageError as error:
            refused.append(str(error))

    adapter.set_heartbeat_callback(asks)
    beat = connected(world, "a")
    assert eventually(lambda: (beat(), bool(refused))[1])
    assert "use another thread" in refused[0]


def test_without_a_callback_beats_are_nothing(world, adapter):
    beat = connected(world, "a")
    beat()
    adapter.set_heartbeat_callback(None)
    assert adapter.send_heartbeat("a") is True


# --- coming and going


def test_registered_again_it_goes_on(world, adapter):
    connected(world, "a", lambda command, arguments: "here")
    adapter.register_worker("a")
    assert eventually(lambda: adapter.request("a", "look").result == "here")


def test_initialize_and_close_can_be_said_again(world, adapter):
    adapter.initialize()
    connected(world, "a")
    for _ in range(3):
        adapter.close()
    assert adapter.connected_workers() == []
    assert adapter.send_command("a", "look") is False
    assert adapter.send_heartbeat("a") is False


def test_it_can_be_had_with_a_with(world):
    world.adapter.close()
    with world.adapter as adapter:
        adapter.register_worker("a")
        assert adapter.send_heartbeat("a") is True
    assert adapter.send_heartbeat("a") is False


def test_what_others_know_more_of(adapter):
    adapter.set_failure_callback(print)
    adapter.register_worker("a")
    assert adapter.wait_ready(["a"], 0.0) is True
    assert all(name.startswith("PROCGUARD_") for name in adapter.environment("a"))
