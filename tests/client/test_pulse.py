"""A worker's beats, in virtual time."""

from __future__ import annotations

from procguard.client.pulse import HELLO_INTERVAL_S, Pulse, Refused
from procguard.guard_messages import Command
from procguard.messages import Heartbeat, HelloWanted, Incarnation, Rejected, Rejection, Settings, Welcome
from tests.client.fakes import hello

INTERVAL_S = 2.0
WELCOME = Welcome(5, Incarnation(5, 1), 1, 0, Settings(INTERVAL_S, 10.0, 10.0, 10.0, 0.0))


def welcomed(*, threaded: bool = False) -> Pulse:
    """One that has said Hello at 0 and was heard."""
    pulse = Pulse(hello("a"), threaded=threaded)
    assert pulse.beat(0.0) == hello("a")
    assert pulse.receive(WELCOME, 0.0) is None
    return pulse


def test_it_says_hello_until_it_is_heard() -> None:
    pulse = Pulse(hello("a"), threaded=False)
    assert pulse.beat(7.0) == hello("a")
    assert pulse.beat(7.0 + HELLO_INTERVAL_S / 2) is None
    assert pulse.due_at == 7.0 + HELLO_INTERVAL_S
    assert pulse.beat(pulse.due_at) == hello("a")


def test_then_it_beats_as_often_as_it_was_told() -> None:
    pulse = welcomed()
    assert pulse.beat(INTERVAL_S - 0.1) is None
    first, second = pulse.beat(INTERVAL_S), pulse.beat(2 * INTERVAL_S)
    assert isinstance(first, Heartbeat)
    assert isinstance(second, Heartbeat)
    assert (first.token, first.incarnation, first.threaded) == (hello("a").token, Incarnation(5, 1), False)
    assert second.progress > first.progress


def test_a_thread_says_that_it_is_one() -> None:
    beat = welcomed(threaded=True).beat(INTERVAL_S)
    assert isinstance(beat, Heartbeat)
    assert beat.threaded


def test_a_guard_that_has_forgotten_it_gets_another_hello_at_once() -> None:
    pulse = welcomed()
    assert isinstance(pulse.beat(INTERVAL_S), Heartbeat)
    assert pulse.receive(HelloWanted(6), INTERVAL_S + 0.1) is None
    assert pulse.welcome is None
    assert pulse.beat(INTERVAL_S + 0.1) == hello("a")


def test_a_second_welcome_does_not_put_the_beat_off() -> None:
    pulse = welcomed()
    pulse.receive(WELCOME, INTERVAL_S - 0.1)
    assert isinstance(pulse.beat(INTERVAL_S), Heartbeat)


def test_a_refusal_is_told_once() -> None:
    pulse = Pulse(hello("a"), threaded=False)
    refused = Rejected(Rejection.UNSUPPORTED, "no worker a", "", 0)
    assert pulse.receive(refused, 0.0) == Refused("no worker a")
    assert pulse.receive(refused, 1.0) is None
    assert pulse.beat(1.0) == hello("a")
    assert pulse.receive(refused._replace(text="another"), 2.0) == Refused("another")
    pulse.receive(WELCOME, 3.0)
    assert pulse.receive(refused, 4.0) == Refused("no worker a")


def test_a_command_is_passed_on() -> None:
    command = Command(1, "checkpoint", b"{}")
    assert welcomed().receive(command, 1.0) == command
