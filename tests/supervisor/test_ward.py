"""Many patients: each is ticked when it is due, and a heartbeat costs no heap entry."""

from __future__ import annotations

import random

from procguard.supervisor.health_words import Beat, BeatTimeout, Extended, Failed, Rules, Started
from procguard.supervisor.ward import STALE_FACTOR_MAX, Ward

RULES = Rules(idle_fails=False)


def failed(ward: Ward, now: float) -> list[str]:
    return [worker_id for worker_id, effect in ward.tick(now) if isinstance(effect, Failed)]


def test_who_is_not_here_is_not_told() -> None:
    ward = Ward()
    assert ward.step("a", Beat(), 0.0) == ()
    assert ward.due() is None
    assert ward.tick(1e9) == []


def test_each_is_ticked_at_its_own_time() -> None:
    ward = Ward()
    for at, worker_id in enumerate("abc"):
        ward.add(worker_id, RULES)
        ward.step(worker_id, Started(1), 0.0)
        ward.step(worker_id, Beat(), float(at))
    assert ward.due() == 10.0
    assert failed(ward, 9.9) == []
    assert failed(ward, 11.5) == ["a", "b"]
    assert failed(ward, 100.0) == ["c"]
    assert ward.due() is None


def test_a_removed_one_is_never_due_again() -> None:
    ward = Ward()
    ward.add("a", RULES)
    ward.step("a", Beat(), 0.0)
    ward.remove("a")
    ward.remove("a")
    assert failed(ward, 100.0) == []
    ward.add("a", RULES)
    assert failed(ward, 200.0) == []


def test_beats_move_a_deadline_without_another_entry() -> None:
    ward = Ward()
    ward.add("a", RULES)
    for now in range(1000):
        ward.step("a", Beat(), now / 128)
    assert len(ward._heap) == 1
    assert failed(ward, 999 / 128 + 9.99) == []
    assert failed(ward, 999 / 128 + 10.0) == ["a"]


def test_a_worker_that_changes_its_mind_for_ever_does_not_fill_the_heap() -> None:
    ward = Ward()
    ward.add("a", RULES)
    ward.step("a", Started(1), 0.0)
    for turn in range(1000):
        ward.step("a", BeatTimeout(5000.0 - turn), 0.0)
    assert len(ward._heap) <= STALE_FACTOR_MAX * 2
    assert failed(ward, 4001.0) == ["a"]


def test_a_stall_moves_all_deadlines() -> None:
    ward = Ward()
    for worker_id in "ab":
        ward.add(worker_id, RULES)
        ward.step(worker_id, Beat(), 0.0)
    ward.resume(500.0)
    assert failed(ward, 509.9) == []
    assert failed(ward, 510.0) == ["a", "b"]


def test_no_deadline_is_missed_in_random_order() -> None:
    """Against a model that looks at every patient all the time."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    ward, ends = Ward(), {}
    names = [f"w{number}" for number in range(20)]
    for name in names:
        ward.add(name, RULES)
    now = 0.0
    for _ in range(3000):
        now += chance.random()
        expected = sorted(name for name, end in ends.items() if end <= now)
        assert sorted(failed(ward, now)) == expected, f"seed {seed}"
        for name in expected:
            del ends[name]
        name = chance.choice(names)
        if chance.random() < 0.3 and name in ends:
            ward.step(name, Extended(extra := chance.random() * 40), now)
            ends[name] = max(ends[name], now + extra)
        elif name not in ends:
            ward.step(name, Started(1), now)
            ward.step(name, Beat(), now)
            ends[name] = now + 10.0
