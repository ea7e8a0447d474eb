"""So many a second in the long run, and a few at once: how a loop gives a flood its share and no more.

Pure: the caller says what time it is.
"""

from __future__ import annotations

ROUNDING = 1e-6
"""Who waited for as long as he was told is not sent away because of a float's last digit."""


class Budget:
    """Starts full.

    Args:
        per_s: what comes back each second.
        at_once: what can be saved up.
        now: monotonic seconds.
    """

    def __init__(self, per_s: float, at_once: float, now: float) -> None:
        self._per_s = per_s
        self._at_once = at_once
        self._left = at_once
        self._as_of = now

    def take(self, cost: float, now: float) -> bool:
        """Spend ``cost`` if it is there."""
        self._refill(now)
        if self._left < cost - ROUNDING:
            return False
        self._left -= cost
        return True

    def spend(self, cost: float, now: float) -> float:
        """Spend ``cost`` though it may not be there; how many seconds to pause until the debt is paid."""
        self._refill(now)
        self._left -= cost
        return max(0.0, -self._left / self._per_s)

    def wait_s(self, cost: float, now: float) -> float:
        """Seconds until ``cost`` will be there."""
        self._refill(now)
        return max(0.0, (cost - self._left) / self._per_s)

    def _refill(self, now: float) -> None:
        self._left = min(self._at_once, self._left + max(0.0, now - self._as_of) * self._per_s)
        self._as_of = max(self._as_of, now)
