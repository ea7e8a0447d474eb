"""A member as the lighthouse knows it, and the table of what can become of it.

The table is the whole truth: what is not in it is a bug of ours and asserts; what a peer can cause is in it.
Which event a message amounts to (whose token, which incarnation) is judged in ``core``.

A member is a replica group and lives as one: it is suspect while any of its ranks is, and the end of one rank
is the end of all. What belongs to a process rather than to the group is its slot's.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto

from procguard.messages import (
    Cause,
    Hello,
    Incarnation,
    MemberState,
    Participant,
    Phase,
    Quorum,
)

TOPICS_REMEMBERED_MAX = 8


class Trigger(Enum):
    """What happened to a member."""

    HELLO = auto()
    BEAT = auto()
    CONNECTION_LOST = auto()
    GRACE_OVER = auto()
    LEASE_OVER = auto()
    OBITUARY = auto()
    STOPPED = auto()
    STALLED = auto()
    SUPERSEDED = auto()
    NOT_RETURNED = auto()
    OPERATOR = auto()
    LEAVE = auto()


_ALIVE, _SUSPECT, _FAILED, _LEFT = MemberState

TRANSITIONS: dict[tuple[MemberState, Trigger], MemberState] = {
    (_ALIVE, Trigger.HELLO): _ALIVE,
    (_SUSPECT, Trigger.HELLO): _ALIVE,
    (_ALIVE, Trigger.BEAT): _ALIVE,
    (_SUSPECT, Trigger.BEAT): _ALIVE,
    (_ALIVE, Trigger.CONNECTION_LOST): _SUSPECT,
    (_SUSPECT, Trigger.CONNECTION_LOST): _SUSPECT,
    (_SUSPECT, Trigger.GRACE_OVER): _FAILED,
    (_ALIVE, Trigger.LEASE_OVER): _FAILED,
    (_SUSPECT, Trigger.LEASE_OVER): _FAILED,
    (_ALIVE, Trigger.OBITUARY): _FAILED,
    (_SUSPECT, Trigger.OBITUARY): _FAILED,
    (_ALIVE, Trigger.STOPPED): _FAILED,
    (_SUSPECT, Trigger.STOPPED): _FAILED,
    (_ALIVE, Trigger.STALLED): _FAILED,
    (_SUSPECT, Trigger.STALLED): _FAILED,
    (_ALIVE, Trigger.SUPERSEDED): _FAILED,  # by the claim of a later life, never by a newcomer
    (_SUSPECT, Trigger.SUPERSEDED): _FAILED,
    (_SUSPECT, Trigger.NOT_RETURNED): _FAILED,
    (_ALIVE, Trigger.OPERATOR): _FAILED,
    (_SUSPECT, Trigger.OPERATOR): _FAILED,
    (_ALIVE, Trigger.LEAVE): _LEFT,
    (_SUSPECT, Trigger.LEAVE): _LEFT,
}


class Slot:
    """One rank of a member: a process with the two connections that speak for it. Compared by identity."""

    __slots__ = (
        "beat_at",
        "earlier_topics",
        "group_rank",
        "listener_peer",
        "member",
        "phase",
        "process",
        "progress",
        "progress_timeout_s",
        "step",
        "stopped",
        "suspect",
        "threaded",
        "token",
        "topic",
        "trainer_peer",
    )

    def __init__(self, member: Member, hello: Hello, now: float) -> None:
        self.member = member
        self.group_rank = hello.group_rank
        self.token = hello.token
        self.process = hello.process
        self.progress_timeout_s = hello.progress_timeout_s
        self.trainer_peer = b""
        self.listener_peer = b""
        self.topic = b""
        self.earlier_topics: deque[bytes] = deque(maxlen=TOPICS_REMEMBERED_MAX)
        """Of listeners that another has taken the place of."""
        self.suspect = False
        self.threaded = True
        self.stopped = False
        self.phase = Phase.STARTING
        self.progress = 0
        self.step = 0
        self.beat_at = now

    def introduce(self, hello: Hello, peer: bytes) -> None:
        """Take over who this is and where it can be reached."""
        self.process = hello.process
        self.progress_timeout_s = hello.progress_timeout_s
        if hello.topic:
            if self.topic and self.topic != hello.topic:
                self.earlier_topics.append(self.topic)
            self.listener_peer = peer
            self.topic = hello.topic
        else:
            self.trainer_peer = peer


class Member:
    """One incarnation of a replica group. Mutable, owned by the core; compared by identity."""

    __slots__ = (
        "answer",
        "answered_round",
        "asked",
        "asks_from",
        "cause",
        "group_address",
        "group_run",
        "group_world_size",
        "idle_since",
        "incarnation",
        "job_id",
        "longest_step_s",
        "replica_id",
        "request",
        "since",
        "slots",
        "state",
        "step",
    )

    def __init__(
        self,
        job_id: str,
        replica_id: str,
        incarnation: Incarnation,
        state: MemberState,
        now: float,
    ) -> None:
        self.job_id = job_id
        self.replica_id = replica_id
        self.incarnation = incarnation
        self.state = state
        self.since = now
        self.slots: dict[int, Slot] = {}
        """By group rank. Empty for one that a claimed quorum names and that has not come back itself."""
        self.group_run = ""
        self.group_world_size = 1
        self.group_address = ""
        """Where rank 0 serves its group; empty where it has not said so."""
        self.step = 0
        self.cause: Cause | None = None
        self.request: Participant | None = None
        self.asks_from = b""
        """The connection that asked for the quorum, and is answered."""
        self.asked = False
        self.idle_since = now
        """Since when it has not been waiting for a quorum, while it is not."""
        self.longest_step_s = 0.0
        """The longest it was idle before it asked again."""
        self.answered_round = 0
        self.answer: Quorum | None = None

    @property
    def live(self) -> bool:
        """Alive or suspect: not yet over."""
        return self.state <= _SUSPECT

    @property
    def complete(self) -> bool:
        """All its ranks are there."""
        return len(self.slots) == self.group_world_size

    def apply(self, trigger: Trigger, now: float) -> None:
        """Move along the table."""
        state = TRANSITIONS.get((self.state, trigger))
        assert state is not None, f"{self.replica_id}: no way from {self.state.name} on {trigger.name}"
        if state is not self.state:
            self.state = state
            self.since = now

    def overdue(self, now: float, join_timeout_s: float) -> bool:
        """Has not asked for so long that a majority need not wait for it."""
        bound = max(join_timeout_s, 10 * self.longest_step_s)
        return self.request is None and now - self.idle_since > bound
