"""Healing over real sockets: the state of one step or an error that says why; nobody waits for the dead."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import select
import signal
import socket
import threading
import time
import tracemalloc
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from procguard.client import checkpoint_source
from procguard.client.checkpoint import CheckpointTransport, HTTPTransport
from procguard.client.checkpoint_source import STEP_HEADER, WAIT_HEADER
from procguard.client.state_stream import SENT_BYTES, encode
from procguard.errors import CheckpointError, UnsupportedState, UsageError

LONG = timedelta(seconds=60)  # is never waited for, unless something is broken
SHORT = timedelta(seconds=0.3)  # is waited for, where running out of time is what is tested
DEADLINE_S = 60.0

STATE = {"w": np.arange(1000, dtype=np.float32), "step": 7, "lr": 0.5}
# More than the kernel buffers between two sockets: its sender waits for a receiver that does not read.
BODY = b"".join(encode(STATE).parts())
LARGE = {"w": np.zeros(48 << 20, np.uint8)}


@pytest.fixture
def transport() -> Iterator[Callable[..., HTTPTransport]]:
    """Makes transports that are shut down after the test."""
    with contextlib.ExitStack() as stack:

        def make(timeout: timedelta = LONG, host: str | None = "127.0.0.1", port: int = 0) -> HTTPTransport:
            made = HTTPTransport(timeout, host, port)
            stack.callback(made.shutdown, wait=False)
            return made

        yield make


@pytest.fixture
def source(transport: Callable[..., HTTPTransport]) -> HTTPTransport:
    return transport()


@pytest.fixture
def healing(transport: Callable[..., HTTPTransport]) -> HTTPTransport:
    return transport()


@pytest.fixture
def beside() -> Iterator[Callable[..., Future[Any]]]:
    """Runs something in another thread."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        yield pool.submit


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        threading.Event().wait(0.001)


def token_of(url: str) -> str:
    return url.rpartition("/")[2]


def refusal(url: str, step: int, wait_s: float) -> tuple[int, str]:
    with SlowReceiver(url, step, wait_s) as receiver:
        response = receiver.begin()
        return response.status, response.read().decode()


def connected(url: str) -> socket.socket:
    parts = urllib.parse.urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), DEADLINE_S)


class SlowReceiver:
    """Asks for a checkpoint and reads it only when told to."""

    def __init__(self, url: str, step: int, wait_s: float = DEADLINE_S) -> None:
        self.socket = connected(url)
        path = urllib.parse.urlsplit(url).path
        request = (
            f"GET {path} HTTP/1.1\r\nHost: x\r\n{STEP_HEADER}: {step}\r\n{WAIT_HEADER}: {wait_s}\r\n\r\n"
        )
        self.socket.sendall(request.encode())

    def begin(self) -> http.client.HTTPResponse:
        """Wait for the answer to begin, and with it the transfer."""
        response = http.client.HTTPResponse(self.socket)
        response.begin()
        return response

    def __enter__(self) -> SlowReceiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


@dataclass
class FakeSource:
    """A source that answers every request with the same bytes, then keeps silent."""

    answer: bytes
    closes: bool = False

    def __enter__(self) -> FakeSource:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/checkpoint/secret"
        self.asked = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def _serve(self) -> None:
        connection, _ = self._listening.accept()
        with connection:
            self.request = connection.recv(4096)
            connection.sendall(self.answer)
            self.asked.set()
            if not self.closes:
                self._done.wait(DEADLINE_S)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(DEADLINE_S)
        self._listening.close()


def answer(body: bytes, length: int | None = None) -> bytes:
    declared = len(body) if length is None else length
    return f"HTTP/1.1 200 OK\r\nContent-Length: {declared}\r\n\r\n".encode() + body


def assert_equal(received: Any, sent: dict[str, Any]) -> None:
    assert received.keys() == sent.keys()
    for key, value in sent.items():
        assert np.array_equal(received[key], value)


# --- the ordinary way ---


def test_a_state_is_fetched(source: CheckpointTransport, healing: CheckpointTransport) -> None:
    url = source.metadata()
    source.send_checkpoint([1], 7, STATE, LONG)
    received = healing.recv_checkpoint(0, url, 7, LONG)
    assert_equal(received, STATE)
    received["w"][:] = 0  # one's own memory
    assert_equal(healing.recv_checkpoint(0, url, 7, LONG), STATE)


