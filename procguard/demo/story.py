"""The story: replicas are killed and stopped, and what has to happen in between. Pure.

A story is a generator of acts, to be read like a script. Whoever plays it does what an act says, and at an
``Until`` lets time pass until the condition holds. Every condition is about what the replicas themselves
wrote down, so a slow machine makes the play longer and never different.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from procguard.demo.chronicle import Chronicle, Incident
from procguard.demo.faults import Fault, Kind

ALONE_STEPS = {Kind.KILL: 3, Kind.STOP: 40}
"""How many steps the survivors go on without the victim before it comes back."""
LAST_STEPS = 60
"""How many steps all train together at the end."""
END_EVERY_STEPS = 50
"""As in examples/train_digits.py."""
STEPS_MIN = 300
"""No run is shorter, that it may learn something."""


class Until(NamedTuple):
    """Let time pass until this holds."""

    what: str
    holds: Callable[[], bool]


class Strike(NamedTuple):
    """Do it, at its moment within a step."""

    fault: Fault


class BringBack(NamedTuple):
    """Start a new process for the killed one, or continue the stopped one."""

    fault: Fault


class Finish(NamedTuple):
    """Ask one replica to end; all end with it."""


Act = Until | Strike | BringBack | Finish


def story(faults: Sequence[Fault], chronicle: Chronicle) -> Iterator[Act]:
    """The whole run, from the start of the replicas to their end."""
    yield Until("all replicas train together", lambda: chronicle.training)
    for fault in faults:
        yield _steps(chronicle, fault.steps_before)
        yield Strike(fault)
        yield _survival(fault, chronicle.incidents[-1])
        yield BringBack(fault)
        yield _healing(fault, chronicle.incidents[-1])
    yield _steps(chronicle, max(LAST_STEPS, STEPS_MIN - chronicle.step))
    yield Until("the last steps begin", lambda: _safe_to_ask(chronicle))
    yield Finish()
    everybody = set(chronicle.names)
    yield Until("all replicas have ended", lambda: set(chronicle.ends) == everybody)


def _safe_to_ask(chronicle: Chronicle) -> bool:
    """The ranks of a group hear apart that they should end, and end at the next round number of steps: all
    must hear before the same one."""
    return chronicle.ranks == 1 or chronicle.step % END_EVERY_STEPS < END_EVERY_STEPS // 4


def _steps(chronicle: Chronicle, count: int) -> Until:
    target = chronicle.step + count
    return Until(f"all replicas reach step {target}", lambda: chronicle.step >= target)


def _survival(fault: Fault, incident: Incident) -> Until:
    alone = ALONE_STEPS[fault.kind]

    def holds() -> bool:
        gone_on = all(incident.gone_on[survivor] >= alone for survivor in incident.survivors)
        return gone_on and len(incident.told) == len(incident.survivors)

    return Until(f"the others are told of {fault.replica_id} and go on without it", holds)


def _healing(fault: Fault, incident: Incident) -> Until:
    who = f"the new replica {fault.replica_id}" if fault.kind is Kind.KILL else f"replica {fault.replica_id}"
    return Until(f"{who} has healed", lambda: incident.healed_at is not None)
