"""What torchft's classes return, made of the wire's own ``Quorum``. Pure.

A ``Participant`` has no place for torchft's ``store_address``, nor for a dict: both travel in its ``data``,
as JSON, which is also what torchft makes of the dict (so a key that is no text becomes one). What another
kind of member put there is not ours to read: its store address is empty, and its ``data`` None.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from procguard.errors import UsageError
from procguard.messages import DATA_BYTES_MAX, Participant
from procguard.messages import Quorum as FormedQuorum


@dataclass
class Timestamp:
    """A point of time.

    Args:
        seconds (int): Seconds since 1970, UTC.
        nanos (int): Nanoseconds beyond those.
    """

    seconds: int
    nanos: int


@dataclass
class QuorumMember:
    """One replica group of a quorum.

    Args:
        replica_id (str): Its name.
        address (str): Where its manager is, as it said itself.
        store_address (str): Where its store is, as it said itself.
        step (int): The step it was at when it asked.
        world_size (int): How many ranks it has.
        shrink_only (bool): Whether it asked that no newcomer be let in.
        data (dict or None): What it gave for the others to read.
    """

    replica_id: str
    address: str
    store_address: str
    step: int
    world_size: int
    shrink_only: bool
    data: dict[Hashable, object] | None = None


@dataclass
class Quorum:
    """Who trains together.

    Args:
        quorum_id (int): Names this membership for ever; grows with each new one.
        participants (list[QuorumMember]): Sorted by replica_id.
        created (Timestamp): When it was heard of here.
    """

    quorum_id: int
    participants: list[QuorumMember]
    created: Timestamp


@dataclass
class QuorumResult:
    """One rank's part in a quorum.

    Args:
        quorum_id (int): Names this membership for ever; grows with each new one.
        replica_rank (int): This group's rank among all of the quorum.
        replica_world_size (int): How many groups there are.
        recover_src_manager_address (str): The manager to heal from; empty where there is nothing to heal.
        recover_src_replica_rank (int or None): The rank of that group.
        recover_dst_replica_ranks (list[int]): Groups that heal from this rank.
        store_address (str): The store of an up-to-date group.
        max_step (int): The step that all are at once those who heal have healed.
        max_replica_rank (int or None): This group's rank among those that are up to date; None if it is not.
        max_world_size (int): How many are up to date.
        heal (bool): This rank must fetch the state.
        commit_failures (int): The most that any member has had in a row.
        replica_ids (list[str]): All groups of the quorum.
        reconfigure_handles (list[str]): This rank's handle in each of them.
    """

    quorum_id: int = 0
    replica_rank: int = 0
    replica_world_size: int = 1
    recover_src_manager_address: str = ""
    recover_src_replica_rank: int | None = None
    recover_dst_replica_ranks: list[int] = field(default_factory=list)
    store_address: str = ""
    max_step: int = 0
    max_replica_rank: int | None = None
    max_world_size: int = 1
    heal: bool = False
    commit_failures: int = 0
    replica_ids: list[str] = field(default_factory=list)
    reconfigure_handles: list[str] = field(default_factory=list)


def packed(store_address: str, data: Mapping[Hashable, object] | None = None) -> bytes:
    """Both for the wire. Raises ``UsageError`` where JSON cannot hold it, or a request cannot."""
    try:
        text = json.dumps({"store_address": store_address, "data": data}).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"data cannot be sent: {error}; give what JSON can hold") from None
    if len(text) > DATA_BYTES_MAX:
        raise UsageError(f"data is {len(text)} bytes long as JSON; {DATA_BYTES_MAX} can be sent")
    return text


def _unpacked(participant: Participant) -> tuple[str, dict[Hashable, object] | None]:
    try:
        content: Any = json.loads(participant.data)
    except (ValueError, RecursionError):
        return "", None
    if not isinstance(content, dict):
        return "", None
    store, data = content.get("store_address"), content.get("data")
    return store if isinstance(store, str) else "", data if isinstance(data, dict) else None


def store_of(participant: Participant) -> str:
    """Where a member's store is."""
    return _unpacked(participant)[0]


def quorum_of(formed: FormedQuorum, received_ns: int) -> Quorum:
    """As torchft shows it; ``received_ns`` since 1970."""
    return Quorum(
        quorum_id=formed.quorum_id.packed,
        participants=[_member(participant) for participant in formed.participants],
        created=Timestamp(*divmod(received_ns, 1_000_000_000)),
    )


def _member(participant: Participant) -> QuorumMember:
    store_address, data = _unpacked(participant)
    return QuorumMember(
        replica_id=participant.replica_id,
        address=participant.address,
        store_address=store_address,
        step=participant.step,
        world_size=participant.world_size,
        shrink_only=participant.shrink_only,
        data=data,
    )
