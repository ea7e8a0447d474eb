"""When a health URL is asked, for how long its answer is waited for, and how many failures stand in a row.
Pure."""

from __future__ import annotations

from procguard.supervisor.health_words import UrlAnswered, UrlRule


class UrlPatience:
    """One question at a time; a question that is not answered in time counts as failed, once."""

    def __init__(self, rule: UrlRule, now: float, number: int = 0) -> None:
        self.rule = rule
        self.failures = 0
        self.text = ""
        self.ever_good = False
        self._next_at = now
        self.number = number
        """Of the last question. Goes on over the lives of a worker: a late answer is never another one's."""
        self._asked = False
        self.stuck = False
        """Its question was given up, and whoever asks it is not back yet."""
        self._deadline: float | None = None

    def due(self) -> float:
        """When it must be looked at next."""
        return self._next_at if self._deadline is None else min(self._next_at, self._deadline)

    def overdue(self, now: float) -> bool:
        """The answer that is waited for has not come in time."""
        return self._deadline is not None and now >= self._deadline

    def next(self, now: float) -> int | None:
        """The number of the next question; None while the last one still waits for its turn or its answer."""
        self.advance(now)
        if self._asked:
            return None
        self._asked = True
        self.number += 1
        return self.number

    def advance(self, now: float) -> None:
        """The next question is for later."""
        if self._next_at <= now:
            self._next_at = max(self._next_at, now - self.rule.interval_s / 2) + self.rule.interval_s

    def begun(self, number: int, now: float) -> None:
        """The question is on its way: from here on its time counts."""
        if number == self.number and self._asked:
            self._deadline = now + self.rule.timeout_s

    def answered(self, event: UrlAnswered, *, counts: bool) -> bool | None:
        """Whether the answer is good; None for one that nobody waits for any more."""
        if event.number != self.number or not self._asked:
            return None
        counted = self._deadline is not None
        self._asked, self.stuck, self._deadline = False, False, None
        return self._count(event.good, event.text, counts=counts) if counted else None

    def give_up(self, *, counts: bool) -> bool:
        """Its time is over. Whoever asks may still be stuck: until that returns there is no other
        question."""
        self._deadline, self.stuck = None, True
        return self._count(False, f"no answer within {self.rule.timeout_s:g} s", counts=counts)

    def restart(self, now: float) -> None:
        """We were held up ourselves: the time of the question begins anew."""
        if self._deadline is not None:
            self._deadline = now + self.rule.timeout_s
        self._next_at = max(self._next_at, now)

    def _count(self, good: bool, text: str, *, counts: bool) -> bool:
        self.text = text
        if good:
            self.failures, self.ever_good = 0, True
        elif counts:
            self.failures += 1
        return good