def test_a_large_state_is_fetched_by_several_at_once(
    source: HTTPTransport, transport: Callable[..., HTTPTransport], beside: Callable[..., Future[Any]]
) -> None:
    state = {"w": np.random.default_rng(1).integers(0, 255, 20 << 20, np.uint8), "small": [np.ones(3)] * 50}
    url = source.metadata()
    source.send_checkpoint([1, 2], 7, state, LONG)
    count = checkpoint_source.TRANSFER_COUNT_MAX + 2  # some have to wait for their turn
    fetches = [beside(transport().recv_checkpoint, 0, url, 7, LONG) for _ in range(count)]
    for fetch in fetches:
        assert np.array_equal(fetch.result(DEADLINE_S)["w"], state["w"])


def test_who_asks_too_early_is_held_until_the_source_is_ready(
    source: HTTPTransport, beside: Callable[..., Future[Any]], healing: HTTPTransport
) -> None:
    url = source.metadata()
    early = beside(healing.recv_checkpoint, 0, url, 7, LONG)
    until(lambda: source._source._server.connections or early.done())
    assert not early.done()
    source.send_checkpoint([1], 7, STATE, LONG)
    assert_equal(early.result(DEADLINE_S), STATE)


def test_a_request_that_raced_a_new_round_is_still_served(
    source: HTTPTransport, healing: HTTPTransport
) -> None:
    urls = [source.metadata() for _ in range(3)]
    assert len({token_of(url) for url in urls}) == 3
    source.send_checkpoint([1], 7, STATE, LONG)
    for url in urls[1:]:
        assert_equal(healing.recv_checkpoint(0, url, 7, LONG), STATE)
    with pytest.raises(CheckpointError, match="403"):
        healing.recv_checkpoint(0, urls[0], 7, LONG)


def test_the_newest_state_is_the_one_that_is_served(source: HTTPTransport, healing: HTTPTransport) -> None:
    source.send_checkpoint([1], 7, STATE, LONG)
    source.disallow_checkpoint()
    url = source.metadata()
    source.send_checkpoint([1], 8, {"new": 1}, LONG)
    assert healing.recv_checkpoint(0, url, 8, LONG) == {"new": 1}


def test_where_a_source_can_be_reached(transport: Callable[..., HTTPTransport]) -> None:
    unknown = transport(host=None)
    assert urllib.parse.urlsplit(unknown.metadata()).hostname == socket.gethostname().lower()
    unknown.advertise("10.1.2.3")
    assert urllib.parse.urlsplit(unknown.metadata()).hostname == "10.1.2.3"
    unknown.advertise("fe80::1")
    assert "//[fe80::1]:" in unknown.metadata()
    told = transport(host="trainer-0.example")
    told.advertise("10.1.2.3")
    assert urllib.parse.urlsplit(told.metadata()).hostname == "trainer-0.example"


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")
def test_a_state_is_fetched_over_ipv6(
    transport: Callable[..., HTTPTransport], healing: HTTPTransport
) -> None:
    source = transport(host="::1")
    url = source.metadata()
    source.send_checkpoint([1], 7, STATE, LONG)
    assert_equal(healing.recv_checkpoint(0, url, 7, LONG), STATE)


# --- what is refused ---


def test_no_token_no_state(source: HTTPTransport, healing: HTTPTransport) -> None:
    url = source.metadata()
    source.send_checkpoint([1], 7, STATE, LONG)
    place = url.removesuffix(token_of(url))
    for token in ("", "guess", token_of(url)[:-1], token_of(url) + "x", "%00", "a/b"):
        with pytest.raises(CheckpointError, match="403"):
            healing.recv_checkpoint(0, place + token, 7, LONG)


def test_a_wrong_step_is_refused_naming_both(source: HTTPTransport, healing: HTTPTransport) -> None:
    url = source.metadata()
    source.send_checkpoint([1], 7, STATE, LONG)
    with pytest.raises(CheckpointError, match=r"409.*serves step 7, not step 6"):
        healing.recv_checkpoint(0, url, 6, LONG)


def test_a_source_with_nothing_to_serve_says_so_in_time(source: HTTPTransport) -> None:
    said = "the source had no state to serve within 0.05 s"
    assert refusal(source.metadata(), 7, wait_s=0.05) == (503, said)


