"""Rank 0's place, over real sockets: what ranks say arrives, and each is told what is meant for it."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator

import pytest

from procguard.adapters.base import Frame
from procguard.adapters.zmq import ZmqMemberTransport
from procguard.adapters.zmq_ranks import ZmqRankServer
from procguard.errors import UsageError

DEADLINE_S = 30.0


@pytest.fixture
def server() -> Iterator[ZmqRankServer]:
    server = ZmqRankServer("127.0.0.1")
    yield server
    server.close()


def drained(server: ZmqRankServer, count: int) -> list[Frame]:
    """As a loop does it: look, and wait on the descriptor only when there is nothing."""
    frames: list[Frame] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(frames) < count:
        assert time.monotonic() < deadline
        if not server.has_input():
            select.select([server.fileno()], [], [], DEADLINE_S)
        frames += server.drain(100)
    return frames


def rank(server: ZmqRankServer) -> ZmqMemberTransport:
    host, _, port = server.address.rpartition(":")
    return ZmqMemberTransport(host, int(port))


def test_each_rank_gets_its_own_answer(server: ZmqRankServer) -> None:
    ranks = [rank(server) for _ in range(3)]
    try:
        for number, one in enumerate(ranks):
            one.send(f"from {number}".encode())
        for peer, payload in drained(server, 3):
            assert server.send(peer, payload.replace(b"from", b"to"))
        for number, one in enumerate(ranks):
            one.wait(DEADLINE_S)
            assert one.receive(10) == [f"to {number}".encode()]
    finally:
        for one in ranks:
            one.close()


def test_one_that_has_gone_is_no_error(server: ZmqRankServer) -> None:
    assert not server.send(b"\0gone", b"hello")


def test_a_host_that_is_no_address_of_this_machine_is_served_everywhere() -> None:
    server = ZmqRankServer("192.0.2.7")
    try:
        host, _, port = server.address.rpartition(":")
        assert host == "192.0.2.7"
        one = ZmqMemberTransport("127.0.0.1", int(port))
        one.send(b"hello")
        assert [payload for _, payload in drained(server, 1)] == [b"hello"]
        one.close()
    finally:
        server.close()


def test_closing_twice_is_as_once() -> None:
    server = ZmqRankServer("127.0.0.1")
    server.close()
    server.close()


def test_it_listens_where_and_on_what_port_it_is_told(server: ZmqRankServer) -> None:
    taken = int(server.address.rpartition(":")[2])
    with pytest.raises(
        UsageError, match=f"port {taken} on 127.0.0.1 is in use, by another program: .* 0 for any"
    ):
        ZmqRankServer("elsewhere", bind="127.0.0.1", port=taken)
    server.close()
    told = ZmqRankServer("elsewhere", bind="127.0.0.1", port=taken)
    try:
        assert told.address == f"elsewhere:{taken}"
        one = ZmqMemberTransport("127.0.0.1", taken)
        one.send(b"hello")
        assert [frame.payload for frame in drained(told, 1)] == [b"hello"]
        one.close()
    finally:
        told.close()
