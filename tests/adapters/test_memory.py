"""What only the memory adapter can do: exact order, and a line that is cut and mended."""

from __future__ import annotations

import pytest

from procguard.adapters.base import Frame, Inbound, Subscribed, Unsubscribed
from procguard.adapters.memory import MemoryLighthouse, MemoryMember, MemoryNetwork

ALL = 1_000_000


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
def lighthouse(network: MemoryNetwork) -> MemoryLighthouse:
    return network.lighthouse()


@pytest.fixture
def member(network: MemoryNetwork, lighthouse: MemoryLighthouse) -> MemoryMember:
    return network.member()


def payloads(inbound: list[Inbound]) -> list[bytes]:
    return [frame.payload for frame in inbound if isinstance(frame, Frame)]


def test_frames_of_several_members_arrive_in_the_order_sent(network, lighthouse):
    one, two = network.member(), network.member()
    for n in range(6):
        (one, two)[n % 2].send(b"%d" % n)
    assert payloads(lighthouse.drain(ALL)) == [b"0", b"1", b"2", b"3", b"4", b"5"]


def test_a_cut_line_loses_what_is_under_way_either_way(network, lighthouse, member):
    member.listen(lighthouse.notice_port, [b"t"])
    member.send(b"seen")
    [_, (peer, _)] = lighthouse.drain(ALL)
    member.send(b"lost")
    lighthouse.send(peer, b"lost")
    lighthouse.publish(b"t lost")
    network.cut(member)
    assert lighthouse.drain(ALL) == [Unsubscribed(b"t")]
    assert not lighthouse.send(peer, b"nobody")
    lighthouse.publish(b"t nobody")
    assert (member.receive(ALL), member.notices(ALL)) == ([], [])


def test_a_cut_line_spares_the_others(network, lighthouse, member):
    other = network.member()
    other.send(b"from the other")
    member.send(b"lost")
    network.cut(member)
    assert payloads(lighthouse.drain(ALL)) == [b"from the other"]


def test_a_mended_line_is_a_new_peer_and_brings_what_waited(network, lighthouse, member):
    member.listen(lighthouse.notice_port, [b"t"])
    member.send(b"before")
    [_, (before, _)] = lighthouse.drain(ALL)
    network.cut(member)
    assert member.send(b"while cut")
    member.listen(lighthouse.notice_port, [b"t", b"u"])
    assert lighthouse.drain(ALL) == [Unsubscribed(b"t")]
    network.mend(member)
    *subscribed, (peer, payload) = lighthouse.drain(ALL)
    assert subscribed == [Subscribed(b"t"), Subscribed(b"u")]
    assert payload == b"while cut"
    assert peer != before
    lighthouse.publish(b"u again")
    assert member.notices(ALL) == [b"u again"]


def test_reconnect_on_a_cut_line_drops_the_queue_and_stays_away(network, lighthouse, member):
    network.cut(member)
    member.send(b"stale")
    member.reconnect()
    member.send(b"fresh")
    assert lighthouse.drain(ALL) == []
    network.mend(member)
    assert payloads(lighthouse.drain(ALL)) == [b"fresh"]


def test_cutting_twice_and_mending_twice_are_one(network, lighthouse, member):
    network.cut(member)
    network.cut(member)
    member.send(b"once")
    network.mend(member)
    network.mend(member)
    assert payloads(lighthouse.drain(ALL)) == [b"once"]


def test_a_line_cut_without_a_lighthouse_stays_cut(network, member, lighthouse):
    lighthouse.close()
    network.cut(member)
    member.send(b"later")
    second = network.lighthouse()
    assert second.drain(ALL) == []
    network.mend(member)
    assert payloads(second.drain(ALL)) == [b"later"]


def test_one_network_has_one_lighthouse(network, lighthouse):
    with pytest.raises(AssertionError):
        network.lighthouse()


def test_frames_of_a_former_connection_do_not_count_against_the_bound(network, lighthouse, member):
    while member.send(b"old"):
        pass
    member.reconnect()
    assert member.send(b"new")
    assert payloads(lighthouse.drain(ALL))[-2:] == [b"old", b"new"]
    assert member.send(b"newer")
