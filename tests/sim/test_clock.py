"""Virtual time: in order, and only as far as asked."""

from __future__ import annotations

import pytest

from procguard.sim.clock import VirtualClock


def test_what_is_due_happens_in_order_and_at_its_time() -> None:
    clock, seen = VirtualClock(), list[tuple[str, float]]()
    for name, when in (("late", 2.0), ("first", 1.0), ("second", 1.0), ("beyond", 3.5)):
        clock.at(when, lambda name=name: seen.append((name, clock.now)))
    clock.run_until(3.0)
    assert seen == [("first", 1.0), ("second", 1.0), ("late", 2.0)]
    assert (clock.now, clock.events) == (3.0, 3)


def test_what_happens_may_ask_for_more_and_take_back_what_was_asked() -> None:
    clock, seen = VirtualClock(), list[str]()
    doomed = clock.at(1.5, seen.append, "never")
    clock.at(1.0, lambda: clock.after(0.2, seen.append, "child"))
    clock.at(1.1, clock.cancel, doomed)
    clock.run_until(2.0)
    assert seen == ["child"]


def test_the_past_is_now() -> None:
    clock, seen = VirtualClock(), list[float]()
    clock.run_until(5.0)
    clock.at(1.0, lambda: seen.append(clock.now))
    clock.run_until(5.0)
    assert seen == [5.0]


def test_time_that_stands_still_is_noticed() -> None:
    clock = VirtualClock()

    def spin() -> None:
        clock.after(0.0, spin)

    spin()
    with pytest.raises(AssertionError, match="somebody spins"):
        clock.run_until(1.0)
