"""Health URLs against real servers: good ones, bad ones, slow ones, and such that drip."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from procguard.errors import UsageError
from procguard.supervisor.health_words import UrlAnswered, UrlBegun, UrlRule
from procguard.supervisor.url_checks import UrlChecks, ask, checked_url
from procguard.supervisor.url_patience import UrlPatience
from tests.supervisor.programs import until


@contextlib.contextmanager
def server(answer: Callable[[socket.socket, bytes], None]) -> Iterator[str]:
    """Serves each connection in a thread, with what it was asked; yields its URL."""
    ending = threading.Event()
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            asked = b""
            while b"\r\n\r\n" not in asked and (more := connection.recv(4096)):
                asked += more
            answer(connection, asked)

    def accept(listener: socket.socket) -> None:
        while not ending.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.02)
        accepting = threading.Thread(target=accept, args=(listener,))
        accepting.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/health"
        finally:
            ending.set()
            for thread in [accepting, *threads]:
                thread.join()


def asking() -> list[threading.Thread]:
    """The threads of the pool."""
    return [thread for thread in threading.enumerate() if thread.name == "procguard-url"]


def saying(text: bytes) -> Callable[[socket.socket, bytes], None]:
    return lambda connection, _: connection.sendall(text)


@pytest.mark.parametrize(
    ("text", "good", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", True, "HTTP status 200"),
        (b"HTTP/1.0 204\r\n\r\n", True, "HTTP status 204"),
        (b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n\r\n", True, "HTTP status 302"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", False, "HTTP status 404"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False, "HTTP status 503"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", False, "its answer is not HTTP"),
        (b"x" * 100_000, False, "its answer is not HTTP"),
        (b"", False, "the connection was closed without an answer"),
    ],
)
def test_what_a_server_says(text: bytes, good: bool, said: str) -> None:
    with server(saying(text)) as url:
        assert ask(url, 5.0) == (good, said)


def test_what_a_server_is_asked() -> None:
    asked = []

    def note(connection: socket.socket, request: bytes) -> None:
        asked.append(request)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    with server(note) as url:
        ask(f"{url}?deep=1#part", 5.0)
        ask(url.removesuffix("/health"), 5.0)
    host = url.split("/")[2].encode()
    assert asked[0].startswith(b"GET /health?deep=1 HTTP/1.1\r\nHost: " + host + b"\r\n")
    assert asked[1].startswith(b"GET / HTTP/1.1\r\n")


def drip(connection: socket.socket, _: bytes) -> None:
    for _ in range(600):
        connection.sendall(b"H")
        time.sleep(0.05)


def hold(connection: socket.socket, _: bytes) -> None:
    connection.recv(1)


@pytest.mark.parametrize("slow", [drip, hold])
def test_a_server_that_takes_too_long_does_not_get_longer(
    slow: Callable[[socket.socket, bytes], None],
) -> None:
    with server(slow) as url:
        begun = time.monotonic()
        assert ask(url, 0.2) == (False, "no answer within 0.2 s")
        assert time.monotonic() - begun < 15.0  # the server would go on for 30 s


def test_a_tls_server_that_never_shakes_hands_does_not_get_longer() -> None:
    with server(hold) as url:
        assert ask(url.replace("http:", "https:"), 0.2) == (False, "no answer within 0.2 s")


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    good, said = ask(f"http://127.0.0.1:{port}/", 1.0)
    assert (good, said) == (False, "Connection refused")


@pytest.mark.parametrize(
    "url",
    [
        *("", "health", "ftp://a/", "http://", "http:///x", "http://a:0/", "http://a:99999/", "http://a:b/"),
        *("http://[::1/", "http://a/b c", "http://a/b\nHost: c", "http://ü/", "http://a/\0"),
    ],
)
def test_a_url_that_cannot_be_asked_is_named(url: str) -> None:
    with pytest.raises(UsageError, match=r"health_check_url: .* cannot be asked; write one such as"):
        checked_url(url)
    assert not ask(url, 1.0)[0]


class Answers:
    """What the pool tells, in order."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.answered: dict[str, UrlAnswered] = {}

    def __call__(self, worker_id: str, event: UrlBegun | UrlAnswered) -> None:
        if isinstance(event, UrlBegun):
            self.begun.append(worker_id)
        else:
            self.answered[worker_id] = event


