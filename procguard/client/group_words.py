"""The words said between the ranks of a replica group and their server, in the wire's own codec.

A round is one step's quorum; all ranks of a group go through the same rounds together: each asks once, each
votes once. So a round's number, with the incarnation, says all that a server which has just taken over needs
to know of what went before.
"""

from __future__ import annotations

from typing import NamedTuple

from procguard.codec import Codec
from procguard.messages import (
    Incarnation,
    Participant,
    Quorum,
    QuorumWaiting,
)

GROUP_VERSION = 1


class Verdict(NamedTuple):
    """Server: whether the step of this round counts, for every rank alike."""

    incarnation: Incarnation
    round: int
    commits: bool


class RankAsks(NamedTuple):
    """Rank: I take part in the quorum of ``participant.round``; its ``ranks`` holds this one alone."""

    group_rank: int
    ttl_s: float
    epoch: int
    """The highest epoch of a lighthouse that this rank has seen."""
    participant: Participant
    last: Verdict | None
    """The last one heard, for a server that was not there when it was given."""


class Vote(NamedTuple):
    """Rank: the step of this round is complete here, or is not."""

    group_rank: int
    incarnation: Incarnation
    round: int
    commits: bool


class GroupFormed(NamedTuple):
    """Server: the quorum of this round, as the lighthouse of this epoch gave it."""

    epoch: int
    round: int
    quorum: Quorum


class GroupWaiting(NamedTuple):
    """Server: no quorum yet. ``ranks`` have not asked; once all have, ``waiting`` is what it waits for."""

    round: int
    ranks: tuple[int, ...]
    waiting: QuorumWaiting | None


FromRank = RankAsks | Vote
FromServer = GroupFormed | GroupWaiting | Verdict
GroupMessage = FromRank | FromServer

GROUP: Codec[GroupMessage] = Codec(
    GROUP_VERSION,
    {
        1: RankAsks,
        2: Vote,
        32: GroupFormed,
        33: GroupWaiting,
        34: Verdict,
    },
)
