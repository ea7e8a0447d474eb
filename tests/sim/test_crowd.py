"""Crowds: healthy members live, dead ones are told of, and the settings are the lighthouse's own."""

from __future__ import annotations

from random import Random

from procguard.config import LighthouseConfig
from procguard.sim.crowd import DEFAULTS, Crowd, Luck, graveyard, soaked
from procguard.sim.scale import crowded


def test_the_settings_are_the_defaults_of_the_lighthouse() -> None:
    config = LighthouseConfig()
    assert [round(1000 * value) for value in DEFAULTS] == [
        config.heartbeat_interval_ms,
        config.heartbeat_timeout_ms,
        config.thread_heartbeat_timeout_ms,
        config.disconnect_grace_ms,
        config.join_timeout_ms,
    ]


def test_who_beats_is_never_failed_and_who_is_silent_is() -> None:
    crowd = Crowd(20, DEFAULTS)
    assert not any(crowd.tick() for _ in range(100))
    crowd.hush(3, 0)
    crowd.hush(3, 1)
    failed = [crowd.tick() for _ in range(15)]
    assert failed.index([3]) in (9, 10), "after one heartbeat timeout, less what a tick rounds away"
    assert sum(map(len, failed)) == 1


def test_the_dead_are_told_of_each_once() -> None:
    crowd, died = crowded(500, 3.0, 0.1, seed=1)
    assert died == 50
    assert len({notice.replica_id for notice in crowd.notices}) == len(crowd.notices) == 50
    assert crowd.events > 500 * 30 * 0.9


def test_pauses_of_300_ms_fail_nobody_and_half_of_all_packets_lost_do() -> None:
    assert sum(soaked(Crowd(50, DEFAULTS), Luck(Random(1), 0.0, 5.0, 0.1), 600)) == 0
    luck = Luck(Random(1), 0.5, 0.0, 0.1)
    assert sum(soaked(Crowd(50, DEFAULTS), luck, 100)) > 0
    assert luck.longest_s >= 1.4


def test_the_dead_are_forgotten() -> None:
    assert graveyard() == []
