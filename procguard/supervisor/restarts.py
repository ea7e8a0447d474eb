"""When a worker that failed may start again: at once, later, or not any more. Pure.

The first restart comes at once, because most failures happen once. Each further one waits twice as long, so
that a worker which crashes for ever costs little; a random part is taken off, so that many that failed
together do not come back together. Two numbers are remembered, because one cannot serve both ends: how many
failures stand in a row without a stable time between them (for the delay), and when the last restarts were
due (for the limit within ``restart_window``). A worker that has run for a whole ``restart_window`` is
stable: it begins anew.

Uptime counts from the moment a start was due, not from the failure before it: otherwise a long delay would
count as stability. Times are seconds of one monotonic clock, so a jump of the wall clock restarts nobody;
they mean nothing after a reboot, and the caller drops them then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

JITTER = 0.25
"""Up to this part of a delay is taken off at random."""
TIMES_COUNT_MAX = 1000
"""Restarts that are remembered of one worker; ``max_restarts`` above this is no limit at all."""
DOUBLINGS_MAX = 64


class RestartPolicy(NamedTuple):
    """How often and how fast; seconds."""

    max_restarts: int = 5
    window_s: float = 300.0
    delay_s: float = 1.0
    delay_max_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Restarts:
    """What is remembered of a worker's restarts."""

    due: tuple[float, ...] = ()
    """When the last ones were due, oldest first."""
    in_a_row: int = 0
    """Failures since it was last stable."""


class Again(NamedTuple):
    """It may start again."""

    delay_s: float
    restarts: Restarts
    """To be remembered from now on."""


class Exhausted(NamedTuple):
    """It has been restarted too often."""

    max_restarts: int
    window_s: float
    restarts: Restarts

    def __str__(self) -> str:
        if self.max_restarts == 0:
            return "failed, and may not be restarted (max_restarts 0)"
        return f"failed again after {self.max_restarts} restarts within {self.window_s:g} s (max_restarts)"


def after_failure(restarts: Restarts, policy: RestartPolicy, now: float, chance: float) -> Again | Exhausted:
    """Whether a worker that failed at ``now`` starts again, and when.

    Args:
        chance: from 0 to below 1, at random; how much of the jitter is taken off.
    """
    due = tuple([at for at in restarts.due if at > now - policy.window_s])
    stable = not restarts.due or now - restarts.due[-1] >= policy.window_s
    in_a_row = 0 if stable else restarts.in_a_row
    if len(due) >= policy.max_restarts:
        return Exhausted(policy.max_restarts, policy.window_s, Restarts(due, in_a_row))
    delay_s = delay_after(in_a_row, policy.delay_s, policy.delay_max_s, chance)
    kept = (*due, now + delay_s)[-TIMES_COUNT_MAX:]
    return Again(delay_s, Restarts(kept, in_a_row + 1))


def delay_after(failures: int, delay_s: float, delay_max_s: float, chance: float) -> float:
    """Seconds to wait after that many earlier failures in a row: nothing, then a delay that doubles."""
    if failures == 0:
        return 0.0
    full = delay_s * 2.0 ** min(failures - 1, DOUBLINGS_MAX)
    return min(full, delay_max_s) * (1 - JITTER * chance)
