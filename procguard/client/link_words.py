"""The words said on the link between a trainer and its listener.

Both are on one machine and of one version, yet the words pass the same codec as the wire: a listener must
not be confused by a half-written message of a trainer that died in the middle of it.
"""

from __future__ import annotations

from typing import NamedTuple

from procguard.codec import Codec
from procguard.messages import (
    Cause,
    Hello,
    Incarnation,
    Notice,
    QuorumClaim,
    QuorumId,
    Settings,
    Text,
)

LINK_VERSION = 1


class Enrol(NamedTuple):
    """Trainer: beat for this incarnation (``hello.claim``) and hear what comes after ``seq``."""

    hello: Hello
    notice_port: int
    seq: int
    settings: Settings
    serve_at: Text
    """The address at which to serve the ranks of our replica group; empty: there is nothing to serve."""


class InQuorum(NamedTuple):
    """Trainer: this is the last quorum I was in, should a restarted lighthouse ask."""

    epoch: int
    quorum: QuorumClaim


class LastWords(NamedTuple):
    """Trainer: an uncaught exception is about to end me."""

    text: Text


class Farewell(NamedTuple):
    """Trainer: I have left, or another watches me now; go."""


class Ready(NamedTuple):
    """Listener: subscribed, beating, and nothing is missed from here on."""


class Heard(NamedTuple):
    """Listener: these members are over, says the lighthouse of this epoch."""

    epoch: int
    notices: tuple[Notice, ...]


class Over(NamedTuple):
    """Listener: your own incarnation is over, says the lighthouse of this epoch."""

    epoch: int
    incarnation: Incarnation
    cause: Cause


class LeftOut(NamedTuple):
    """Listener: the others do not wait for you any longer; this is the quorum that they go on to."""

    quorum_id: QuorumId


class Said(NamedTuple):
    """Listener: a line for the trainer's log; it has no output of its own."""

    level: int
    text: Text


FromTrainer = Enrol | InQuorum | LastWords | Farewell
FromListener = Ready | Heard | Over | LeftOut | Said
LinkMessage = FromTrainer | FromListener

LINK: Codec[LinkMessage] = Codec(
    LINK_VERSION,
    {
        1: Enrol,
        2: InQuorum,
        3: LastWords,
        4: Farewell,
        32: Ready,
        33: Heard,
        34: Over,
        35: LeftOut,
        36: Said,
    },
)
