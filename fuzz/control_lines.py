"""What a guard is asked and what it answers, nearly right: lines for ``codec`` to try both ends with.

A guard must do what a line asks, or refuse it as its asker's mistake; who asked must understand an answer
or refuse it. Nothing else may come of any line, to either.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from random import Random
from signal import Signals
from typing import Any

from procguard.errors import GuardError, ProtocolError, UsageError
from procguard.supervisor.control_verbs import VERBS, perform
from procguard.supervisor.control_words import (
    Lines,
    read_answer,
    read_request,
    refusal_line,
    request_line,
    result_line,
)

LINE_BYTES_MAX = 4096
ERROR_CHARACTERS_MAX = 5_000
EDITS_MAX = 3
KEYS = ("ids", "id", "force", "signal", "count", "after_seq", "all", "")
ODD: tuple[object, ...] = (
    *(None, True, False, 0, -1, 1 << 80, 0.5, float("nan"), float("inf"), "", "w0", "w\ud800", "\x00"),
    *("SIGKILL", "9", "-1", "²", [], ["w0"], ["w0", "w0"], ["w9"], [["w0"]], {}, {"w0": {}}, "x" * 300),
)


class Nobody:
    """A guard of two workers that does nothing."""

    def snapshot(self) -> Mapping[str, Any]:
        return {"guard": {}, "workers": [{"worker_id": "w0"}, {"worker_id": "w1"}], "recovery": None}

    def start(self, ids: Sequence[str]) -> Mapping[str, bool]:
        return dict.fromkeys(ids, True)

    def stop(self, ids: Sequence[str], force: bool) -> Mapping[str, bool]:
        return dict.fromkeys(ids, force)

    def restart(self, ids: Sequence[str]) -> Mapping[str, bool]:
        return dict.fromkeys(ids, True)

    def kill(self, ids: Sequence[str], signal: Signals) -> Mapping[str, bool]:
        return dict.fromkeys(ids, bool(signal.name))

    def log_paths(self, worker_id: str) -> Mapping[str, str]:
        return {"stdout": worker_id}

    def tasks(self) -> Mapping[str, Any]:
        return {"workers": {}, "queue": []}

    def events(self, after_seq: int | None, count_max: int) -> Sequence[Mapping[str, Any]]:
        return [{"seq": after_seq or 0, "count": count_max}]


def hostile(rng: Random) -> bytes:
    """A line whose values or bytes are not all right."""
    make = rng.choice((_request, _request, _answer))
    line = bytearray(make(rng))
    for _ in range(rng.choice((0, 0, 1, EDITS_MAX))):
        _edit(line, rng)
    return bytes(line)


def _request(rng: Random) -> bytes:
    args = {rng.choice(KEYS): rng.choice(ODD) for _ in range(rng.randrange(3))}
    verb = rng.choice(VERBS) if rng.random() < 0.9 else rng.choice(ODD)
    content: dict[str, object] = {"verb": verb, "args": args if rng.random() < 0.9 else rng.choice(ODD)}
    if rng.random() < 0.1:
        content[rng.choice(KEYS)] = rng.choice(ODD)
    return json.dumps(content).encode() + b"\n"


def _answer(rng: Random) -> bytes:
    makers: tuple[Callable[[], bytes], ...] = (
        lambda: result_line(rng.choice(ODD)),
        lambda: refusal_line(str(rng.choice(ODD)), rng.random() < 0.5),
        lambda: json.dumps({"ok": rng.choice(ODD), "result": 1, "error": rng.choice(ODD)}).encode() + b"\n",
    )
    return rng.choice(makers)()


def _edit(line: bytearray, rng: Random) -> None:
    at = rng.randrange(len(line) + 1)
    match rng.randrange(4):
        case 0:
            line[at : at + 1] = bytes([rng.randrange(256)])
        case 1:
            line[at:at] = rng.choice((b"\n", b'"', b"[" * 2000, b"{" * 20, b"9" * 4500, b"\\ud800", b"\xff"))
        case 2:
            del line[at:]
        case _:
            line[at:at] = line[: rng.randrange(len(line) + 1)]


def judge(payload: bytes) -> bool:
    """Whether something was done because of it; raises what neither end should."""
    lines = Lines(LINE_BYTES_MAX)
    lines.add(payload)
    done = False
    while True:
        try:
            line = lines.next()
        except ProtocolError:
            return done
        if line is None:
            return done
        done |= _is_done(line)
        with contextlib.suppress(UsageError, GuardError, ProtocolError):
            read_answer(line)


def _is_done(line: bytes) -> bool:
    try:
        request = read_request(line)
        result = perform(Nobody(), request)
    except UsageError as error:
        assert len(str(error)) <= ERROR_CHARACTERS_MAX, "an error text without end"
        return False
    assert read_request(request_line(*request)) == request, "it came back as another"
    assert read_answer(result_line(result)) == result, "the answer came back as another"
    return True
