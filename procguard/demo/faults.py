"""What will be done to whom, and when: drawn from a seed, so that a run can be told again. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from random import Random

STEPS_BEFORE = (60, 140)
"""How many steps are trained undisturbed before a fault: at least and at most."""


class Kind(Enum):
    KILL = "kill"
    """SIGKILL; a new process takes the replica's place."""
    STOP = "stop"
    """SIGSTOP, until the others have gone on for a while; then SIGCONT."""


def name_of(replica_id: str, rank: int, ranks: int) -> str:
    """What a process is called: by its replica, and by its rank where a replica has several."""
    return replica_id if ranks == 1 else f"{replica_id}/{rank}"


class Fault(NamedTuple):
    kind: Kind
    replica_id: str
    rank: int
    """Of the process in its replica group."""
    steps_before: int
    """Undisturbed steps that come first."""
    moment: float
    """When within a step, from 0 (its begin) to 1 (its end)."""


def draw(random: Random, replica_ids: Sequence[str], kills: int, ranks: int = 1) -> tuple[Fault, ...]:
    """``kills`` replicas to kill, then one to stop; never the same one twice in a row.

    Of replicas of several ranks, a rank that is not 0 is killed first, then a rank 0, and so on. None is
    stopped: a group that was given up is started anew, whatever became of its processes.
    """
    faults: list[Fault] = []
    kinds = [Kind.KILL] * kills + [Kind.STOP] * (ranks == 1)
    for nth, kind in enumerate(kinds):
        last = faults[-1].replica_id if faults else None
        victim = random.choice([replica_id for replica_id in replica_ids if replica_id != last])
        steps_before, moment = random.randint(*STEPS_BEFORE), random.random()
        rank = random.randint(1, ranks - 1) if ranks > 1 and nth % 2 == 0 else 0
        faults.append(Fault(kind, victim, rank, steps_before, moment))
    return tuple(faults)
