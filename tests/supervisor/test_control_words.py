"""Lines between guard and client: what is a request, what is an answer, and what is neither."""

from __future__ import annotations

import json

import pytest

from procguard.errors import GuardError, ProtocolError, UsageError
from procguard.supervisor.control_words import (
    ANSWER_BYTES_MAX,
    REQUEST_BYTES_MAX,
    Lines,
    Request,
    read_answer,
    read_request,
    refusal_line,
    request_line,
    result_line,
)


def test_a_request_there_and_back() -> None:
    line = request_line("stop", {"ids": ["w\udc80", "ü"], "force": True})
    assert line.endswith(b"\n")
    assert line.isascii()
    assert read_request(line) == Request("stop", {"ids": ["w\udc80", "ü"], "force": True})
    assert read_request(b'{"verb": "status"}') == Request("status", {})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"", "not a JSON object"),
        (b"\xff\xfe", "not a JSON object"),
        (b"GET / HTTP/1.1", "not a JSON object: b'GET / HTTP/1.1'; a request is"),
        (b"[" * 100_000, "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b"9" * 10_000, "not a JSON object"),
        (b'{"args": {}}', 'a request needs "verb"'),
        (b'{"verb": 3}', 'a request needs "verb"'),
        (b'{"verb": "stop", "args": []}', 'stop: "args" must be an object'),
        (b'{"verb": "stop", "arg": {}}', "stop: unknown key 'arg'"),
    ],
)
def test_no_request(line: bytes, said: str) -> None:
    with pytest.raises(UsageError) as error:
        read_request(line)
    assert said in str(error.value)
    assert len(str(error.value)) < 250


def test_a_request_that_no_guard_takes_is_not_sent() -> None:
    with pytest.raises(UsageError, match="name fewer workers, or --all"):
        request_line("stop", {"ids": ["w" * REQUEST_BYTES_MAX]})


def test_answers_there_and_back() -> None:
    assert read_answer(result_line({"w0": True})) == {"w0": True}
    assert read_answer(result_line(None)) is None
    with pytest.raises(UsageError, match="no worker"):
        read_answer(refusal_line("no worker", True))
    with pytest.raises(GuardError, match="the disk is full"):
        read_answer(refusal_line("the disk is full", False))


def test_an_answer_that_is_too_long_is_a_refusal() -> None:
    line = result_line("x" * ANSWER_BYTES_MAX)
    with pytest.raises(UsageError, match="ask for less"):
        read_answer(line)


@pytest.mark.parametrize(
    "answer", [{}, {"ok": True}, {"ok": False}, {"ok": 1, "result": 1}, {"ok": False, "error": 3}]
)
def test_no_answer(answer: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="not a guard's answer"):
        read_answer(json.dumps(answer).encode())


def test_lines_come_in_any_pieces() -> None:
    lines = Lines(100)
    found = []
    for byte in b"one\n\ntwo\nhalf":
        lines.add(bytes([byte]))
        while (line := lines.next()) is not None:
            found.append(line)
    assert found == [b"one", b"", b"two"]
    assert lines.in_the_middle
    lines.add(b"\nthree\n")
    assert [lines.next(), lines.next(), lines.next()] == [b"half", b"three", None]
    assert not lines.in_the_middle


@pytest.mark.parametrize("content", [b"x" * 10, b"x" * 10 + b"\n", b"x" * 11])
def test_a_line_without_end_is_refused(content: bytes) -> None:
    lines = Lines(10)
    lines.add(content)
    with pytest.raises(ProtocolError, match="a line of more than 10 bytes"):
        lines.next()
