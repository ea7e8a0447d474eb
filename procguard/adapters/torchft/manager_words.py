"""The words said between a ``ManagerClient`` and a ``ManagerServer``, in the wire's own codec.

There are few: a rank takes part in quorums and votes as a member of its own right, by the ways of every
replica group. The server says which group this is, and what torchft asks a foreign manager for.

Each question is asked on a connection of its own, so an answer is the answer to it.
"""

from __future__ import annotations

from typing import NamedTuple

from procguard.codec import Codec
from procguard.messages import Name, Text

MANAGER_VERSION = 1


class Describe(NamedTuple):
    """Client: which group is this?"""

    version: int
    """Of the classes' own making; 1 so far."""


class WhereIs(NamedTuple):
    """Client: where can this rank's checkpoint be fetched?"""

    group_rank: int


class Described(NamedTuple):
    """Server: all that a rank of the group needs to become a member."""

    lighthouse: Text
    replica_id: Name
    run: Text
    """Names one life of the server, alike for all ranks and unlike the one before."""
    world_size: int
    address: Text
    store_address: Text


class ItIsAt(NamedTuple):
    """Server: here, by the last quorum; None: it was in none so far."""

    metadata: Text | None


FromClient = Describe | WhereIs
FromServer = Described | ItIsAt
ManagerMessage = FromClient | FromServer

MANAGER: Codec[ManagerMessage] = Codec(
    MANAGER_VERSION,
    {
        1: Describe,
        2: WhereIs,
        32: Described,
        33: ItIsAt,
    },
)
