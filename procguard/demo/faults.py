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


class Fault(NamedTuple):
    kind: Kind
    replica_id: str
    steps_before: int
    """Undisturbed steps that come first."""
    moment: float
    """When within a step, from 0 (its begin) to 1 (its end)."""


def draw(random: Random, replica_ids: Sequence[str], kills: int) -> tuple[Fault, ...]:
    """``kills`` replicas to kill, then one to stop; never the same one twice in a row."""
    faults: list[Fault] = []
    for kind in [Kind.KILL] * kills + [Kind.STOP]:
        last = faults[-1].replica_id if faults else None
        victim = random.choice([replica_id for replica_id in replica_ids if replica_id != last])
        faults.append(Fault(kind, victim, random.randint(*STEPS_BEFORE), random.random()))
    return tuple(faults)
