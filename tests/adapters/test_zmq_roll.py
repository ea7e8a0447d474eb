"""Who speaks for whom."""

from __future__ import annotations

from procguard.adapters.zmq_roll import PROCESSES_PER_WORKER_MAX, Roll
from procguard.guard_messages import JOB
from procguard.messages import Heartbeat, HelloWanted, Incarnation, Phase, Rejected, Settings, Welcome
from tests.client.fakes import hello

SETTINGS = Settings(1.0, 10.0, 10.0, 10.0, 0.0)


def token(number: int) -> bytes:
    return b"%016d" % number


def said(worker_id: str, number: int = 1, job_id: str = JOB):
    return hello(worker_id, token=token(number), job_id=job_id)


def beat(number: int = 1) -> Heartbeat:
    return Heartbeat(token(number), Incarnation(9, 1), False, False, Phase.COMPUTE, 1, 0)


def roll(*worker_ids: str) -> Roll:
    made = Roll(9, 2, SETTINGS)
    for worker_id in worker_ids:
        made.register(worker_id)
    return made


def test_a_worker_says_hello_and_beats() -> None:
    made = roll("a")
    assert made.hello(b"p", said("a")) == Welcome(9, Incarnation(9, 1), 2, 0, SETTINGS)
    assert made.heartbeat(b"p", beat()) == "a"
    assert (made.connected(), made.peer_of("a")) == (["a"], b"p")


def test_hello_again_is_the_same_life_on_another_connection() -> None:
    made = roll("a")
    first = made.hello(b"p", said("a"))
    assert made.hello(b"q", said("a")) == first
    assert made.peer_of("a") == b"q"


def test_a_beat_on_another_connection_moves_the_commands_there() -> None:
    made = roll("a")
    made.hello(b"p", said("a"))
    assert made.heartbeat(b"q", beat()) == "a"
    assert made.peer_of("a") == b"q"


def test_whom_nobody_knows_is_asked_or_refused() -> None:
    made = roll("a")
    assert made.heartbeat(b"p", beat()) == HelloWanted(9)
    stranger = made.hello(b"p", said("b"))
    assert isinstance(stranger, Rejected)
    assert "no worker 'b'" in stranger.text
    trainer = made.hello(b"p", said("a", job_id="train"))
    assert isinstance(trainer, Rejected)
    assert "PROCGUARD_LIGHTHOUSE" in trainer.text
    assert made.connected() == []


def test_registered_anew_it_has_to_say_hello_anew() -> None:
    made = roll("a")
    made.hello(b"p", said("a"))
    made.register("a")
    assert made.peer_of("a") is None
    assert made.heartbeat(b"p", beat()) == HelloWanted(9)
    made.unregister("a")
    assert not made.is_registered("a")
    made.unregister("a")


def test_several_processes_of_one_worker_all_beat_and_the_last_takes_commands() -> None:
    made = roll("a")
    made.hello(b"p", said("a", 1))
    made.hello(b"q", said("a", 2))
    assert made.heartbeat(b"p", beat(1)) == made.heartbeat(b"q", beat(2)) == "a"
    assert made.peer_of("a") == b"q"
    made.hello(b"p", said("a", 1))
    assert made.peer_of("a") == b"p"


def test_a_process_that_changes_its_worker_speaks_for_the_new_one_only() -> None:
    made = roll("a", "b")
    made.hello(b"p", said("a"))
    made.hello(b"p", said("b"))
    assert made.heartbeat(b"p", beat()) == "b"
    assert (made.connected(), made.peer_of("a")) == (["b"], None)
    made.unregister("a")
    assert made.heartbeat(b"p", beat()) == "b"


def test_processes_beyond_reason_are_forgotten_oldest_first() -> None:
    made = roll("a")
    for number in range(PROCESSES_PER_WORKER_MAX + 1):
        made.hello(b"p", said("a", number))
    assert made.heartbeat(b"p", beat(0)) == HelloWanted(9)
    assert made.heartbeat(b"p", beat(1)) == "a"
