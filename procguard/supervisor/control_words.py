"""What a guard and those who ask it say to each other: a JSON object a line, and a line for each answer.

A request is ``{"verb": ..., "args": {...}}``. An answer is ``{"ok": true, "result": ...}`` or ``{"ok":
false, "error": text, "usage": bool}``, where ``usage`` says that the question must change and not the
guard. A connection may ask again and again, one thing at a time: who wants to follow something asks
again. So nobody is owed more than one answer, and somebody who does not read costs no more than that.

Lines and not frames, so that ``socat - UNIX-CONNECT:...`` is a client too. Every length has a bound. Pure:
what is sent, and when, is ``control``'s and ``control_client``'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from procguard.errors import GuardError, ProtocolError, UsageError

REQUEST_BYTES_MAX = 256 << 10
"""Names of a few thousand workers."""
ANSWER_BYTES_MAX = 16 << 20
"""Snapshots of some twenty thousand workers."""


class Request(NamedTuple):
    """What is asked for; nothing is known yet of whether it can be done."""

    verb: str
    args: dict[str, Any]


def request_line(verb: str, args: Mapping[str, object]) -> bytes:
    """A request as it is sent. ``UsageError``: it is longer than a guard takes."""
    line = _line({"verb": verb, "args": args})
    if len(line) > REQUEST_BYTES_MAX:
        raise UsageError(
            f"{verb}: {len(line)} bytes are more than a guard takes; name fewer workers, or --all"
        )
    return line


def read_request(line: bytes) -> Request:
    """The request in a line from anybody. ``UsageError``: there is none."""
    try:
        request = _object_in(line)
    except ProtocolError as error:
        raise UsageError(f'{error}; a request is {{"verb": "status", "args": {{}}}} on one line') from None
    verb, args = request.get("verb"), request.get("args", {})
    if not isinstance(verb, str):
        raise UsageError('a request needs "verb", a text, such as {"verb": "status"}')
    if not isinstance(args, dict):
        raise UsageError(f'{verb[:40]}: "args" must be an object, such as {{"ids": ["w1"]}}')
    if unknown := sorted(request.keys() - {"verb", "args"}):
        raise UsageError(
            f'{verb[:40]}: unknown key {unknown[0][:40]!r}; a request has "verb" and "args" only'
        )
    return Request(verb, args)


def result_line(result: object) -> bytes:
    """The answer to what could be done; one that would be too long is a refusal that says so."""
    line = _line({"ok": True, "result": result})
    if len(line) > ANSWER_BYTES_MAX:
        return refusal_line(
            f"the answer has {len(line)} bytes, more than {ANSWER_BYTES_MAX}; ask for less", True
        )
    return line


def refusal_line(error: str, usage: bool) -> bytes:
    """The answer to what could not."""
    return _line({"ok": False, "error": error, "usage": usage})


def read_answer(line: bytes) -> Any:
    """The result in a guard's answer.

    Raises:
        UsageError: it said that the question cannot be answered.
        GuardError: it said that it could not do it.
        ProtocolError: this is no answer.
    """
    answer = _object_in(line)
    if answer.get("ok") is True and "result" in answer:
        return answer["result"]
    error = answer.get("error")
    if answer.get("ok") is not False or not isinstance(error, str):
        raise ProtocolError(f"not a guard's answer: {line[:80]!r}")
    raise UsageError(error) if answer.get("usage") is True else GuardError(error)


def _line(content: Mapping[str, object]) -> bytes:
    """ASCII throughout, so that a name with half a surrogate in it can be said, too."""
    return json.dumps(content, separators=(",", ":"), default=str).encode() + b"\n"


def _object_in(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):  # bad UTF-8, bad JSON, a number of thousands of digits; too deep
        raise ProtocolError(f"not a JSON object: {line[:80]!r}") from None
    if not isinstance(content, dict):
        raise ProtocolError(f"not a JSON object: {line[:80]!r}")
    return content


class Lines:
    """Takes bytes in whatever pieces they come and gives whole lines, of a bounded length."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._held = bytearray()
        self._searched = 0

    def add(self, piece: bytes) -> None:
        self._held += piece

    def next(self) -> bytes | None:
        """The next whole line without its end, or None. ``ProtocolError``: it is longer than allowed."""
        end = self._held.find(b"\n", self._searched)
        self._searched = len(self._held) if end < 0 else 0
        if (len(self._held) if end < 0 else end) >= self._bytes_max:
            raise ProtocolError(f"a line of more than {self._bytes_max} bytes")
        if end < 0:
            return None
        line = bytes(self._held[:end])
        del self._held[: end + 1]
        return line

    @property
    def in_the_middle(self) -> bool:
        """Whether a line has begun and not ended."""
        return bool(self._held)
