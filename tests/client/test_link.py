"""The link: whole messages, or its end."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import msgpack
import pytest

from procguard.client import link as link_module
from procguard.client.link import Link, link_pair
from procguard.client.link_words import LINK, LINK_VERSION, Farewell, Heard, LastWords, LinkMessage, Ready
from tests.client.fakes import DEADLINE_S, EPOCH, notice

Pair = tuple[Link, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A link, and the bare other end."""
    ours, theirs = link_pair()
    theirs.settimeout(DEADLINE_S)
    link = Link(ours, send_timeout_s=0.05)
    yield link, theirs
    link.close()
    theirs.close()


def words(count: int) -> list[LinkMessage]:
    return [LastWords(f"word {number}") for number in range(count)]


def test_what_is_said_is_heard_in_order() -> None:
    ours, theirs = link_pair()
    near, far = Link(ours), Link(theirs)
    said: list[LinkMessage] = [Ready(), Heard(EPOCH, (notice("b"),)), Farewell()]
    for message in said:
        assert near.send(message)
    assert far.receive() == said
    near.close()
    assert far.receive() is None
    assert not far.send(Ready())
    far.close()


def test_a_message_may_come_in_pieces(pair: Pair) -> None:
    link, far = pair
    frame = LINK.encode(LastWords("in pieces"))
    far.sendall(frame[:5])
    assert link.receive() == []
    far.sendall(frame[5:] + LINK.encode(Ready()))
    assert link.receive() == [LastWords("in pieces"), Ready()]


def test_half_a_message_of_one_that_died_is_no_message(pair: Pair) -> None:
    link, far = pair
    far.sendall(LINK.encode(LastWords("never finished"))[:-3])
    far.close()
    assert link.receive() == []
    assert link.receive() is None


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xc1",  # what msgpack never uses
        msgpack.packb("a word"),
        msgpack.packb([LINK_VERSION + 1, 32]),
        msgpack.packb([LINK_VERSION, 99]),
        msgpack.packb([LINK_VERSION, 3, 7]),
    ],
)
def test_garbage_ends_the_link(pair: Pair, garbage: bytes) -> None:
    link, far = pair
    far.sendall(garbage)
    assert link.receive() is None


def test_a_message_without_end_ends_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "BACKLOG_BYTES_MAX", 1_000)
    ours, theirs = link_pair()
    link = Link(ours)
    theirs.sendall(msgpack.packb("x" * 2_000))
    assert link.receive() is None
    link.close()
    theirs.close()


def test_an_end_that_does_not_read_ends_the_link_on_both_sides(pair: Pair) -> None:
    """Half a message may have gone out, and whatever came after it would be garbled."""
    link, far = pair
    while link.send(LastWords("x" * 4000)):
        pass
    assert link.receive() is None
    heard = Link(far)
    while (messages := heard.receive()) is not None:
        assert set(messages) <= {LastWords("x" * 4000)}


def test_sending_and_receiving_after_close_say_that_it_is_over() -> None:
    ours, theirs = link_pair()
    theirs.close()
    link = Link(ours)
    link.close()
    assert not link.send(Ready())
    assert link.receive() is None


def test_threads_that_speak_at_once_do_not_mix_their_words() -> None:
    ours, theirs = link_pair()
    near, far = Link(ours), Link(theirs)
    said = words(200)
    speakers = [threading.Thread(target=lambda: [near.send(word) for word in said]) for _ in range(3)]
    for speaker in speakers:
        speaker.start()
    heard: list[LinkMessage] = []
    while len(heard) < 600:
        messages = far.receive()
        assert messages is not None
        heard += messages
    for speaker in speakers:
        speaker.join()
    assert sorted(heard) == sorted(3 * said)
    near.close()
    far.close()


def test_neither_end_is_inherited_by_a_program_that_is_started() -> None:
    ends = link_pair()
    for end in ends:
        assert not os.get_inheritable(end.fileno())
        end.close()
