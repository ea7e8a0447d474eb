"""What happens to the lighthouse's core, and what the core wants done about it.

Events come in by ``step(event, now)``, effects go out as its return value. Both are plain values, so a test,
the service and the simulator drive the same core.
"""

from __future__ import annotations

from typing import NamedTuple

from procguard.messages import Beacon, Message, NoticeBatch


class Received(NamedTuple):
    """A valid message. ``peer`` is the connection's address, chosen by the transport."""

    peer: bytes
    message: Message
    operator: str = ""
    """The operator who said it, proved by a key; empty for everybody else."""


class TopicHeld(NamedTuple):
    """Somebody now subscribes to this topic."""

    topic: bytes


class TopicLost(NamedTuple):
    """Nobody subscribes to this topic any longer."""

    topic: bytes


class TimePassed(NamedTuple):
    """The inbox is drained: deadlines may be judged, notices published, quorums decided."""


class LoopStalled(NamedTuple):
    """Our own loop slept for longer than a heartbeat interval: nobody is to blame for that time."""

    gap_s: float


Event = Received | TopicHeld | TopicLost | TimePassed | LoopStalled


class Send(NamedTuple):
    """One message to some connections: encoded once."""

    peers: tuple[bytes, ...]
    message: Message


class Publish(NamedTuple):
    """To every listener of a job."""

    job_id: str
    message: NoticeBatch | Beacon


class PersistEpoch(NamedTuple):
    """Make durable before anything after it is performed."""

    epoch: int


class Log(NamedTuple):
    """A line for people; ``level`` as in ``logging``."""

    level: int
    text: str
    job_id: str = ""
    replica_id: str = ""


Effect = Send | Publish | PersistEpoch | Log