def test_the_source_is_told_to_answer_before_the_receiver_gives_up(healing: HTTPTransport) -> None:
    with FakeSource(b"", closes=True) as fake:
        with pytest.raises(CheckpointError):
            healing.recv_checkpoint(0, fake.url, 7, LONG)
        assert b"ProcGuard-Step: 7\r\nProcGuard-Wait: 54.000\r\n" in fake.request


def test_an_error_says_who_where_what_and_keeps_the_secret(
    source: HTTPTransport, healing: HTTPTransport
) -> None:
    url = source.metadata()
    source.send_checkpoint([1], 7, STATE, LONG)
    with pytest.raises(CheckpointError) as caught:
        healing.recv_checkpoint(3, url, 6, LONG)
    port = urllib.parse.urlsplit(url).port
    assert f"cannot fetch step 6 from replica rank 3 at http://127.0.0.1:{port}: 409" in str(caught.value)
    assert "(tried 127.0.0.1; received 0 bytes)" in str(caught.value)
    assert token_of(url) not in str(caught.value)


def test_a_state_that_cannot_be_sent_is_the_senders_error(source: HTTPTransport) -> None:
    with pytest.raises(UnsupportedState, match=r"state\['w'\]"):
        source.send_checkpoint([1], 7, {"w": object()}, LONG)


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "x",
        "tcp://h:1/checkpoint/t",
        "http://h/checkpoint/t",
        "http://h:1/other",
        "http://[h:1/checkpoint/t",
        "http://h:x/checkpoint/secret",
    ],
)
def test_metadata_of_another_kind_is_named(healing: HTTPTransport, metadata: str) -> None:
    with pytest.raises(CheckpointError, match="metadata is no") as caught:
        healing.recv_checkpoint(0, metadata, 7, LONG)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["a" * 70, "ż" * 70])
def test_a_host_that_is_none_is_named(healing: HTTPTransport, host: str) -> None:
    with pytest.raises(CheckpointError, match="tried no address"):
        healing.recv_checkpoint(0, f"http://{host}:1/checkpoint/t", 7, LONG)


