"""The rules under random events: what must hold whatever a worker, a server and a monitor do."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from procguard.supervisor.health import Patient
from procguard.supervisor.health_words import (
    AskUrl,
    Beat,
    BeatTimeout,
    Cause,
    Effect,
    Ended,
    Event,
    Extended,
    Failed,
    Ready,
    Recovered,
    Resumed,
    Rules,
    Sample,
    Sampled,
    Spoke,
    Started,
    Stopping,
    Tick,
    Triggered,
    UrlAnswered,
    UrlBegun,
    UrlRule,
    Usage,
)

STEPS = 400
LIVES: list[Callable[[random.Random], Event]] = [
    lambda _: Started(7),
    lambda chance: Ended(chance.random() < 0.5, "exit code 3", chance.random() < 0.2),
]
WORDS: list[Callable[[random.Random], Event]] = [
    lambda _: Beat(),
    lambda _: Ready(),
    lambda _: Spoke(),
    lambda _: Stopping(),
    lambda _: Triggered(),
    lambda _: Resumed(),
    lambda chance: BeatTimeout(chance.choice([0.001, 1.0, 60.0])),
    lambda chance: Extended(chance.choice([0.0, 1.0, 60.0])),
    lambda chance: Sampled(chance.choice([None, Usage(chance.random(), 5)]), chance.random() < 0.5),
    lambda chance: UrlBegun(chance.randrange(5)),
    lambda chance: UrlAnswered(chance.randrange(5), chance.random() < 0.5, "HTTP status 500"),
]


class Walk:
    """One patient on a random walk."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        self.now = chance.choice([0.0, 1e6])
        self.rules = Rules(
            heartbeat_timeout_s=chance.choice([0.1, 3.0, 10.0]),
            start_period_s=chance.choice([0.0, 0.3, 30.0]),
            ready_expected=chance.random() < 0.3,
            idle_fails=chance.random() < 0.5,
            memory_threshold_bytes=10.0,
            sample_interval_s=chance.choice([0.1, 1.0]),
            url=UrlRule(chance.choice([0.1, 5.0]), 2.0, 2) if chance.random() < 0.5 else None,
        )
        self.patient = Patient(self.rules)
        self.standing: Failed | None = None
        self.causes: set[Cause] = set()
        self.asked = 0

    def go(self) -> None:
        for _ in range(STEPS):
            kind = self.chance.random()
            if kind < 0.5:
                self._pass_time()
            else:
                self.tell(self.chance.choice(LIVES if kind < 0.55 else WORDS)(self.chance))

    def _pass_time(self) -> None:
        due = self.patient.due()
        self.now += self.chance.random() if due is None else max(due - self.now, 0.0)
        self.tell(Tick())
        after = self.patient.due()
        assert after is None or after > self.now, "due again at once: the loop would spin"

    def tell(self, event: Event) -> None:
        if isinstance(event, Started):
            self.standing = None
        if isinstance(event, (UrlBegun, UrlAnswered)) and self.chance.random() < 0.8:
            event = replace(event, number=self.asked)
        for effect in self.patient.step(event, self.now):
            self._check(effect)
        self.patient.status(self.now)
        self.patient.reasons()

    def _check(self, effect: Effect) -> None:
        match effect:
            case Failed():
                assert self.standing is None, "failed twice in a life, and not recovered between"
                self.standing = effect
                self.causes.add(effect.cause)
            case Recovered():
                assert self.standing is not None
                self.standing = None
            case Sample():
                assert self.rules.idle_fails
                self.tell(Sampled(Usage(0.0, 1), effect.whole_tree))
            case AskUrl():
                assert self.rules.url is not None
                assert effect.number > self.asked
                self.asked = effect.number


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_random_walks(first: int) -> None:
    seen: set[Cause] = set()
    for seed in range(first, first + 50):
        walk = Walk(seed)
        try:
            walk.go()
        except AssertionError as error:
            raise AssertionError(f"Walk({seed}).go(): {error}") from error
        if not walk.rules.idle_fails:
            assert Cause.IDLE not in walk.causes
        if not walk.rules.ready_expected:
            assert Cause.NOT_READY not in walk.causes
        if walk.rules.url is None:
            assert Cause.URL_FAILS not in walk.causes
        seen |= walk.causes
    assert seen == set(Cause), "the walks go everywhere"
