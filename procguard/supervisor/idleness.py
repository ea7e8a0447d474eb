"""Whether a worker does nothing at all, and for how long: measured in two stages.

To look at a whole process tree and its output costs seven times as much as to look at its root. So the root
is sampled all the time, and the rest only at the beginning and at the end of the root's idle time. A shell
that waits for the trainer it has started is therefore not taken for a hung worker. Pure.
"""

from __future__ import annotations

import math

from procguard.supervisor.health_words import Rules, Usage


class Idleness:
    """Whether CPU and memory have been below both thresholds, without output, and since when."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._previous: tuple[float, Usage] | None = None
        self._tree: tuple[float, Usage] | None = None
        """The tree at the beginning of the idle time that is running."""
        self._not_before = -math.inf
        self.busy = False
        """The last sample of the root shows work."""

    def interrupt(self) -> None:
        """A sign of life: what was measured before it counts no more."""
        self._previous = self._tree = None

    def root(self, usage: Usage | None, now: float) -> bool:
        """Take a sample of the root process; returns whether the tree must be looked at."""
        previous, self._previous = self._previous, (now, usage) if usage else None
        self.busy = bool(usage and previous and not self._is_idle(previous, usage, now))
        if usage is None or previous is None or self.busy:
            self._tree = None
            return False
        if self._tree is None:
            return now >= self._not_before
        return now >= self._tree[0] + self._rules.heartbeat_timeout_s

    def tree(self, usage: Usage | None, now: float) -> float | None:
        """Take a sample of the whole tree; returns for how many seconds it has been idle, if too long."""
        before, self._tree = self._tree, None
        if usage is None:
            return None
        if usage.memory_bytes >= self._rules.memory_threshold_bytes:
            self._not_before = now + self._rules.heartbeat_timeout_s
            return None
        self._tree = (now, usage)
        if before is None or not self._is_idle(before, usage, now):
            return None
        return now - before[0]

    def _is_idle(self, before: tuple[float, Usage], usage: Usage, now: float) -> bool:
        at, earlier = before
        cpu_s = usage.cpu_s - earlier.cpu_s
        return (
            0.0 <= cpu_s * 100.0 < self._rules.cpu_threshold_percent * (now - at)
            and usage.memory_bytes < self._rules.memory_threshold_bytes
            and usage.output == earlier.output
        )
