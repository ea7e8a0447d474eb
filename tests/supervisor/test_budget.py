"""A budget: what was saved up at once, and the rest at its rate."""

from __future__ import annotations

import pytest

from procguard.supervisor.budget import Budget


def test_what_was_saved_up_and_then_its_rate() -> None:
    budget = Budget(per_s=10.0, at_once=5.0, now=100.0)
    assert [budget.take(1.0, 100.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert budget.wait_s(1.0, 100.0) == pytest.approx(0.1)
    assert not budget.take(1.0, 100.05)
    assert budget.take(1.0, 100.11)
    assert budget.wait_s(1.0, 1000.0) == 0.0
    assert sum(budget.take(1.0, 1000.0) for _ in range(100)) == 5


def test_a_clock_that_steps_back_gives_nothing() -> None:
    budget = Budget(per_s=10.0, at_once=1.0, now=100.0)
    assert budget.take(1.0, 100.0)
    assert not budget.take(1.0, 50.0)
    assert not budget.take(1.0, 100.05)
    assert budget.take(1.0, 100.11)


def test_who_spends_without_asking_pays_by_waiting() -> None:
    budget = Budget(per_s=500.0, at_once=2.0, now=0.0)
    now, paused_s = 0.0, 0.0
    for _ in range(1000):
        pause_s = budget.spend(1.0, now)
        now, paused_s = now + pause_s, paused_s + pause_s
    assert paused_s == pytest.approx(998 / 500)


def test_who_waits_for_as_long_as_he_was_told_gets_it() -> None:
    budget, now = Budget(per_s=3.0, at_once=1.0, now=1e9), 1e9
    for _ in range(1000):
        assert budget.take(1.0, now)
        now += budget.wait_s(1.0, now)
