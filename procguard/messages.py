"""The wire's nouns: every message of protocol version 1, and what messages are made of.

All of them are ``NamedTuple``: frozen, without a ``__dict__``, and already in the shape that msgpack packs
(an array of fields, nested ones included), so a heartbeat costs one tuple to build and one call to encode.
Two messages of different kinds can compare equal as tuples; dispatch is by type, never by value.

Rules that hold for every field, checked by ``codec``: a number is finite and not negative; an int fits
63 bits; a text or a byte string has the length its alias below allows; a tuple has one type of item.
No clock of another host is ever compared, so no message carries a time of day.
"""

from __future__ import annotations

import signal as signals
from enum import IntEnum
from typing import Annotated, NamedTuple

PROTOCOL_VERSION = 1
DEFAULT_PORT = 29510
FRAME_BYTES_MAX = 1 << 20
"""What a member may send. The lighthouse's own answers may be larger (a quorum of thousands)."""
ANSWER_BYTES_MAX = 1 << 26
DATA_BYTES_MAX = 1 << 16
QUORUM_NUMBER_BITS = 21
EPOCH_MAX = (1 << (63 - QUORUM_NUMBER_BITS)) - 1


class Size(NamedTuple):
    """Bounds of a length, in bytes for ``bytes`` and in characters for ``str``."""

    low: int
    high: int


Token = Annotated[bytes, Size(16, 16)]
Name = Annotated[str, Size(1, 255)]
Text = Annotated[str, Size(0, 4096)]
Topic = Annotated[bytes, Size(0, 64)]
Opaque = Annotated[bytes, Size(0, DATA_BYTES_MAX)]


class Incarnation(NamedTuple):
    """The number a member gets at each (re)join; a greater one is a later life."""

    epoch: int
    number: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.number}"


class QuorumId(NamedTuple):
    """Names one membership for ever: no lighthouse, restarted or not, gives it twice."""

    epoch: int
    number: int

    @property
    def packed(self) -> int:
        """Both halves in one int64, where a library wants one int; keeps the order."""
        return self.epoch << QUORUM_NUMBER_BITS | self.number

    @classmethod
    def of_packed(cls, packed: int) -> QuorumId:
        """The id that ``packed`` is of, to be shown to people the way the lighthouse shows it."""
        return cls(packed >> QUORUM_NUMBER_BITS, packed & ((1 << QUORUM_NUMBER_BITS) - 1))

    def __str__(self) -> str:
        return f"{self.epoch}.{self.number}"


class Process(NamedTuple):
    """Which process, on which boot of which machine: a pid alone is reused."""

    host: Text
    boot_id: Text
    pid: int
    start_time: int
    """Clock ticks after boot (/proc/PID/stat, field 22); 0 where unknown."""


class CauseKind(IntEnum):
    """Why a member is no longer one."""

    LEFT = 0
    PROCESS_EXIT = 1
    PROCESS_REPLACED = 2
    HEARTBEAT_TIMEOUT = 3
    CONNECTION_LOST = 4
    STOPPED = 5
    STALLED = 6
    SUPERSEDED = 7
    LOST_IN_RESTART = 8
    OPERATOR = 9


_IN_WORDS = {
    CauseKind.LEFT: "left",
    CauseKind.PROCESS_EXIT: "process exited",
    CauseKind.PROCESS_REPLACED: "process replaced itself (exec)",
    CauseKind.HEARTBEAT_TIMEOUT: "heartbeat timed out",
    CauseKind.CONNECTION_LOST: "connection lost",
    CauseKind.STOPPED: "process stopped (SIGSTOP)",
    CauseKind.STALLED: "no progress",
    CauseKind.SUPERSEDED: "superseded by a new process",
    CauseKind.LOST_IN_RESTART: "did not come back after the lighthouse restarted",
    CauseKind.OPERATOR: "ended by an operator",
}


class Cause(NamedTuple):
    """A cause with what is known of it; ``text`` is the trainer's last word, such as its exception."""

    kind: CauseKind
    exit_code: int | None = None
    signal: int | None = None
    core_dumped: bool = False
    text: Text = ""

    def __str__(self) -> str:
        words = _IN_WORDS[self.kind]
        if self.signal is not None:
            words = f"killed by {_signal_name(self.signal)}"
        elif self.exit_code is not None:
            words = f"exited with code {self.exit_code}"
        if self.core_dumped:
            words += ", core dumped"
        return f"{words} ({self.text})" if self.text else words


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Phase(IntEnum):
    """What a trainer is doing; only time spent in COMPUTE counts against its ``progress_timeout``."""

    STARTING = 0
    COMPUTE = 1
    QUORUM = 2
    COLLECTIVE = 3
    HEAL = 4
    PAUSED = 5


class QuorumClaim(NamedTuple):
    """The last quorum a member was in, told to a lighthouse that may have forgotten it."""

    quorum_id: QuorumId
    members: tuple[tuple[Name, Incarnation], ...]