def test_what_the_caller_did_wrong_is_said(transport: Callable[..., HTTPTransport]) -> None:
    source = transport()
    taken = urllib.parse.urlsplit(source.metadata()).port
    with pytest.raises(UsageError, match=f"port {taken}"):
        transport(port=taken)
    with pytest.raises(UsageError, match="port 70000"):
        transport(port=70000)
    with pytest.raises(UsageError, match="timeout of 0 s"):
        transport(timeout=timedelta(0))


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /favicon.ico HTTP/1.0\r\n\r\n",
        b"GET /checkpoint/token HTTP/1.1\r\n\r\n",
        b"GET /checkpoint/token HTTP/1.1\r\nProcGuard-Step: x\r\nProcGuard-Wait: 1\r\n\r\n",
        b"GET /checkpoint/\xff\xfe HTTP/1.1\r\nProcGuard-Step: 7\r\nProcGuard-Wait: nan\r\n\r\n",
        b"POST /checkpoint/token HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
        b"DELETE / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET " + b"x" * 70_000,
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    ],
    ids=lambda request_bytes: repr(request_bytes[:30]),
)
def test_garbage_gets_a_plain_4xx(
    source: HTTPTransport,
    healing: HTTPTransport,
    request_bytes: bytes,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    url = source.metadata()
    source.send_checkpoint([1], 7, STATE, LONG)
    with connected(url) as connection:
        connection.sendall(request_bytes)
        reply = connection.recv(4096)
    assert reply.startswith(b"HTTP/1.1 4"), reply
    assert_equal(healing.recv_checkpoint(0, url, 7, LONG), STATE)
    assert not [record for record in caplog.records if record.levelno > logging.INFO or record.exc_info]
    assert capfd.readouterr() == ("", "")


def test_transfers_beyond_the_limit_wait_for_their_turn(
    source: HTTPTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_source, "TRANSFER_COUNT_MAX", 2)
    url = source.metadata()
    source.send_checkpoint([1, 2, 3], 7, LARGE, LONG)
    with SlowReceiver(url, 7) as first, SlowReceiver(url, 7) as second:
        running = [first.begin(), second.begin()]
        with SlowReceiver(url, 7) as third:
            assert not select.select([third.socket], [], [], 0.1)[0]
            running[0].read()
            assert third.begin().status == 200


def test_connections_are_bounded(
    source: HTTPTransport, healing: HTTPTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_source, "CONNECTION_COUNT_MAX", 2)
    url = source.metadata()
    source.send_checkpoint([1], 7, STATE, LONG)
    refusal = pytest.raises(CheckpointError, match=r"503|reset|Remote end closed|Broken pipe")
    with connected(url), connected(url), refusal:
        healing.recv_checkpoint(0, url, 7, LONG)
    until(lambda: not source._source._server.connections)
    assert_equal(healing.recv_checkpoint(0, url, 7, LONG), STATE)


# --- the arrays change ---


def test_disallow_waits_for_the_transfer_that_runs(
    source: HTTPTransport, beside: Callable[..., Future[Any]]
) -> None:
    url = source.metadata()
    source.send_checkpoint([1], 7, LARGE, LONG)
    with SlowReceiver(url, 7) as receiver:
        response = receiver.begin()
        disallowed = beside(source.disallow_checkpoint)
        assert wait([disallowed], 0.1).not_done
        body = response.read()
        disallowed.result(DEADLINE_S)
    assert body == b"".join(encode(LARGE).parts())


def test_after_disallow_nothing_is_served(source: HTTPTransport) -> None:
    url = source.metadata()
    source.send_checkpoint([1], 7, STATE, LONG)
    source.disallow_checkpoint()
    assert refusal(url, 7, wait_s=0.05)[0] == 503


def test_a_transfer_of_many_chunks_takes_the_memory_of_one_state(
    source: HTTPTransport, healing: HTTPTransport
) -> None:
    chunks = 6
    state = {"w": np.ones(chunks * SENT_BYTES // 8), "bytes": bytes(SENT_BYTES)}
    state_bytes = (chunks + 1) * SENT_BYTES
    url = source.metadata()
    source.send_checkpoint([1], 7, state, LONG)
    tracemalloc.start()
    try:
        received = healing.recv_checkpoint(0, url, 7, LONG)
        _, peak_bytes = tracemalloc.get_traced_memory()  # of both sides together
    finally:
        tracemalloc.stop()
    assert_equal(received, state)
    assert state_bytes <= peak_bytes < state_bytes + SENT_BYTES / 2


def test_a_receiver_that_takes_too_long_is_cut_and_cannot_mistake_it(
    transport: Callable[..., HTTPTransport],
) -> None:
    source = transport(timeout=SHORT)
    url = source.metadata()
    source.send_checkpoint([1], 7, LARGE, LONG)
    with SlowReceiver(url, 7) as receiver:
        response = receiver.begin()
        source.disallow_checkpoint()
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()


def test_a_receiver_that_stalls_is_cut(source: HTTPTransport) -> None:
    url = source.metadata()
    source.send_checkpoint([1], 7, LARGE, SHORT)
    with SlowReceiver(url, 7) as receiver:
        response = receiver.begin()
        source.disallow_checkpoint()  # returns although nobody reads
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()


def test_a_receiver_gets_one_step_or_an_error_never_a_mixture(
    source: HTTPTransport, transport: Callable[..., HTTPTransport], beside: Callable[..., Future[Any]]
) -> None:
    weights = [np.zeros(1 << 20, np.int64), np.zeros(7, np.int64)]
    newest = {"round": (source.metadata(), 0)}
    ended = threading.Event()

    def heal_until_the_end() -> int:
        receiver, healed_count = transport(), 0
        while not ended.is_set():
            url, step = newest["round"]
            with contextlib.suppress(CheckpointError):
                received = receiver.recv_checkpoint(0, url, step, LONG)
                assert all((array == step).all() for array in received)
                healed_count += 1
        return healed_count

    healing = [beside(heal_until_the_end) for _ in range(2)]
    for step in range(10):
        source.send_checkpoint([1, 2], step, weights, LONG)
        until(lambda: source._source._sending or any(receiver.done() for receiver in healing))
        source.disallow_checkpoint()
        for array in weights:
            array[:] = step + 1
        newest["round"] = (source.metadata(), step + 1)
    ended.set()
    source.shutdown(wait=False)
    assert sum(receiver.result(DEADLINE_S) for receiver in healing) >= 10


def test_a_corrupted_state_is_not_handed_over(healing: HTTPTransport) -> None:
    stream = bytearray(BODY)
    stream[-100] ^= 1
    corrupted = pytest.raises(CheckpointError, match="checksum of buffer 0")
    with FakeSource(answer(bytes(stream))) as fake, corrupted:
        healing.recv_checkpoint(0, fake.url, 7, LONG)


# --- sources that fail ---


def test_a_dead_source_is_an_error_at_once(healing: HTTPTransport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(CheckpointError, match=r"refused.*tried 127.0.0.1; received 0 bytes"):
        healing.recv_checkpoint(0, f"http://127.0.0.1:{port}/checkpoint/t", 7, LONG)


@pytest.mark.parametrize(
    ("reply", "closes", "said"),
    [
        (b"", False, "no progress for 0.3 s"),
        (b"HTTP/1.1 2", False, "no progress for 0.3 s"),
        (answer(BODY[:2000], len(BODY)), False, "no progress for 0.3 s"),
        (b"", True, "Remote end closed connection"),
        (answer(BODY[:2000], len(BODY)), True, r"ended in the middle of the state .*received 2000 bytes"),
        (answer(b"", 1 << 60), True, "more than the"),
        (answer(b""), True, "ended in the middle"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + BODY, True, "does not say how long"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n" + BODY, True, "does not say how long"),
        (answer(b"<html>" + b" " * 1000), True, "malformed state stream"),
        (answer(BODY + b"x"), True, "do not add up"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nfire", True, "500: fire"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", True, "SSH-2.0"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n", True, "headers"),
    ],
)
def test_a_failing_source_is_an_error(healing: HTTPTransport, reply: bytes, closes: bool, said: str) -> None:
    timeout = LONG if closes else SHORT
    with FakeSource(reply, closes) as fake, pytest.raises(CheckpointError, match=said) as caught:
        healing.recv_checkpoint(0, fake.url, 7, timeout)
    assert "secret" not in str(caught.value)


# --- abort ---


@pytest.mark.parametrize("reply", [b"", answer(BODY[:2000], len(BODY))], ids=["unanswered", "midway"])
def test_abort_ends_a_fetch(healing: HTTPTransport, beside: Callable[..., Future[Any]], reply: bytes) -> None:
    with FakeSource(reply) as fake:
        fetch = beside(healing.recv_checkpoint, 2, fake.url, 7, LONG)
        fake.asked.wait(DEADLINE_S)
        healing.abort()
        with pytest.raises(CheckpointError, match="aborted: fetching step 7 from replica rank 2"):
            fetch.result(DEADLINE_S)


def test_abort_ends_a_connection_attempt(healing: HTTPTransport, beside: Callable[..., Future[Any]]) -> None:
    with contextlib.ExitStack() as stack:
        deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # its queue is full then, and further attempts hang
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        fetch = beside(
            healing.recv_checkpoint, 2, f"http://127.0.0.1:{deaf.getsockname()[1]}/checkpoint/t", 7, LONG
        )
        until(lambda: any(running._tried for running in list(healing._fetches)) or fetch.done())
        assert not fetch.done()
        healing.abort()
        with pytest.raises(
            CheckpointError, match=r"aborted: fetching step 7 from replica rank 2 at http://127"
        ):
            fetch.result(DEADLINE_S)


def test_abort_holds_until_the_next_round(source: HTTPTransport, healing: HTTPTransport) -> None:
    url = source.metadata()
    source.send_checkpoint([1], 7, STATE, LONG)
    healing.abort()
    with pytest.raises(CheckpointError, match="aborted: fetching step 7"):
        healing.recv_checkpoint(0, url, 7, LONG)
    with pytest.raises(CheckpointError, match="aborted: sending step 7"):
        healing.send_checkpoint([0], 7, STATE, LONG)
    healing.metadata()
    assert_equal(healing.recv_checkpoint(0, url, 7, LONG), STATE)


def test_abort_cuts_what_is_being_sent_and_withdraws_it(source: HTTPTransport) -> None:
    url = source.metadata()
    source.send_checkpoint([1], 7, LARGE, LONG)
    with SlowReceiver(url, 7) as receiver:
        response = receiver.begin()
        source.abort()
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
    assert refusal(url, 7, wait_s=0.05)[0] == 503


def test_abort_answers_who_is_held(source: HTTPTransport) -> None:
    url = source.metadata()
    with SlowReceiver(url, 7) as receiver:
        until(lambda: source._source._server.connections)
        source.abort()
        response = receiver.begin()
        assert (response.status, response.read()) == (503, b"the source aborted")


def test_who_asks_after_an_abort_does_not_wait_for_what_will_not_come(source: HTTPTransport) -> None:
    url = source.metadata()
    source.abort()
    assert refusal(url, 7, wait_s=DEADLINE_S) == (503, "the source aborted")
    source.metadata()
    assert refusal(url, 7, wait_s=DEADLINE_S) == (503, "the source aborted"), "that round is over"


def test_the_next_round_heals_after_an_abort(
    source: HTTPTransport, healing: HTTPTransport, beside: Callable[..., Future[Any]]
) -> None:
    url = source.metadata()
    healing.metadata()
    fetch = beside(healing.recv_checkpoint, 0, url, 7, LONG)
    until(lambda: source._source._server.connections)
    for transport in (source, healing):
        transport.abort()
    with pytest.raises(CheckpointError, match="aborted"):
        fetch.result(DEADLINE_S)
    url = source.metadata()
    healing.metadata()
    source.send_checkpoint([1], 7, STATE, LONG)
    assert_equal(healing.recv_checkpoint(0, url, 7, LONG), STATE)


# --- the end ---


def test_shutdown_frees_the_port_and_ends_everything(transport: Callable[..., HTTPTransport]) -> None:
    source = transport()
    url = source.metadata()
    source.send_checkpoint([1], 7, STATE, LONG)
    for waiting in (True, False, True):
        source.shutdown(waiting)
    source.abort()
    source.disallow_checkpoint()
    for use in (
        source.metadata,
        lambda: source.send_checkpoint([1], 7, STATE, LONG),
        lambda: source.recv_checkpoint(0, url, 7, LONG),
    ):
        with pytest.raises(CheckpointError, match="shut down"):
            use()
    transport(port=urllib.parse.urlsplit(url).port)


def test_shutdown_lets_a_transfer_finish(source: HTTPTransport, beside: Callable[..., Future[Any]]) -> None:
    url = source.metadata()
    source.send_checkpoint([1], 7, LARGE, LONG)
    with SlowReceiver(url, 7) as receiver:
        response = receiver.begin()
        ended = beside(source.shutdown)
        assert wait([ended], 0.1).not_done
        assert len(response.read()) == encode(LARGE).length_bytes
        ended.result(DEADLINE_S)


def test_shutdown_without_waiting_cuts_both_directions(
    source: HTTPTransport, beside: Callable[..., Future[Any]]
) -> None:
    url = source.metadata()
    source.send_checkpoint([1], 7, LARGE, LONG)
    with SlowReceiver(url, 7) as receiver, FakeSource(b"") as fake:
        response = receiver.begin()
        fetch = beside(source.recv_checkpoint, 0, fake.url, 7, LONG)
        fake.asked.wait(DEADLINE_S)
        source.shutdown(wait=False)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
        with pytest.raises(CheckpointError, match="aborted"):
            fetch.result(DEADLINE_S)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # the very thing that is tested
def test_a_forked_child_has_no_part_in_it(
    transport: Callable[..., HTTPTransport], healing: HTTPTransport
) -> None:
    source = transport()
    url = source.metadata()
    source.send_checkpoint([1], 7, LARGE, LONG)
    with SlowReceiver(url, 7) as receiver:
        response = receiver.begin()
        answered, answers = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(answers, b"inert" if is_inert(source) else b"alive")
                signal.pause()
            finally:
                os._exit(0)
        try:
            assert select.select([answered], [], [], DEADLINE_S)[0], "the child hangs"
            assert os.read(answered, 5) == b"inert"
            assert len(response.read()) == encode(LARGE).length_bytes
            healing.recv_checkpoint(0, url, 7, LONG)
            source.shutdown()  # and the child, which lives, keeps the port from nobody
            transport(port=urllib.parse.urlsplit(url).port)
            with pytest.raises(CheckpointError):
                healing.recv_checkpoint(0, url, 7, LONG)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(answered)
            os.close(answers)


def is_inert(inherited: HTTPTransport) -> bool:
    inherited.abort()
    inherited.disallow_checkpoint()
    inherited.shutdown()
    with pytest.raises(CheckpointError, match="inherited by a fork"):
        inherited.metadata()
    return inherited._source._server.socket.fileno() == -1
