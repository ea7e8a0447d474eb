"""The wire between guard and workers: the lighthouse's words under their numbers, and two of its own."""

from __future__ import annotations

import pytest

from procguard import codec
from procguard.errors import ProtocolError
from procguard.guard_messages import GUARD, GUARD_KINDS, Answer, Command
from procguard.messages import KIND_OF, KINDS, Heartbeat, Incarnation, Phase, SnapshotRequest


def test_what_both_speak_is_one_language() -> None:
    beat = Heartbeat(b"t" * 16, Incarnation(7, 1), False, False, Phase.COMPUTE, 3, 0)
    assert GUARD.encode(beat) == codec.encode(beat)
    for number, kind in GUARD_KINDS.items():
        assert KIND_OF.get(kind, number) == number  # type: ignore[call-overload]


def test_commands_have_numbers_of_their_own() -> None:
    own = {number for number, kind in GUARD_KINDS.items() if kind in (Command, Answer)}
    assert len(own) == 2
    assert not own & set(KINDS)


@pytest.mark.parametrize("message", [Command(1 << 62, "save", b"{}"), Answer(b"t" * 16, 0, True, b"", "")])
def test_there_and_back(message: Command | Answer) -> None:
    assert GUARD.decode(GUARD.encode(message)) == message
    with pytest.raises(ProtocolError, match="unknown message kind"):
        codec.decode(GUARD.encode(message))


@pytest.mark.parametrize(
    "message",
    [
        Command(-1, "save", b"{}"),
        Command(1, "", b"{}"),
        Command(1, "save", bytes((1 << 16) + 1)),
        Answer(b"short", 0, True, b"", ""),
        Answer(b"t" * 16, 0, 1, b"", ""),  # type: ignore[arg-type]
        Answer(b"t" * 16, 0, False, b"", "x" * 4097),
    ],
)
def test_each_field_is_checked(message: Command | Answer) -> None:
    with pytest.raises(ProtocolError):
        GUARD.decode(GUARD.encode(message))


def test_what_is_the_lighthouses_alone_is_not_understood() -> None:
    with pytest.raises(ProtocolError, match="unknown message kind"):
        GUARD.decode(codec.encode(SnapshotRequest("")))
