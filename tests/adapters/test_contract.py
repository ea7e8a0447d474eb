"""What every transport promises (procguard/adapters/base.py), held against both adapters."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from procguard.adapters.base import (
    Aside,
    Frame,
    HandshakeFailed,
    Inbound,
    LighthouseTransport,
    MemberTransport,
    Subscribed,
    Unsubscribed,
)
from procguard.adapters.memory import MemoryNetwork
from procguard.adapters.zmq import ZmqLighthouseTransport, ZmqMemberTransport
from procguard.adapters.zmq_key_files import make_directory, read_member, read_server
from procguard.adapters.zmq_keys import MEMBER, Listed, MemberKeys, OneKey, ServerKeys
from procguard.errors import UsageError
from procguard.messages import ANSWER_BYTES_MAX, FRAME_BYTES_MAX

DEADLINE_S = 30.0


class MemoryWire:
    def __init__(self) -> None:
        self._network = MemoryNetwork()

    def lighthouse(self) -> LighthouseTransport:
        return self._network.lighthouse()

    def member(self) -> MemberTransport:
        return self._network.member()

    def close(self) -> None:
        pass


class ZmqWire:
    """Keeps one port, so that a lighthouse opened after another one closed is its restart."""

    server_keys: ServerKeys | None = None
    member_keys: MemberKeys | None = None

    def __init__(self) -> None:
        self._port = 0
        self._opened: list[ZmqLighthouseTransport | ZmqMemberTransport] = []

    def lighthouse(self) -> LighthouseTransport:
        lighthouse = self._rebind() if self._port else self._bind()
        self._port = lighthouse.port
        self._opened.append(lighthouse)
        return lighthouse

    def member(self) -> MemberTransport:
        member = ZmqMemberTransport("127.0.0.1", self._port, self.member_keys)
        self._opened.append(member)
        return member

    def close(self) -> None:
        for transport in reversed(self._opened):  # a member first: without a lighthouse it would linger
            transport.close()

    def _bind(self) -> ZmqLighthouseTransport:
        """Below the ports that systems give to connections, so that nobody gets these before a restart."""
        for port in range(20_000 + os.getpid() % 5000, 32_000, 2):
            with suppress(UsageError):
                return ZmqLighthouseTransport("127.0.0.1", port, self.server_keys)
        raise AssertionError("no two neighbouring ports are free")

    def _rebind(self) -> ZmqLighthouseTransport:
        return poll(self._try, bool) or pytest.fail("the port is still taken")

    def _try(self) -> ZmqLighthouseTransport | None:
        with suppress(UsageError):
            return ZmqLighthouseTransport("127.0.0.1", self._port, self.server_keys)
        return None


class CurveWire(ZmqWire):
    """With keys. Each is asked for as its member connects, for these tests have one thread."""

    def __init__(self) -> None:
        super().__init__()
        with tempfile.TemporaryDirectory() as folder:
            make_directory(Path(folder) / "keys", ["a"], [])
            self.server_keys = read_server(Path(folder) / "keys")
            self.member_keys = read_member(Path(folder) / "keys" / "members" / "a.key")
        self.server_keys.allowed = OneKey(self.member_keys.public, Listed(MEMBER, "a"))
        self._last: ZmqLighthouseTransport | None = None

    def lighthouse(self) -> LighthouseTransport:
        self._last = super().lighthouse()
        return self._last

    def member(self) -> MemberTransport:
        member = super().member()
        if self._last and not self._last._closed:
            doorkeeper = self._last._doorkeeper
            assert poll(lambda: doorkeeper.socket.poll(50), bool)
            doorkeeper.serve(1)
        return member


Wire = MemoryWire | ZmqWire


@pytest.fixture(params=[MemoryWire, ZmqWire, CurveWire], ids=["memory", "zmq", "curve"])
def wire(request: pytest.FixtureRequest) -> Iterator[Wire]:
    opened = request.param()
    yield opened
    opened.close()


@pytest.fixture
def lighthouse(wire: Wire) -> LighthouseTransport:
    return wire.lighthouse()


def poll(look, enough):
    """What ``look`` returns, once it is enough; at the latest when the deadline is over."""
    deadline = time.monotonic() + DEADLINE_S
    while not enough(found := look()) and time.monotonic() < deadline:
        pass
    return found


def collect(wait: Callable[[float], object], take: Callable[[int], list], count: int) -> list:
    """The next ``count`` of what ``take`` gives; fewer when the deadline is over."""
    found: list = []

    def look() -> list:
        wait(0.05)
        found.extend(take(count - len(found)))
        return found

    return poll(look, lambda found: len(found) >= count)


def arrived(lighthouse: LighthouseTransport, count: int = 1) -> list[Inbound]:
    """What comes next. A connection closed while it connects may count as a failed handshake: not that."""

    def take(count_max: int) -> list[Inbound]:
        return [at for at in lighthouse.drain(count_max) if not isinstance(at, HandshakeFailed)]

    return collect(lighthouse.wait, take, count)


def received(member: MemberTransport, count: int = 1) -> list[bytes]:
    return collect(member.wait, member.receive, count)


def noticed(member: MemberTransport, count: int = 1) -> list[bytes]:
    return collect(member.wait, member.notices, count)


def payloads(inbound: list[Inbound]) -> list[bytes]:
    return [frame.payload for frame in inbound if isinstance(frame, Frame)]


def introduce(lighthouse: LighthouseTransport, member: MemberTransport) -> bytes:
    """The peer that ``member`` is, learned from a frame of it."""
    assert member.send(b"it is me")
    [frame] = arrived(lighthouse)
    assert isinstance(frame, Frame)
    assert frame.payload == b"it is me"
    return frame.peer


def listening(wire: Wire, lighthouse: LighthouseTransport, *topics: bytes) -> MemberTransport:
    """A member whose subscriptions the lighthouse has seen."""
    member = wire.member()
    member.listen(lighthouse.notice_port, topics)
    assert sorted(arrived(lighthouse, len(topics))) == [Subscribed(topic) for topic in sorted(topics)]
    return member


# --- frames


def test_frames_arrive_whole_and_in_order(wire, lighthouse):
    member = wire.member()
    frames = [bytes([n % 256]) * (n * n) for n in range(100)] + [bytes(FRAME_BYTES_MAX), b"", b"end"]
    assert all(member.send(frame) for frame in frames)
    assert payloads(arrived(lighthouse, len(frames))) == frames


def test_answers_arrive_whole_and_in_order(wire, lighthouse):
    member = wire.member()
    peer = introduce(lighthouse, member)
    frames = [bytes([n]) * (n * n) for n in range(50)] + [bytes(4 * FRAME_BYTES_MAX), b"", b"end"]
    assert all(lighthouse.send(peer, frame) for frame in frames)
    assert received(member, len(frames)) == frames


def test_each_member_is_a_peer_of_its_own_and_gets_its_own_answers(wire, lighthouse):
    members = [wire.member() for _ in range(5)]
    peers = [introduce(lighthouse, member) for member in members]
    assert len(set(peers)) == 5
    for n, peer in enumerate(peers):
        assert lighthouse.send(peer, b"for %d" % n)
        assert lighthouse.send(peer, b"end")
    assert [received(member, 2) for member in members] == [[b"for %d" % n, b"end"] for n in range(5)]


def test_a_member_stays_the_same_peer(wire, lighthouse):
    member = wire.member()
    assert {introduce(lighthouse, member) for _ in range(3)} == {introduce(lighthouse, member)}


def test_a_frame_over_the_limit_is_refused_and_harms_nothing(wire, lighthouse):
    member = wire.member()
    assert not member.send(bytes(FRAME_BYTES_MAX + 1))
    peer = introduce(lighthouse, member)
    assert not lighthouse.send(peer, bytes(ANSWER_BYTES_MAX + 1))
    assert lighthouse.send(peer, b"answer")
    assert received(member) == [b"answer"]


def test_frames_sent_before_there_is_a_lighthouse_wait_for_one(wire):
    first = wire.lighthouse()
    first.close()
    member = wire.member()
    assert member.send(b"one")
    assert member.send(b"two")
    assert payloads(arrived(wire.lighthouse(), 2)) == [b"one", b"two"]


def test_a_member_finds_the_lighthouse_after_its_restart_as_a_new_peer(wire):
    first = wire.lighthouse()
    member = listening(wire, first, b"train\0")
    before = introduce(first, member)
    first.close()
    second = wire.lighthouse()

    def again() -> set[Inbound]:
        """A member that works: it keeps waiting, and says again what may have been lost on the way."""
        member.wait(0.01)
        member.send(b"hello")
        seen.update(second.drain(10))
        return seen

    seen: set[Inbound] = set()
    poll(again, lambda seen: Subscribed(b"train\0") in seen and len(seen) == 2)
    [frame] = seen - {Subscribed(b"train\0")}
    assert frame.payload == b"hello"
    assert frame.peer != before
    second.publish(b"train\0back")
    assert noticed(member) == [b"train\0back"]


def test_last_words_arrive_when_the_member_closes_at_once(wire, lighthouse):
    member = wire.member()
    member.send(b"obituary")
    member.close()
    assert payloads(arrived(lighthouse)) == [b"obituary"]


def test_last_words_arrive_when_the_lighthouse_closes_at_once(wire, lighthouse):
    member = wire.member()
    lighthouse.send(introduce(lighthouse, member), b"bye")
    lighthouse.close()
    assert received(member) == [b"bye"]


# --- peers that are not there


def test_send_to_a_peer_that_never_was_says_so(lighthouse):
    assert not lighthouse.send(b"\0nope", b"x")
    assert not lighthouse.send(b"", b"x")


def test_send_to_a_peer_that_has_gone_says_so(wire, lighthouse):
    member = wire.member()
    peer = introduce(lighthouse, member)
    member.close()
    assert not poll(lambda: lighthouse.send(peer, b"x"), lambda sent: not sent)


def test_a_peer_id_is_not_used_again(wire, lighthouse):
    seen = set()
    for _ in range(20):
        member = wire.member()
        seen.add(introduce(lighthouse, member))
        member.close()
    member = wire.member()
    for _ in range(10):
        seen.add(introduce(lighthouse, member))
        member.reconnect()
    assert len(seen) == 30


def test_reconnect_talks_again_as_a_new_peer(wire, lighthouse):
    member = wire.member()
    before = introduce(lighthouse, member)
    member.reconnect()
    after = introduce(lighthouse, member)
    assert after != before
    assert lighthouse.send(after, b"answer")
    assert received(member) == [b"answer"]
    assert not poll(lambda: lighthouse.send(before, b"x"), lambda sent: not sent)


def test_reconnect_brings_the_notices_back(wire, lighthouse):
    member = listening(wire, lighthouse, b"train\0")
    member.reconnect()

    def heard() -> list[bytes]:
        lighthouse.drain(10)
        lighthouse.publish(b"train\0again")
        member.wait(0.05)
        return member.notices(1)

    assert poll(heard, bool) == [b"train\0again"]


# --- notices


def test_a_topic_is_a_prefix_of_the_frame(wire, lighthouse):
    train = listening(wire, lighthouse, b"train\0")
    train2 = listening(wire, lighthouse, b"train2\0")
    for frame in (b"train2\0x", b"train\0y", b"train\0", b"train", b"other", b"train2\0end", b"train\0end"):
        lighthouse.publish(frame)
    assert noticed(train, 3) == [b"train\0y", b"train\0", b"train\0end"]
    assert noticed(train2, 2) == [b"train2\0x", b"train2\0end"]


def test_what_is_published_after_a_subscription_was_seen_reaches_it(wire, lighthouse):
    for n in range(20):
        topic = b"job%d\0" % n
        member = listening(wire, lighthouse, topic)
        lighthouse.publish(topic + b"notice")
        assert noticed(member) == [topic + b"notice"]


def test_a_notice_arrives_once_though_several_topics_match(wire, lighthouse):
    member = listening(wire, lighthouse, b"a", b"ab")
    lighthouse.publish(b"abc")
    lighthouse.publish(b"a end")
    assert noticed(member, 2) == [b"abc", b"a end"]


def test_what_is_said_aside_comes_by_the_connection_of_the_notices(wire, lighthouse):
    member = wire.member()
    member.listen(lighthouse.notice_port, [b"topic"])
    assert arrived(lighthouse) == [Subscribed(b"topic")]
    assert member.send_aside(b"one")
    assert member.send_aside(b"two")
    assert arrived(lighthouse, 2) == [Aside(b"one"), Aside(b"two")]


def test_what_is_said_aside_by_one_who_does_not_listen_comes_by_the_only_way(wire, lighthouse):
    member = wire.member()
    assert member.send_aside(b"hello")
    (frame,) = arrived(lighthouse)
    assert isinstance(frame, Frame)
    assert frame.payload == b"hello"


def test_a_closed_listener_is_unsubscribed(wire, lighthouse):
    member = listening(wire, lighthouse, b"mine")
    member.close()
    assert arrived(lighthouse) == [Unsubscribed(b"mine")]


def test_only_the_first_and_the_last_holder_of_a_topic_are_told(wire, lighthouse):
    first = listening(wire, lighthouse, b"shared\0", b"first")
    second = wire.member()
    second.listen(lighthouse.notice_port, [b"shared\0", b"second"])
    assert arrived(lighthouse) == [Subscribed(b"second")]
    first.close()
    assert arrived(lighthouse) == [Unsubscribed(b"first")]
    lighthouse.publish(b"shared\0still")
    assert noticed(second) == [b"shared\0still"]
    second.close()
    assert sorted(arrived(lighthouse, 2)) == [Unsubscribed(b"second"), Unsubscribed(b"shared\0")]


def test_listen_again_changes_to_exactly_the_new_topics(wire, lighthouse):
    member = listening(wire, lighthouse, b"old", b"kept")
    member.listen(lighthouse.notice_port, [b"kept", b"new"])
    assert sorted(arrived(lighthouse, 2)) == [Subscribed(b"new"), Unsubscribed(b"old")]
    for frame in (b"old", b"kept", b"new"):
        lighthouse.publish(frame)
    assert noticed(member, 2) == [b"kept", b"new"]


def test_listen_again_to_the_same_topics_tells_nobody(wire, lighthouse):
    member = listening(wire, lighthouse, b"same")
    member.listen(lighthouse.notice_port, [b"same"])
    member.listen(lighthouse.notice_port, [b"same", b"more"])
    assert arrived(lighthouse) == [Subscribed(b"more")]


def test_listen_elsewhere_leaves_the_port(wire, lighthouse):
    member = listening(wire, lighthouse, b"mine")
    member.listen(1, [b"mine"])
    assert arrived(lighthouse) == [Unsubscribed(b"mine")]
    member.listen(lighthouse.notice_port, [b"mine"])
    assert arrived(lighthouse) == [Subscribed(b"mine")]


def test_a_member_that_does_not_listen_hears_nothing(wire, lighthouse):
    member = wire.member()
    peer = introduce(lighthouse, member)
    lighthouse.publish(b"notice")
    lighthouse.send(peer, b"answer")
    assert received(member) == [b"answer"]
    assert member.notices(10) == []


# --- bounds


def test_drain_receive_and_notices_keep_to_their_count(wire, lighthouse):
    member = listening(wire, lighthouse, b"")
    peer = introduce(lighthouse, member)
    for n in range(10):
        member.send(b"%d" % n)
        lighthouse.send(peer, b"%d" % n)
        lighthouse.publish(b"%d" % n)
    expected = [b"%d" % n for n in range(10)]
    for wait, take in (
        (lighthouse.wait, lambda count: payloads(lighthouse.drain(count))),
        (member.wait, member.receive),
        (member.wait, member.notices),
    ):
        portions = []

        def look(wait=wait, take=take, portions=portions):
            wait(0.05)
            portions.append(take(3))
            return sum(map(len, portions))

        assert poll(look, lambda count: count == 10) == 10
        assert max(map(len, portions)) <= 3
        assert [frame for portion in portions for frame in portion] == expected
        assert take(0) == []


def test_nothing_there_is_an_empty_list_at_once(wire, lighthouse):
    member = wire.member()
    assert lighthouse.drain(10) == []
    assert member.receive(10) == []
    assert member.notices(10) == []


def test_a_member_that_outruns_the_lighthouse_is_told(wire, lighthouse):
    member = wire.member()
    introduce(lighthouse, member)
    frame = bytes(1 << 14)
    assert any(not member.send(frame) for _ in range(100_000))
    taken = arrived(lighthouse, 100)
    assert payloads(taken) == [frame] * 100
    assert poll(lambda: arrived(lighthouse, 50) and member.send(b"again"), bool)
    member.reconnect()  # what is still queued need not hold up the close


def test_a_peer_that_does_not_read_costs_only_its_own_answers(wire, lighthouse):
    deaf, other = wire.member(), wire.member()
    deaf_peer, other_peer = introduce(lighthouse, deaf), introduce(lighthouse, other)
    frame = bytes(1 << 14)
    assert any(not lighthouse.send(deaf_peer, frame) for _ in range(100_000))
    assert lighthouse.send(other_peer, b"you")
    assert received(other) == [b"you"]
    assert received(deaf, 50) == [frame] * 50
    assert poll(lambda: received(deaf, 50) and lighthouse.send(deaf_peer, b"again"), bool)


def test_a_listener_that_does_not_read_holds_up_nobody(wire, lighthouse):
    deaf = listening(wire, lighthouse, b"", b"deaf")
    reader = listening(wire, lighthouse, b"train\0")
    for _ in range(20_000):
        lighthouse.publish(b"train\0" + bytes(1 << 12))

    def heard() -> list[bytes]:
        lighthouse.publish(b"train\0end")
        reader.wait(0.05)
        return reader.notices(100)

    assert poll(heard, lambda notices: b"train\0end" in notices)
    assert len(deaf.notices(20_000)) < 20_000


# --- waiting


def test_a_wake_ends_the_wait_that_comes_after_it(lighthouse):
    lighthouse.wake()
    began = time.monotonic()
    lighthouse.wait(DEADLINE_S)
    assert time.monotonic() - began < DEADLINE_S / 2


def test_a_wake_from_another_thread_ends_the_wait(lighthouse):
    began = time.monotonic()
    waiter = threading.Thread(target=lighthouse.wait, args=(DEADLINE_S,))
    waiter.start()
    lighthouse.wake()
    waiter.join()
    assert time.monotonic() - began < DEADLINE_S / 2


def test_many_wakes_are_no_more_than_one(lighthouse):
    for _ in range(10_000):
        lighthouse.wake()
    lighthouse.wait(0)
    assert lighthouse.drain(10) == []


@pytest.mark.parametrize("timeout_s", [0, 0.0001, -1.0])
def test_a_short_wait_returns(wire, lighthouse, timeout_s):
    lighthouse.wait(timeout_s)
    assert wire.member().wait(timeout_s) == []


def test_wait_names_the_fds_that_are_readable(wire, lighthouse):
    member = wire.member()
    reading, writing = os.pipe()
    idle, idle_writing = os.pipe()
    try:
        assert member.wait(0, (reading, idle)) == []
        os.write(writing, b"x")
        assert member.wait(DEADLINE_S, (reading, idle)) == [reading]
        assert member.wait(0, (idle,)) == []
        os.read(reading, 1)
        assert member.wait(0, [reading, idle]) == []
        os.close(writing)
        assert member.wait(DEADLINE_S, iter((idle, reading))) == [reading]
    finally:
        for fd in (reading, idle, idle_writing):
            os.close(fd)


# --- closing


def test_close_can_be_said_again(wire, lighthouse):
    member = listening(wire, lighthouse, b"topic")
    introduce(lighthouse, member)
    for _ in range(3):
        member.close()
        lighthouse.close()


def test_a_wake_after_the_close_is_harmless(lighthouse):
    lighthouse.close()
    lighthouse.wake()
