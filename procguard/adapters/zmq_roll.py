"""Which processes speak for which workers: what a guard's adapter remembers of its connections. No I/O.

Several processes may beat for one worker (its own children); a beat of any counts. Commands go to the one
that said Hello last. Nobody is asked to prove who he is: whoever reaches the port is trusted, as on loopback
all are.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import count
from typing import NamedTuple

from procguard.guard_messages import JOB
from procguard.messages import (
    Heartbeat,
    Hello,
    HelloWanted,
    Incarnation,
    Rejected,
    Rejection,
    Settings,
    Welcome,
)

PROCESSES_PER_WORKER_MAX = 256
"""Those beyond have to say Hello again and again; no worker has so many that beat."""


class Speaker(NamedTuple):
    """A process that speaks for a worker, on its connection."""

    worker_id: str
    peer: bytes
    incarnation: Incarnation


class Roll:
    """The registered workers and who speaks for them.

    Args:
        epoch: of this guard's start; greater than that of any before.
        settings: what the workers are told.
    """

    def __init__(self, epoch: int, notice_port: int, settings: Settings) -> None:
        self._epoch = epoch
        self._notice_port = notice_port
        self._settings = settings
        self._numbers = count(1)
        self._workers: dict[str, OrderedDict[bytes, None]] = {}
        """The tokens of each worker's processes, the last to say Hello at the end."""
        self._speakers: dict[bytes, Speaker] = {}
        """By token."""

    def register(self, worker_id: str) -> None:
        self.unregister(worker_id)
        self._workers[worker_id] = OrderedDict()

    def unregister(self, worker_id: str) -> None:
        for token in self._workers.pop(worker_id, ()):
            self._speakers.pop(token, None)

    def is_registered(self, worker_id: str) -> bool:
        return worker_id in self._workers

    def connected(self) -> list[str]:
        return sorted(worker_id for worker_id, tokens in self._workers.items() if tokens)

    def peer_of(self, worker_id: str) -> bytes | None:
        """The connection for a command."""
        tokens = self._workers.get(worker_id)
        return self._speakers[next(reversed(tokens))].peer if tokens else None

    def hello(self, peer: bytes, hello: Hello) -> Welcome | Rejected:
        """What is answered; a Welcome means that this counts as a beat."""
        if hello.job_id != JOB:
            text = "this is a guard and no lighthouse; PROCGUARD_LIGHTHOUSE names another port"
            return Rejected(Rejection.UNSUPPORTED, text, "", 0)
        tokens = self._workers.get(hello.replica_id)
        if tokens is None:
            text = f"this guard has no worker {hello.replica_id!r}; see workers in its configuration"
            return Rejected(Rejection.UNSUPPORTED, text, "", 0)
        known = self._speakers.get(hello.token)
        incarnation = known.incarnation if known else Incarnation(self._epoch, next(self._numbers))
        if known is not None and known.worker_id != hello.replica_id:
            self._workers[known.worker_id].pop(hello.token, None)
        self._speakers[hello.token] = Speaker(hello.replica_id, peer, incarnation)
        tokens[hello.token] = None
        tokens.move_to_end(hello.token)
        if len(tokens) > PROCESSES_PER_WORKER_MAX:
            oldest, _ = tokens.popitem(last=False)
            del self._speakers[oldest]
        return Welcome(self._epoch, incarnation, self._notice_port, 0, self._settings)

    def heartbeat(self, peer: bytes, beat: Heartbeat) -> str | HelloWanted:
        """The worker that beats, or what is answered to one that is not known."""
        speaker = self._speakers.get(beat.token)
        if speaker is None:
            return HelloWanted(self._epoch)
        if speaker.peer != peer:  # its connection was made anew
            self._speakers[beat.token] = speaker._replace(peer=peer)
        return speaker.worker_id
