"""Deadlines: cheap to renew, on time, excused after our own stall; against a naive model of themselves."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procguard.lighthouse import deadlines as module
from procguard.lighthouse.deadlines import Deadlines


def due(deadlines: Deadlines[str], now: float) -> list[str]:
    return list(deadlines.due(now))


def test_nothing_runs_at_first() -> None:
    deadlines: Deadlines[str] = Deadlines()
    assert deadlines.next() == inf
    assert due(deadlines, 1e9) == []
    assert "a" not in deadlines


def test_a_deadline_passes_once_and_no_sooner() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.arm("a", 10.0, 1.0)
    assert "a" in deadlines
    assert deadlines.next() == 11.0
    assert due(deadlines, 10.999) == []
    assert due(deadlines, 11.0) == ["a"]
    assert "a" not in deadlines
    assert due(deadlines, 99.0) == []


def test_several_pass_in_the_order_of_their_ends() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for key, length_s in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("d", 4.0)):
        deadlines.arm(key, 0.0, length_s)
    assert due(deadlines, 3.0) == ["a", "b", "c"]


def test_a_renewed_deadline_runs_its_full_length_from_then() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.arm("a", 0.0, 1.0)
    deadlines.renew("a", 0.7)
    assert due(deadlines, 1.0) == []
    assert deadlines.next() == 1.7
    assert due(deadlines, 1.7) == ["a"]


def test_arming_anew_may_make_it_earlier_or_later() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.arm("a", 0.0, 5.0)
    deadlines.arm("a", 1.0, 1.0)
    assert deadlines.next() == 2.0
    deadlines.arm("a", 1.5, 10.0)
    assert due(deadlines, 5.0) == []
    assert due(deadlines, 11.5) == ["a"]


def test_a_disarmed_deadline_never_passes_and_can_be_armed_again() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.arm("a", 0.0, 1.0)
    deadlines.disarm("a")
    deadlines.disarm("never armed")
    assert due(deadlines, 2.0) == []
    deadlines.arm("a", 2.0, 1.0)
    assert due(deadlines, 3.0) == ["a"]


def test_after_a_stall_every_deadline_has_its_full_length_again() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.arm("a", 0.0, 1.0)
    deadlines.arm("b", 0.0, 2.0)
    deadlines.excuse(50.0)
    deadlines.arm("c", 50.5, 1.0)
    assert due(deadlines, 50.99) == []
    assert due(deadlines, 51.5) == ["a", "c"]
    assert due(deadlines, 52.0) == ["b"]


def test_what_the_caller_disarms_on_the_way_does_not_come_up() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for key in "abc":
        deadlines.arm(key, 0.0, 1.0)
    passed = []
    for key in deadlines.due(1.0):
        passed.append(key)
        deadlines.disarm("b")
    assert passed == ["a", "c"]


def test_arming_and_renewing_cost_one_heap_entry_however_often() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for number in range(100):
        deadlines.arm("a", number / 100, 2.0)
        deadlines.renew("a", number / 100)
    assert len(deadlines._heap) == 1


def test_the_heap_does_not_keep_what_is_disarmed_all_at_once() -> None:
    deadlines: Deadlines[int] = Deadlines()
    for number in range(5_000):
        deadlines.arm(number, 0.0, 5.0)
    for number in range(5_000):
        deadlines.disarm(number)
    assert len(deadlines._heap) <= module.STALE_MAX


def test_the_heap_does_not_grow_with_what_is_renewed_shortened_or_disarmed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STALE_MAX", 10)
    deadlines: Deadlines[int] = Deadlines()
    for number in range(1_000):
        deadlines.arm(0, 0.0, 5_000.0 - number)
        deadlines.arm(number, 0.0, 1e9)
        deadlines.disarm(number - 3)
    armed = [number for number in range(1_000) if number in deadlines]
    assert armed == [0, 997, 998, 999]
    assert len(deadlines._heap) <= 2 * len(armed) + 10
    assert len(deadlines._queued) <= len(deadlines._heap)
    assert len(deadlines._length) == len(deadlines._since) == len(armed)


_KEYS = st.sampled_from("abc")
_LENGTHS = st.sampled_from([0.0, 0.5, 1.0, 5.0])
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("arm"), _KEYS, _LENGTHS),
        st.tuples(st.just("renew"), _KEYS),
        st.tuples(st.just("disarm"), _KEYS),
        st.tuples(st.just("excuse")),
        st.tuples(st.just("advance"), st.sampled_from([0.0, 0.25, 0.5, 1.0, 4.0])),
    ),
    max_size=40,
)


@settings(derandomize=True, max_examples=300)
@given(_STEPS)
def test_agrees_with_a_naive_model(steps: list[tuple]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STALE_MAX", 1)
        agrees_with_a_naive_model(steps)


def agrees_with_a_naive_model(steps: list[tuple]) -> None:
    deadlines: Deadlines[str] = Deadlines()
    ends: dict[str, float] = {}
    lengths: dict[str, float] = {}
    now = 0.0
    for verb, *arguments in steps:
        if verb == "arm":
            key, length_s = arguments
            deadlines.arm(key, now, length_s)
            lengths[key] = length_s
            ends[key] = now + length_s
        elif verb == "renew" and arguments[0] in ends:
            deadlines.renew(arguments[0], now)
            ends[arguments[0]] = now + lengths[arguments[0]]
        elif verb == "disarm":
            deadlines.disarm(arguments[0])
            ends.pop(arguments[0], None)
        elif verb == "excuse":
            deadlines.excuse(now)
            ends = {key: max(end, now + lengths[key]) for key, end in ends.items()}
        elif verb == "advance":
            now += arguments[0]
            passed = due(deadlines, now)
            assert sorted(passed) == sorted(key for key, end in ends.items() if end <= now)
            assert [ends[key] for key in passed] == sorted(ends[key] for key in passed)
            ends = {key: end for key, end in ends.items() if key not in passed}
            assert deadlines.next() > now
        assert {key for key in "abc" if key in deadlines} == set(ends)
        assert deadlines.next() <= min(ends.values(), default=inf)
