"""Keys on real sockets: who is let in, who is turned away, and what each side is told about it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import zmq

from procguard.adapters.base import (
    Aside,
    Frame,
    HandshakeFailed,
    Inbound,
    KeyRefused,
    KeysRead,
    OperatorFrame,
    Subscribed,
)
from procguard.adapters.zmq import ZmqLighthouseTransport, ZmqMemberTransport
from procguard.adapters.zmq_key_files import add_key, make_directory, read_member, revoke_key
from procguard.adapters.zmq_keys import MEMBER, Listed, MemberKeys, fingerprint
from procguard.adapters.zmq_ranks import ZmqRankServer
from procguard.messages import FRAME_BYTES_MAX
from tests.keys import Keys

DEADLINE_S = 30.0


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys")


@pytest.fixture
def lighthouse(keys: Keys) -> Iterator[ZmqLighthouseTransport]:
    with closing(ZmqLighthouseTransport("127.0.0.1", 0, keys.server)) as opened:
        yield opened


@pytest.fixture
def plain() -> Iterator[ZmqLighthouseTransport]:
    with closing(ZmqLighthouseTransport("127.0.0.1", 0)) as opened:
        yield opened


@contextmanager
def member(lighthouse: ZmqLighthouseTransport, keys: MemberKeys | None) -> Iterator[ZmqMemberTransport]:
    opened = ZmqMemberTransport("127.0.0.1", lighthouse.port, keys)
    try:
        yield opened
    finally:
        opened.reconnect()  # what nobody took need not hold up the close
        opened.close()


def until(lighthouse: ZmqLighthouseTransport, enough: Callable[[list[Inbound]], object]) -> list[Inbound]:
    """All that arrives until it is enough."""
    found: list[Inbound] = []
    deadline = time.monotonic() + DEADLINE_S
    while not enough(found):
        assert time.monotonic() < deadline, found
        lighthouse.wait(0.05)
        found += lighthouse.drain(100)
    return found


def first(lighthouse: ZmqLighthouseTransport, kind: type) -> Inbound:
    found = until(lighthouse, lambda found: any(isinstance(at, kind) for at in found))
    return next(at for at in found if isinstance(at, kind))


def frames(found: list[Inbound]) -> list[bytes]:
    return [at.payload for at in found if isinstance(at, Frame)]


@contextmanager
def served(*lighthouses: ZmqLighthouseTransport) -> Iterator[list[Inbound]]:
    """What arrives while another thread looks after them."""
    found: list[Inbound] = []
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            for lighthouse in lighthouses:
                lighthouse.wait(0.01)
                found.extend(lighthouse.drain(100))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


# --- who comes in


def test_an_operator_is_told_from_a_member(lighthouse, keys):
    with member(lighthouse, keys.member()) as a, member(lighthouse, keys.operator) as operator:
        for _ in range(2):  # the second time the member is known
            a.send(b"member")
            operator.send(b"operator")
            found = until(lighthouse, lambda found: len(found) == 2)
            [theirs] = [at for at in found if isinstance(at, Frame)]
            [ours] = [at for at in found if isinstance(at, OperatorFrame)]
            assert theirs.payload == b"member"
            assert (ours.payload, ours.operator) == (b"operator", "op")


def test_an_unlisted_key_gets_in_neither_here_nor_to_the_notices(lighthouse, keys):
    b = keys.member("b")
    revoke_key(keys.directory, "b")
    lighthouse._doorkeeper.look()
    with member(lighthouse, b) as stranger, member(lighthouse, keys.member()) as a:
        stranger.send(b"stranger")
        stranger.listen(lighthouse.notice_port, [b"topic"])
        refused = first(lighthouse, KeyRefused)
        assert refused.counter == "refused keys"
        assert f"key {fingerprint(b.public)} from 127.0.0.1 was turned away" in refused.text
        a.send(b"member")
        a.listen(lighthouse.notice_port, [b"other"])
        found = until(lighthouse, lambda found: Subscribed(b"other") in found and frames(found))
        assert frames(found) == [b"member"]
        assert Subscribed(b"topic") not in found


def test_nothing_is_kept_of_those_who_are_refused(lighthouse, keys, tmp_path):
    make_directory(tmp_path / "other", [f"m{n}" for n in range(5)], [])
    with served(lighthouse) as found:
        for n in range(5):
            own = read_member(tmp_path / "other" / "members" / f"m{n}.key")
            stranger = MemberKeys("x", Listed(MEMBER, "x"), own.public, own._secret, keys.server.public)
            assert "our key is refused there" in explanation(lighthouse, stranger)
    assert len({at.text for at in found if isinstance(at, KeyRefused)}) == 5
    assert lighthouse._plain_members == set()
    assert vars(lighthouse._doorkeeper).keys() == {"_allowed", "socket", "news"}


def test_a_peer_without_a_key_is_not_listened_to(lighthouse, keys):
    with member(lighthouse, None) as stranger, member(lighthouse, keys.member()) as a:
        stranger.send(b"stranger")
        assert "PROCGUARD_KEYS is not set" in first(lighthouse, HandshakeFailed).text
        a.send(b"member")
        assert frames(until(lighthouse, frames)) == [b"member"]


def test_a_member_with_a_key_at_a_lighthouse_without(plain, keys):
    with member(plain, keys.member()) as stranger:
        stranger.send(b"stranger")
        text = first(plain, HandshakeFailed).text
        assert "PROCGUARD_KEYS" in text
        assert "asked for" in text or "asks for one here" in text


READY = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER"
GREETINGS = {
    "raw": b"",
    "null": b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(16 + 1 + 31),
    "ready": b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(16 + 1 + 31) + READY,
    "curve": b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(15 + 1 + 31),
}


PARTS_MANY = 100


@pytest.mark.parametrize("greeting", GREETINGS.values(), ids=GREETINGS)
def test_what_comes_before_the_handshake_is_over_is_not_gathered(lighthouse, keys, greeting):
    """Parts of a message that never ends: without keys libzmq would keep them all."""
    part = b"\x03" + FRAME_BYTES_MAX.to_bytes(8, "big") + bytes(FRAME_BYTES_MAX)
    with socket.create_connection(("127.0.0.1", lighthouse.port), timeout=DEADLINE_S) as stranger:
        taken = 0
        with suppress(ConnectionError):
            stranger.sendall(greeting)
            while taken < PARTS_MANY:
                stranger.sendall(part)
                taken += 1
        assert taken < PARTS_MANY, "the connection is cut instead"
    with member(lighthouse, keys.member()) as a:
        a.send(b"member")
        assert frames(until(lighthouse, frames)) == [b"member"]


# --- a list that changes while the lighthouse runs


def test_a_key_that_was_just_added_is_let_in_at_once(lighthouse, keys):
    c = read_member(add_key(keys.directory, Listed(MEMBER, "c")))
    with member(lighthouse, c) as newcomer:
        newcomer.send(b"hello")
        found = until(lighthouse, frames)
        assert frames(found) == [b"hello"]
        [read] = [at for at in found if isinstance(at, KeysRead)]
        assert "1 added (c)" in read.text


def test_a_revoked_key_is_not_listened_to_any_more(lighthouse, keys):
    with member(lighthouse, keys.member()) as a, member(lighthouse, keys.member("b")) as b:
        for one in (a, b):
            one.send(b"before")
        until(lighthouse, lambda found: len(frames(found)) == 2)
        revoke_key(keys.directory, "b")
        lighthouse._list_seen_at = float("-inf")  # a second has passed
        assert "1 revoked (b)" in first(lighthouse, KeysRead).text
        b.send(b"revoked")
        refused = first(lighthouse, KeyRefused)
        assert refused.counter == "frames of revoked keys"
        a.send(b"after")
        assert frames(until(lighthouse, frames)) == [b"after"]


def test_a_revoked_key_is_not_listened_to_aside_either(lighthouse, keys):
    with member(lighthouse, keys.member()) as a, member(lighthouse, keys.member("b")) as b:
        for one, topic in ((a, b"a"), (b, b"b")):
            one.listen(lighthouse.notice_port, [topic])
            one.send_aside(topic + b" before")
        until(lighthouse, lambda found: {Aside(b"a before"), Aside(b"b before")} <= set(found))
        revoke_key(keys.directory, "b")
        lighthouse._list_seen_at = float("-inf")  # a second has passed
        assert "1 revoked (b)" in first(lighthouse, KeysRead).text
        b.send_aside(b"revoked")
        assert first(lighthouse, KeyRefused).counter == "frames of revoked keys"
        a.send_aside(b"after")
        assert first(lighthouse, Aside) == Aside(b"after")


def test_a_look_at_the_list_is_taken_once_a_second(lighthouse, keys, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    lighthouse._list_seen_at = now
    add_key(keys.directory, Listed(MEMBER, "c"))
    now += 0.9
    assert lighthouse.drain(10) == []
    now += 0.2
    [read] = lighthouse.drain(10)
    assert isinstance(read, KeysRead)
    now += 1.1
    assert lighthouse.drain(10) == []


# --- why nobody answers


def explanation(lighthouse: ZmqLighthouseTransport, keys: MemberKeys | None) -> str:
    with member(lighthouse, keys) as asking:
        return asking.explain()


def test_each_side_of_a_mismatch_names_the_variable(lighthouse, plain, keys, tmp_path):
    other = Keys(tmp_path / "other")
    b = keys.member("b")
    revoke_key(keys.directory, "b")
    lighthouse._doorkeeper.look()
    with served(lighthouse, plain):
        assert "set PROCGUARD_KEYS" in explanation(lighthouse, None)
        assert "unset PROCGUARD_KEYS" in explanation(plain, keys.member())
        assert "does PROCGUARD_KEYS name the right file?" in explanation(lighthouse, other.member())
        assert "PROCGUARD_KEYS names our file" in (revoked := explanation(lighthouse, b))
        assert f"member b, {fingerprint(b.public)}" in revoked
        assert explanation(lighthouse, keys.member()) == ""
        assert explanation(plain, None) == ""


def test_where_nobody_listens_keys_are_not_the_reason(keys):
    with closing(ZmqMemberTransport("127.0.0.1", 1, keys.member())) as asking:
        assert asking.explain() == ""


# --- the ranks of a group


def asking_rank(server: ZmqRankServer, keys: MemberKeys | None) -> ZmqMemberTransport:
    host, _, port = server.address.rpartition(":")
    rank = ZmqMemberTransport(host, int(port), keys)
    rank.send(b"from a rank")
    return rank


def test_only_ranks_that_hold_the_groups_key_are_served(keys):
    server = ZmqRankServer("127.0.0.1", keys.member())
    ranks = []
    try:
        b = keys.member("b")
        posing = MemberKeys("x", Listed(MEMBER, "a"), b.public, b._secret, keys.member().public)
        for stranger in (None, b.within_group(), posing):
            ranks.append(asking_rank(server, stranger))
        ranks.append(asking_rank(server, keys.member().within_group()))
        got = []
        deadline = time.monotonic() + DEADLINE_S
        while not got:
            assert time.monotonic() < deadline
            if not server.has_input():
                waiting = zmq.Poller()
                waiting.register(server.fileno(), zmq.POLLIN)
                assert waiting.poll(DEADLINE_S * 1000)
            got += server.drain(100)
        [(peer, payload)] = got
        assert payload == b"from a rank"
        assert server.send(peer, b"answer")
        ranks[-1].wait(DEADLINE_S)
        assert ranks[-1].receive(10) == [b"answer"]
        assert server.drain(100) == []
    finally:
        for rank in ranks:
            rank.reconnect()
            rank.close()
        server.close()
