"""A worker's part of its conversation with the guard: beat, and take commands. Pure.

It says Hello until it is welcomed, then beats; a guard that does not know it any more (it was started again,
or has just registered this worker anew) asks for another Hello. Every Hello counts as a beat, so nothing is
lost by that. Nothing here waits for an answer.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from procguard.guard_messages import Command, FromWorker, GuardMessage
from procguard.messages import Heartbeat, Hello, HelloWanted, Phase, Rejected, Welcome

HELLO_INTERVAL_S = 0.5
"""Between two, until there is an answer."""


class Refused(NamedTuple):
    """The guard does not want to hear from this worker; told once for each reason."""

    text: str


class Pulse:
    """One process's beats.

    Args:
        hello: who this is.
        threaded: a thread beats, and not the program at its own points.
    """

    def __init__(self, hello: Hello, *, threaded: bool) -> None:
        self.welcome: Welcome | None = None
        """The guard's, while it knows us."""
        self._hello = hello
        self._threaded = threaded
        self._count = 0
        self._due_at = -inf
        self._refusal = ""

    @property
    def due_at(self) -> float:
        """When the next beat is due, in monotonic seconds."""
        return self._due_at

    def beat(self, now: float) -> FromWorker | None:
        """What is to be said now, if anything."""
        if now < self._due_at:
            return None
        self._count += 1
        if self.welcome is None:
            self._due_at = now + HELLO_INTERVAL_S
            return self._hello
        self._due_at = now + self.welcome.settings.heartbeat_interval_s
        return Heartbeat(
            token=self._hello.token,
            incarnation=self.welcome.incarnation,
            threaded=self._threaded,
            stopped=False,
            phase=Phase.COMPUTE,
            progress=self._count,
            step=0,
        )

    def receive(self, message: GuardMessage, now: float) -> Command | Refused | None:
        """Take in what the guard says; a command is the caller's to carry out."""
        if isinstance(message, Command):
            return message
        if isinstance(message, Welcome):
            if self.welcome is None:
                self._due_at = now + message.settings.heartbeat_interval_s
            self.welcome = message
            self._refusal = ""
        elif isinstance(message, HelloWanted):
            self.welcome = None
            self._due_at = now
        elif isinstance(message, Rejected) and message.text != self._refusal:
            self._refusal = message.text
            return Refused(message.text)
        return None