class Claim(NamedTuple):
    """ "I am this incarnation already": asks to go on, never to be reborn."""

    incarnation: Incarnation
    quorum: QuorumClaim | None


class Hello(NamedTuple):
    """A process presents itself. Without a claim it joins; with one it goes on where it was.

    Sent by the trainer's own connection (``topic`` empty) and by its listener, whose ``topic`` is the
    one that only it subscribes: its loss is the loss of the listener's connection.
    """

    job_id: Name
    replica_id: Name
    token: Token
    process: Process
    group_rank: int = 0
    group_world_size: int = 1
    group_run: Text = ""
    claim: Claim | None = None
    topic: Topic = b""
    group_address: Text = ""
    """Where this process serves its replica group (rank 0's session); empty where it does not."""
    epoch: int = 0
    """The highest epoch seen so far; a lighthouse below it raises its own."""
    min_replicas: int = 0
    progress_timeout_s: float = 0.0
    """0: off."""


class Heartbeat(NamedTuple):
    token: Token
    incarnation: Incarnation
    threaded: bool
    """True when a thread of the trainer beats, which the GIL can hold up: the longer lease applies."""
    stopped: bool
    """The kernel says the trainer is in state T (SIGSTOP); a debugger's ``t`` does not count."""
    phase: Phase
    progress: int
    step: int


class Rank(NamedTuple):
    """What a quorum tells of one rank of a replica group."""

    handle: Text
    checkpoint_metadata: Text


class Participant(NamedTuple):
    """A member as it asks for a quorum, and as the quorum shows it to the others."""

    replica_id: Name
    incarnation: Incarnation
    round: int
    """Counts one member's quorum requests; the same round asked again gets the same answer."""
    step: int
    committed_in: int
    """Packed id of the quorum in which ``step`` was committed; 0 before the first commit."""
    world_size: int
    address: Text
    shrink_only: bool
    commit_failures: int
    data: Opaque
    ranks: tuple[Rank, ...]


class QuorumRequest(NamedTuple):
    token: Token
    ttl_s: float
    participant: Participant


class Leave(NamedTuple):
    token: Token
    incarnation: Incarnation
    step: int


class Obituary(NamedTuple):
    """A statement, from the kernel, that a process has ended. Names it by token or by process."""

    job_id: Name
    token: Annotated[bytes, Size(0, 16)]
    process: Process
    cause: Cause


class Resync(NamedTuple):
    """A listener missed notices: give all after this one."""

    token: Token
    epoch: int
    seq: int


class Lookup(NamedTuple):
    """A rank of a replica group asks where its rank 0 serves."""

    token: Token


class AnswerWanted(NamedTuple):
    """A group's server that has just taken over asks whether this round was answered to the one before."""

    token: Token
    incarnation: Incarnation
    round: int


class Kill(NamedTuple):
    """An operator ends an incarnation, and no later one if it is said again. From others it is refused."""

    job_id: Name
    replica_id: Name
    incarnation: Incarnation


class SnapshotRequest(NamedTuple):
    job_id: Annotated[str, Size(0, 255)]
    """Empty: every job."""


class Settings(NamedTuple):
    """Cluster-wide, given by the lighthouse, so that it and its members cannot disagree. Seconds."""

    heartbeat_interval_s: float
    heartbeat_timeout_s: float
    thread_heartbeat_timeout_s: float
    disconnect_grace_s: float
    join_timeout_s: float


class Welcome(NamedTuple):
    epoch: int
    incarnation: Incarnation
    notice_port: int
    seq: int
    settings: Settings


class Rejection(IntEnum):
    ID_IN_USE = 0
    MIN_REPLICAS_CONFLICT = 1
    BURIED = 2
    UNSUPPORTED = 3
    FULL = 4


class Rejected(NamedTuple):
    """Hello refused. ``host`` and ``pid`` are of the process that holds the id."""

    reason: Rejection
    text: Text
    host: Text
    pid: int


class Rejoin(NamedTuple):
    """Your incarnation is over: abort, fall silent, say Hello at the next start_quorum."""

    token: Token
    incarnation: Incarnation
    cause: Cause


class HelloWanted(NamedTuple):
    """I do not know this token (a lighthouse restarted): say Hello with your claim."""

    epoch: int


class Quorum(NamedTuple):
    quorum_id: QuorumId
    job_id: Name
    participants: tuple[Participant, ...]
    """Sorted by replica_id; the index is the replica rank."""


class QuorumFormed(NamedTuple):
    epoch: int
    quorum: Quorum


class Reason(IntEnum):
    """Why there is no quorum yet."""

    NOBODY_ASKED = 0
    TOO_FEW_REPLICAS = 1
    NO_MAJORITY = 2
    PREVIOUS_MEMBERS_MISSING = 3
    MEMBERS_MISSING = 4
    SETTLING = 5


