"""Schedules: long enough, bad enough, and the same for the same seed."""

from __future__ import annotations

from procguard.sim.schedule import Kind, schedule_of

SEEDS = range(1, 400)


def test_a_schedule_lasts_20_seconds_and_has_three_faults_or_more() -> None:
    schedules = [schedule_of(seed) for seed in SEEDS]
    assert all(schedule.length_s >= 20.0 and len(schedule.faults) >= 3 for schedule in schedules)
    assert {fault.kind for schedule in schedules for fault in schedule.faults} == set(Kind)


def test_enough_stay_for_a_quorum() -> None:
    for schedule in map(schedule_of, SEEDS):
        gone = sum(fault.kind is Kind.GONE for fault in schedule.faults)
        assert len(schedule.names) - gone >= max(2, schedule.min_replicas)


def test_the_number_of_members_can_be_chosen() -> None:
    assert {len(schedule_of(seed, 3, 3).names) for seed in SEEDS} == {3}
    sizes = {len(schedule_of(seed).names) for seed in range(1, 3000)}
    assert min(sizes) == 2
    assert max(sizes) > 32


def test_a_seed_is_a_schedule() -> None:
    assert schedule_of(7) == schedule_of(7)
    assert schedule_of(7) != schedule_of(8)