def test_many_are_asked_at_once_and_no_more_than_there_are_threads() -> None:
    answers, free = Answers(), threading.Event()

    def wait(connection: socket.socket, _: bytes) -> None:
        free.wait(30)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    checks = UrlChecks(answers, threads_max=3)
    with server(wait) as url:
        for number in range(8):
            checks.ask(f"w{number}", number, url, 30.0)
        until(lambda: len(answers.begun) == 3)
        assert answers.answered == {}
        free.set()
        until(lambda: len(answers.answered) == 8)
        assert sorted(answers.begun) == [f"w{number}" for number in range(8)]
        assert all(event.good for event in answers.answered.values())
        assert len(asking()) == 3
    checks.close()
    until(lambda: not asking())


def test_a_question_that_waits_is_replaced_by_the_next_of_the_same_worker() -> None:
    answers, free = Answers(), threading.Event()

    def wait(connection: socket.socket, _: bytes) -> None:
        free.wait(30)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    checks = UrlChecks(answers, threads_max=1)
    with server(wait) as url:
        checks.ask("a", 1, url, 30.0)
        until(lambda: answers.begun == ["a"])
        for number in range(100):
            checks.ask("b", number, url, 30.0)
        free.set()
        until(lambda: len(answers.answered) == 2)
        assert answers.begun == ["a", "b"]
        assert answers.answered["b"].number == 99
    checks.close()
    until(lambda: not asking())


def test_one_after_the_other_needs_one_thread() -> None:
    answers = Answers()
    checks = UrlChecks(answers)
    with server(saying(b"HTTP/1.1 200 OK\r\n\r\n")) as url:
        for number in range(5):
            checks.ask("w", number, url, 30.0)
            until(lambda number=number: "w" in answers.answered and answers.answered["w"].number == number)
            until(lambda: checks._idle == 1)
        assert checks._threads == 1
    checks.close()
    until(lambda: not asking())


class NoThread(threading.Thread):
    def start(self) -> None:
        raise RuntimeError("can't start new thread")


def test_without_any_thread_a_question_is_answered_and_counts_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = Answers()
    checks = UrlChecks(answers)
    patience = UrlPatience(UrlRule(interval_s=5.0, timeout_s=2.0, failures_max=1), now=0.0)
    with server(saying(b"HTTP/1.1 200 OK\r\n\r\n")) as url:
        first = patience.next(0.0)
        assert first is not None
        with monkeypatch.context() as patched:
            patched.setattr("procguard.supervisor.url_checks.threading.Thread", NoThread)
            checks.ask("w", first, url, 30.0)
        assert answers.answered["w"] == UrlAnswered(first, False, "no thread could be started to ask")
        assert patience.answered(answers.answered["w"], counts=True) is None
        assert patience.failures == 0
        second = patience.next(5.0)
        assert second is not None
        checks.ask("w", second, url, 30.0)
        until(lambda: answers.answered["w"].number == second)
        assert answers.answered["w"].good
        assert answers.begun == ["w"]
    checks.close()
    until(lambda: not asking())


def test_without_another_thread_a_question_waits_for_the_one_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers, free = Answers(), threading.Event()

    def wait(connection: socket.socket, _: bytes) -> None:
        free.wait(30)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    checks = UrlChecks(answers)
    with server(wait) as url:
        checks.ask("a", 1, url, 30.0)
        until(lambda: answers.begun == ["a"])
        with monkeypatch.context() as patched:
            patched.setattr("procguard.supervisor.url_checks.threading.Thread", NoThread)
            checks.ask("b", 2, url, 30.0)
        assert answers.answered == {}
        free.set()
        until(lambda: len(answers.answered) == 2)
        assert answers.answered["b"].good
    checks.close()
    until(lambda: not asking())
