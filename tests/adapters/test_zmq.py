"""What only the ZeroMQ adapter can do, and what peers that are none of ours can do to it."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import zmq

from procguard.adapters.base import Aside, Frame, HandshakeFailed, Inbound, Subscribed, Unsubscribed
from procguard.adapters.zmq import ZmqLighthouseTransport, ZmqMemberTransport
from procguard.adapters.zmq_handshakes import Handshakes
from procguard.adapters.zmq_sockets import SUBSCRIPTION_BYTES_MAX, WAIT_S_MAX, milliseconds
from procguard.errors import UsageError
from procguard.messages import FRAME_BYTES_MAX

DEADLINE_S = 30.0


@pytest.fixture
def lighthouse() -> Iterator[ZmqLighthouseTransport]:
    opened = ZmqLighthouseTransport("127.0.0.1", 0)
    yield opened
    opened.close()


@pytest.fixture
def member(lighthouse: ZmqLighthouseTransport) -> Iterator[ZmqMemberTransport]:
    opened = ZmqMemberTransport("127.0.0.1", lighthouse.port)
    yield opened
    opened.close()


@pytest.fixture
def stranger() -> Iterator[Callable[..., zmq.Socket]]:
    """Makes ZeroMQ sockets that keep none of our rules."""
    context = zmq.Context()
    kept: list[zmq.Socket] = []  # one that is collected is closed

    def connect(kind: int, port: int, **options: object) -> zmq.Socket:
        opened = context.socket(kind)
        for name, value in options.items():
            setattr(opened, name, value)
        opened.connect(f"tcp://127.0.0.1:{port}")
        kept.append(opened)
        return opened

    yield connect
    context.destroy(linger=0)


def arrived(
    lighthouse: ZmqLighthouseTransport, wanted: Inbound | type, count_max: int = 100
) -> list[Inbound]:
    """All that comes, up to something that equals ``wanted`` or is one."""
    found: list[Inbound] = []
    deadline = time.monotonic() + DEADLINE_S
    while not any(at == wanted or (isinstance(wanted, type) and isinstance(at, wanted)) for at in found):
        assert time.monotonic() < deadline, f"no {wanted} among {found}"
        lighthouse.wait(0.1)
        found.extend(lighthouse.drain(count_max))
    return found


def introduce(lighthouse: ZmqLighthouseTransport, member: ZmqMemberTransport) -> bytes:
    member.send(b"it is me")
    found: list[Inbound] = []
    while not (mine := [at.peer for at in found if isinstance(at, Frame) and at.payload == b"it is me"]):
        found += arrived(lighthouse, Frame)
    return mine[0]


def run(script: str) -> str:
    """Runs a script as a process of its own; one that hangs at its exit fails here."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# --- addresses and ports


@pytest.fixture
def free_port() -> int:
    """The first of two free neighbours, below the ports that systems give to connections."""
    for port in range(20_000 + os.getpid() % 5000, 32_000, 2):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            socket.create_server(("127.0.0.1", port + 1)).close()
            return port
    raise AssertionError("no two neighbouring ports are free")


def test_the_notice_port_is_the_next_one(free_port):
    lighthouse = ZmqLighthouseTransport("127.0.0.1", free_port)
    assert (lighthouse.port, lighthouse.notice_port) == (free_port, free_port + 1)
    lighthouse.close()


def test_a_port_in_use_is_named_with_the_remedy(lighthouse):
    with pytest.raises(UsageError, match=rf"port {lighthouse.port} on 127\.0\.0\.1 is in use.*--port"):
        ZmqLighthouseTransport("127.0.0.1", lighthouse.port)


def test_a_notice_port_in_use_is_named_and_the_other_freed(free_port):
    with socket.create_server(("127.0.0.1", free_port + 1)):
        with pytest.raises(UsageError, match=rf"port {free_port + 1} on 127\.0\.0\.1 is in use"):
            ZmqLighthouseTransport("127.0.0.1", free_port)
        socket.create_server(("127.0.0.1", free_port)).close()


@pytest.mark.parametrize("bind", ["192.0.2.1", "no-such-interface", "", "a" * 300, "a b", "127.0.0.1:80"])
def test_an_address_of_another_machine_is_refused(bind):
    with pytest.raises(UsageError, match="--bind"):
        ZmqLighthouseTransport(bind, 0)


@pytest.mark.parametrize("port", [-1, 65535, 65536, 1 << 40])
def test_a_port_that_cannot_be_is_refused(port):
    with pytest.raises(UsageError, match=r"--port"):
        ZmqLighthouseTransport("127.0.0.1", port)


