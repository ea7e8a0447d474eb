"""What a guard and its workers say to each other: the lighthouse's words for beating, and two of their own.

A worker says ``Hello`` and beats as a trainer does to a lighthouse, with the same messages under the same
numbers, and the guard answers as one. Commands are the guard's alone; their numbers are used for nothing else
on any wire of ours, so that a frame that goes to the wrong port is refused rather than misread.
"""

from __future__ import annotations

from typing import NamedTuple

from procguard.codec import Codec
from procguard.messages import (
    KIND_OF,
    PROTOCOL_VERSION,
    Heartbeat,
    Hello,
    HelloWanted,
    Name,
    Opaque,
    Rejected,
    Text,
    Token,
    Welcome,
)

JOB = "guard"
"""The job_id in a worker's Hello; ``replica_id`` there is the worker_id."""


class Command(NamedTuple):
    """Guard to worker: do this, and say what came of it."""

    number: int
    """Of this command, among all that this guard gives."""
    name: Name
    arguments: Opaque
    """A JSON object."""


class Answer(NamedTuple):
    """Worker to guard: what came of a command."""

    token: Token
    number: int
    ok: bool
    result: Opaque
    """JSON; empty unless ``ok``."""
    error: Text


FromWorker = Hello | Heartbeat | Answer
FromGuard = Welcome | Rejected | HelloWanted | Command
GuardMessage = FromWorker | FromGuard

GUARD_KINDS: dict[int, type[GuardMessage]] = {
    KIND_OF[Hello]: Hello,
    KIND_OF[Heartbeat]: Heartbeat,
    64: Answer,
    KIND_OF[Welcome]: Welcome,
    KIND_OF[Rejected]: Rejected,
    KIND_OF[HelloWanted]: HelloWanted,
    65: Command,
}
GUARD: Codec[GuardMessage] = Codec(PROTOCOL_VERSION, GUARD_KINDS)
