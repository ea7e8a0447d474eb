"""One trainer process with its listener, as a ``Story`` moves them about."""

from __future__ import annotations

from typing import Any

from procguard.messages import (
    Claim,
    Heartbeat,
    Hello,
    Incarnation,
    Message,
    Participant,
    Phase,
    Process,
    QuorumClaim,
    QuorumFormed,
    QuorumRequest,
    Rank,
    Rejoin,
    Welcome,
    listener_topic,
)

JOB = "train"


class Person:
    """One trainer process with its listener, as the lighthouse sees them."""

    def __init__(self, name: str, number: int) -> None:
        job_id, _, replica = name.rpartition(":")
        self.job_id = job_id or JOB
        self.replica_id, _, rank = replica.partition("/")
        self.group_rank = int(rank or 0)
        self.group_world_size = 1
        self.group_run = ""
        self.group_address = ""
        self.token = f"token {number:010d}".encode()
        self.process = Process("host", "boot", 100 + number, 5_000 + number)
        self.trainer = f"trainer {number}".encode()
        self.listener = f"listener {number}".encode()
        self.topic = listener_topic(f"{number}".encode())
        self.min_replicas = 0
        self.progress_timeout_s = 0.0
        self.epoch = 0
        self.incarnation: Incarnation | None = None
        self.claimed: QuorumClaim | None = None
        self.beating = False
        self.over = False
        """Has been told that its incarnation is over."""
        self.threaded = False
        self.stopped = False
        self.phase = Phase.STARTING
        self.progress = 0
        self.step = 0
        self.round = 0
        self.asks: QuorumRequest | None = None
        self.inbox: list[Any] = []

    def hello(self, *, claim: bool = False, topic: bool = False) -> Hello:
        return Hello(
            self.job_id,
            self.replica_id,
            self.token,
            self.process,
            self.group_rank,
            self.group_world_size,
            self.group_run,
            Claim(self.incarnation, self.claimed) if claim and self.incarnation else None,
            self.topic if topic else b"",
            self.group_address if topic else "",
            self.epoch,
            self.min_replicas,
            self.progress_timeout_s,
        )

    def heartbeat(self) -> Heartbeat:
        assert self.incarnation is not None
        return Heartbeat(
            self.token, self.incarnation, self.threaded, self.stopped, self.phase, self.progress, self.step
        )

    def hear(self, message: Message) -> None:
        """Take note of an answer, as a client does."""
        self.inbox.append(message)
        if isinstance(message, Welcome):
            self.incarnation = message.incarnation
            self.over = False
            self.epoch = max(self.epoch, message.epoch)
        elif isinstance(message, QuorumFormed):
            members = [(p.replica_id, p.incarnation) for p in message.quorum.participants]
            self.claimed = QuorumClaim(message.quorum.quorum_id, tuple(members))
            self.asks = None
        elif isinstance(message, Rejoin) and message.incarnation == self.incarnation:
            self.beating = False
            self.over = True
            self.asks = None


def participant(person: Person, **asks: Any) -> Participant:
    assert person.incarnation is not None
    plain = Participant(
        replica_id=person.replica_id,
        incarnation=person.incarnation,
        round=person.round,
        step=person.step,
        committed_in=0,
        world_size=person.group_world_size,
        address=f"http://{person.replica_id}",
        shrink_only=False,
        commit_failures=0,
        data=b"",
        ranks=tuple(
            [
                Rank(f"handle of {person.replica_id}", f"password of {person.replica_id}")
                for _ in range(person.group_world_size)
            ]
        ),
    )
    return plain._replace(**asks)