@pytest.mark.parametrize("host", ["", "[]", "a b", "host/path"])
def test_a_host_that_cannot_be_is_refused(host):
    with pytest.raises(UsageError, match="cannot connect to"):
        ZmqMemberTransport(host, 29510)


@pytest.mark.parametrize(
    ("bind", "host"),
    [
        ("127.0.0.1", "localhost"),
        ("localhost", "localhost"),
        ("*", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "[::1]"),
        ("*", "::1"),
        ("::", "127.0.0.1"),
    ],
)
def test_names_and_both_families_reach_each_other(bind, host):
    if ":" in bind + host and not _has_ipv6():
        pytest.skip("no IPv6 here")
    lighthouse = ZmqLighthouseTransport(bind, 0)
    member = ZmqMemberTransport(host, lighthouse.port)
    try:
        introduce(lighthouse, member)
        member.listen(lighthouse.notice_port, [b"topic"])
        arrived(lighthouse, Subscribed(b"topic"))
    finally:
        member.close()
        lighthouse.close()


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_name_is_tried_as_either_family_until_one_answers(lighthouse):
    member = ZmqMemberTransport("localhost", lighthouse.port)
    try:
        for _ in range(3):
            peer = introduce(lighthouse, member)
            member.reconnect()
        for _ in range(3):
            peer = introduce(lighthouse, member)
            lighthouse.send(peer, b"answer")
            assert member.wait(DEADLINE_S) == []
            assert member.receive(1) == [b"answer"]
            member.reconnect()
    finally:
        member.close()


def test_a_name_that_does_not_resolve_is_nothing_to_raise_about():
    member = ZmqMemberTransport("no-such-host.invalid", 29510)
    assert member.send(b"x")
    member.listen(29511, [b"topic"])
    assert member.wait(0.05) == []
    member.reconnect()
    assert member.receive(1) == []
    member.close()


# --- peers that keep none of our rules


def test_frames_under_a_chosen_routing_id_are_dropped(lighthouse, member, stranger):
    for chosen in (b"me", b"\0", b"\0abc", b"\0abcde"):
        stranger(zmq.DEALER, lighthouse.port, routing_id=chosen).send(b"chosen")
    plain = stranger(zmq.DEALER, lighthouse.port)
    plain.send(b"plain")
    assert [at.payload for at in arrived(lighthouse, Frame)] == [b"plain"]
    assert lighthouse.drain(100) == []


def test_the_id_of_another_peer_cannot_be_taken(lighthouse, member, stranger):
    peer = introduce(lighthouse, member)
    thief = stranger(zmq.DEALER, lighthouse.port, routing_id=peer)
    thief.send(b"stolen")
    member.send(b"mine")
    assert arrived(lighthouse, Frame) == [Frame(peer, b"mine")]
    lighthouse.send(peer, b"answer")
    assert member.wait(DEADLINE_S) == []
    assert member.receive(10) == [b"answer"]
    assert not thief.poll(0)


@pytest.mark.parametrize("count_max", [1, 2, 3, 100])
def test_messages_of_several_parts_leave_the_drain_in_step(lighthouse, member, stranger, count_max):
    peer = introduce(lighthouse, member)
    rude = stranger(zmq.DEALER, lighthouse.port)
    for parts in range(2, 30):
        rude.send_multipart([b"part", peer, b"forged"] * parts)
        rude.send_multipart([b"part", peer] * parts)
        rude.send(b"single")
        member.send(b"%d" % parts)
    member.send(b"end")
    rude.send(b"rude end")
    found: list[Inbound] = []
    while len(found) < 28 * 2 + 2:
        found += arrived(lighthouse, Frame, count_max)
    assert [at.payload for at in found if at.peer == peer] == [b"%d" % n for n in range(2, 30)] + [b"end"]
    assert [at.payload for at in found if at.peer != peer] == [b"single"] * 28 + [b"rude end"]


def test_a_member_drops_answers_of_several_parts():
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    member = ZmqMemberTransport("127.0.0.1", router.bind_to_random_port("tcp://127.0.0.1"))
    try:
        member.send(b"hello")
        peer, _ = router.recv_multipart()
        router.send_multipart([peer, b"two", b"parts"])
        router.send_multipart([peer, b"one"])
        frames: list[bytes] = []
        while not frames:
            member.wait(DEADLINE_S)
            frames = member.receive(10)
        assert frames == [b"one"]
    finally:
        member.close()
        context.destroy(linger=0)


def test_a_frame_over_the_limit_cuts_off_only_its_sender(lighthouse, member, stranger):
    rude = stranger(zmq.DEALER, lighthouse.port)
    rude.send(bytes(FRAME_BYTES_MAX + 1))
    rude.send(b"after")
    peer = introduce(lighthouse, member)
    member.send(b"still here")
    assert [at for at in arrived(lighthouse, Frame) if isinstance(at, Frame)] == [Frame(peer, b"still here")]