class QuorumWaiting(NamedTuple):
    """Not yet: ``have`` of ``need`` are there; ``missing`` names some of those waited for."""

    reason: Reason
    have: int
    need: int
    missing: tuple[Name, ...]


class Excluded(NamedTuple):
    """Your quorum is over, though you live: a later one forms, or has formed, and you are not asking."""

    token: Token
    quorum_id: QuorumId


class LookedUp(NamedTuple):
    """Where rank 0 of that incarnation serves its group; an empty address: it has not said so yet."""

    incarnation: Incarnation
    group_address: Text


class Ack(NamedTuple):
    """Got it: the ``kind`` number of a Leave or an Obituary."""

    kind: int
    token: Annotated[bytes, Size(0, 16)]


class KillResult(IntEnum):
    DONE = 0
    """Or over already, by whatever cause."""
    NOT_ALLOWED = 1
    UNKNOWN = 2


class Killed(NamedTuple):
    """What came of a Kill; told once all listeners have been."""

    replica_id: Name
    incarnation: Incarnation
    result: KillResult


class Notice(NamedTuple):
    """One incarnation of a member is over."""

    replica_id: Name
    incarnation: Incarnation
    cause: Cause
    step: int
    """The last step known of it; of one that left, the step it had reached."""

    @property
    def left(self) -> bool:
        return self.cause.kind is CauseKind.LEFT


class NoticeBatch(NamedTuple):
    """All notices of one lighthouse step; ``seq`` counts a job's batches within the epoch."""

    epoch: int
    seq: int
    notices: tuple[Notice, ...]


class Beacon(NamedTuple):
    """Twice a second to each job: a listener whose ``seq`` differs has missed something."""

    epoch: int
    seq: int


class MemberState(IntEnum):
    ALIVE = 0
    SUSPECT = 1
    FAILED = 2
    LEFT = 3


class RankView(NamedTuple):
    """One process of a member."""

    group_rank: int
    suspect: bool
    beat_age_s: float
    step: int
    phase: Phase
    process: Process


class MemberView(NamedTuple):
    replica_id: Name
    state: MemberState
    in_state_s: float
    step: int
    incarnation: Incarnation
    group_world_size: int
    ranks: tuple[RankView, ...]
    """By group rank; those that have said Hello."""
    waiting: bool
    cause: Cause | None


class QuorumView(NamedTuple):
    quorum_id: QuorumId
    age_s: float
    replica_ids: tuple[Name, ...]


class NoticeView(NamedTuple):
    age_s: float
    notice: Notice


class JobView(NamedTuple):
    job_id: Name
    min_replicas: int
    seq: int
    members: tuple[MemberView, ...]
    quorum: QuorumView | None
    waiting: QuorumWaiting | None
    notices: tuple[NoticeView, ...]


class Counter(NamedTuple):
    name: Name
    value: int


class Snapshot(NamedTuple):
    """All a dashboard or a script wants; no token and no checkpoint address is in it."""

    epoch: int
    uptime_s: float
    settings: Settings
    jobs: tuple[JobView, ...]
    counters: tuple[Counter, ...]


FromMember = (
    Hello
    | Heartbeat
    | QuorumRequest
    | Leave
    | Obituary
    | Resync
    | SnapshotRequest
    | Lookup
    | AnswerWanted
    | Kill
)
FromLighthouse = (
    Welcome
    | Rejected
    | Rejoin
    | HelloWanted
    | QuorumFormed
    | QuorumWaiting
    | Excluded
    | Ack
    | Snapshot
    | NoticeBatch
    | Beacon
    | LookedUp
    | Killed
)
Message = FromMember | FromLighthouse

KINDS: dict[int, type[Message]] = {
    1: Hello,
    2: Heartbeat,
    3: QuorumRequest,
    4: Leave,
    5: Obituary,
    6: Resync,
    7: SnapshotRequest,
    8: Lookup,
    9: AnswerWanted,
    10: Kill,
    32: Welcome,
    33: Rejected,
    34: Rejoin,
    35: HelloWanted,
    36: QuorumFormed,
    37: QuorumWaiting,
    38: Excluded,
    39: Ack,
    40: Snapshot,
    41: NoticeBatch,
    42: Beacon,
    43: LookedUp,
    44: Killed,
}  # fmt: skip
"""Numbers on the wire. One is never given a second meaning within a protocol version."""

KIND_OF: dict[type[Message], int] = {message: kind for kind, message in KINDS.items()}


def notice_topic(job_id: str) -> bytes:
    """What a job's notices begin with: a subscriber to ``train`` must not hear ``train2``."""
    return job_id.encode() + b"\0"


def listener_topic(nonce: bytes) -> bytes:
    """The topic that only one listener subscribes. No job id is empty, so it meets no notice."""
    return b"\0" + nonce