def test_of_subscribers_that_talk_only_what_has_one_part_is_taken(lighthouse, stranger):
    rude = stranger(zmq.XSUB, lighthouse.notice_port)
    rude.send_multipart([b"hello", b"there"])
    rude.send_multipart([b"one", b"two", b"three"])
    rude.send(b"")
    rude.send(b"\2")
    rude.send(b"\1topic")
    assert arrived(lighthouse, Subscribed) == [Aside(b""), Aside(b"\2"), Subscribed(b"topic")]
    rude.close(linger=0)
    assert arrived(lighthouse, Unsubscribed) == [Unsubscribed(b"topic")]


def test_an_endless_topic_is_not_subscribed(lighthouse, stranger):
    rude = stranger(zmq.SUB, lighthouse.notice_port)
    rude.subscribe(b"x" * (SUBSCRIPTION_BYTES_MAX + 1))
    fair = stranger(zmq.SUB, lighthouse.notice_port)
    fair.subscribe(b"y" * (SUBSCRIPTION_BYTES_MAX // 2))
    assert arrived(lighthouse, Subscribed) == [Subscribed(b"y" * (SUBSCRIPTION_BYTES_MAX // 2))]


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(16 + 1 + 31)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER"


@pytest.mark.parametrize("opening", [b"", GREETING, GREETING + READY], ids=["raw", "greeted", "ready"])
def test_garbage_on_the_wire_stops_nothing(lighthouse, opening):
    rng = random.Random(3)
    for _ in range(30):
        for port in (lighthouse.port, lighthouse.notice_port):
            with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
                with suppress(ConnectionError):
                    client.sendall(opening + rng.randbytes(rng.randrange(200)))
                lighthouse.drain(100)
    member = ZmqMemberTransport("127.0.0.1", lighthouse.port)
    member.listen(lighthouse.notice_port, [b"topic"])
    arrived(lighthouse, Subscribed(b"topic"))
    introduce(lighthouse, member)
    member.close()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/heartbeat HTTP/1.1\r\nContent-Length: 4000\r\n\r\n" + b"x" * 4000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        bytes(1000),
    ],
    ids=["http", "http-long", "grpc", "tls", "zeros"],
)
def test_who_speaks_another_protocol_is_turned_away_at_once(lighthouse, request_bytes):
    with socket.create_connection(("127.0.0.1", lighthouse.port), timeout=DEADLINE_S) as client:
        client.sendall(request_bytes)
        [failed] = arrived(lighthouse, HandshakeFailed)
        assert "HTTP or gRPC client?" in failed.text
        assert f"port {lighthouse.port}" in failed.text
        with suppress(ConnectionError):
            while client.recv(100):  # what libzmq greets everybody with, then the end
                pass


def test_who_says_nothing_and_goes_is_told_from_who_speaks_another_protocol(lighthouse):
    socket.create_connection(("127.0.0.1", lighthouse.port)).close()
    [failed] = arrived(lighthouse, HandshakeFailed)
    assert "health check" in failed.text


def test_a_subscriber_on_the_wrong_port_is_told_of(lighthouse, stranger):
    stranger(zmq.SUB, lighthouse.port).subscribe(b"")
    [failed] = arrived(lighthouse, HandshakeFailed)  # which of the two ends turns away first is not given
    assert f"port {lighthouse.port}" in failed.text


def test_members_that_come_and_go_are_no_failed_handshakes(lighthouse):
    found: list[Inbound] = []
    for _ in range(20):
        member = ZmqMemberTransport("127.0.0.1", lighthouse.port)
        member.send(b"hello")
        found += arrived(lighthouse, Frame)
        lighthouse.send(found[-1].peer, b"answer")
        member.wait(DEADLINE_S)  # by now its own side has finished the handshake too
        member.close()
    assert [type(at) for at in found] == [Frame] * 20


def monitored(event: zmq.Event, value: int) -> bytes:
    return struct.pack("=Hi", event, value)


def test_handshakes_tell_each_failure_once():
    handshakes = Handshakes(29510, 29511)

    def told(*events: tuple[zmq.Event, int]) -> list[str]:
        return [text for text in (handshakes.failure(monitored(*event)) for event in events) if text]

    accepted, succeeded, ended = (
        zmq.EVENT_ACCEPTED,
        zmq.EVENT_HANDSHAKE_SUCCEEDED,
        zmq.EVENT_DISCONNECTED,
    )
    failed, refused = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    assert told((accepted, 7), (succeeded, 0), (ended, 7)) == []
    [text] = told((accepted, 7), (failed, errno.EAGAIN), (ended, 7))
    assert "said nothing for 5 s" in text
    [text] = told((accepted, 7), (failed, errno.EPIPE), (ended, 7))
    assert "ended before it said what it is" in text
    [text] = told((accepted, 7), (refused, 0x11000002), (ended, 7))
    assert "it has a key" in text
    [text] = told((accepted, 7), (accepted, 8), (ended, 7), (succeeded, 0), (ended, 8))
    assert "HTTP" in text
    assert told((accepted, 7), (accepted, 8), (succeeded, 0), (ended, 7), (ended, 8)) == []


# --- processes, threads, signals


def test_a_signal_handler_can_wake(lighthouse):
    before = signal.signal(signal.SIGALRM, lambda *_: lighthouse.wake())
    began = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        lighthouse.wait(DEADLINE_S)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < DEADLINE_S / 2


def test_a_forked_child_closes_and_collects_without_harm():
    output = run(
        """
        import os, sys, warnings
        from procguard.adapters.zmq import ZmqLighthouseTransport, ZmqMemberTransport
        lighthouse = ZmqLighthouseTransport("127.0.0.1", 0)
        member = ZmqMemberTransport("127.0.0.1", lighthouse.port)
        member.listen(lighthouse.notice_port, [b"t"])
        for way in ("close", "collect"):
            child = os.fork()
            if child == 0:
                warnings.simplefilter("ignore", ResourceWarning)  # the sockets are the parent's
                if way == "close":
                    member.close()
                    lighthouse.close()
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0
            member.send(b"after " + way.encode())
            found = []
            while not any(way.encode() in at[-1] for at in found):
                lighthouse.wait(1)
                found += lighthouse.drain(10)
        member.close()
        lighthouse.close()
        print("ok")
        """
    )
    assert output == "ok\n"


def test_a_process_that_forgets_to_close_still_ends():
    run(
        """
        import warnings
        from procguard.adapters.zmq import ZmqLighthouseTransport, ZmqMemberTransport
        warnings.simplefilter("ignore", ResourceWarning)
        lighthouse = ZmqLighthouseTransport("127.0.0.1", 0)
        nobody = ZmqMemberTransport("127.0.0.1", 1)
        unknown = ZmqMemberTransport("no-such-host.invalid", 29510)
        for member in (nobody, unknown):
            member.listen(1, [b"t"])
            member.send(b"x")
        """
    )


def test_close_gives_up_on_a_lighthouse_that_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        for port in (mute.getsockname()[1], 1):
            member = ZmqMemberTransport("127.0.0.1", port)
            member.listen(port, [b"t"])
            member.send(b"last words")
            began = time.monotonic()
            member.close()
            assert time.monotonic() - began < DEADLINE_S / 2


def test_the_limit_of_open_files_is_raised():
    output = run(
        """
        import resource
        from procguard.adapters.zmq import ZmqLighthouseTransport
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        ZmqLighthouseTransport("127.0.0.1", 0).close()
        soft, unchanged = resource.getrlimit(resource.RLIMIT_NOFILE)
        print(soft == min(hard, 65536) if hard >= 0 else soft == 65536, unchanged == hard)
        """
    )
    assert output == "True True\n"


def test_importing_it_brings_zmq_and_nothing_heavy():
    output = run(
        """
        import sys
        import procguard.adapters.zmq
        ours = {name for name in sys.modules if name.split(".")[0] == "procguard"}
        print(sorted(ours - {"procguard", "procguard.adapters"}))
        print(sorted({"asyncio", "msgpack", "psutil", "numpy", "zmq.asyncio"} & set(sys.modules)))
        """
    )
    ours, heavy = output.splitlines()
    parts = ("zmq", "zmq_doorkeeper", "zmq_handshakes", "zmq_keys", "zmq_sockets")
    rooms = ("adapters.base", *(f"adapters.{part}" for part in parts))
    assert ours == str([f"procguard.{room}" for room in (*rooms, "errors", "messages")])
    assert heavy == "[]"


def test_a_wait_is_rounded_up_and_bounded():
    assert [milliseconds(at) for at in (-1.0, 0.0, 1e-9, 0.0003, 0.0011, 2.0)] == [0, 0, 1, 1, 2, 2000]
    assert milliseconds(float("inf")) == WAIT_S_MAX * 1000


def test_wait_ends_with_what_arrives(lighthouse, member):
    member.send(b"x")
    began = time.monotonic()
    lighthouse.wait(DEADLINE_S)
    assert time.monotonic() - began < DEADLINE_S / 2
