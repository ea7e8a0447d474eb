"""Whole runs: a fixed set of schedules keeps every promise, and a seed is a run, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from procguard.sim.fleet import Fleet, run
from procguard.sim.many import replay_line
from procguard.sim.schedule import Fault, Kind, Schedule, mass_death, one_hangs, schedule_of, undisturbed
from tests.test_house import REPOSITORY


def calm(*faults: Fault) -> Schedule:
    """Three members on a good network, and these faults only."""
    return replace(undisturbed(3), faults=faults)


def fault(kind: Kind, *who: str, at: float = 5.0, length_s: float = 1.0, mode: str = "") -> Fault:
    return Fault(at, kind, who, length_s, 1.0, mode)


def lines(schedule: Schedule) -> list[str]:
    """What happened; nothing that must not."""
    told: list[str] = []
    assert run(schedule, told.append).violations == []
    return told


@pytest.mark.parametrize("first", range(1, 31, 10))
def test_a_fixed_set_of_schedules_keeps_every_promise(first: int) -> None:
    for seed in range(first, first + 10):
        violations = run(schedule_of(seed, 2, 8)).violations
        assert not violations, f"{violations[0]}\n{replay_line(seed, (2, 8))}"


def test_nothing_happens_where_nothing_goes_wrong() -> None:
    result = run(calm())
    assert result.violations == []
    assert result.commits > 3 * 15


def test_thirty_that_die_at_once_are_all_told() -> None:
    told = lines(mass_death(36, 30))
    assert sum(" is over: killed by SIGKILL" in line for line in told) == 30


def test_one_that_hangs_is_waited_for_and_all_go_on_together() -> None:
    assert not [line for line in lines(one_hangs()) if " is over" in line]


def test_a_dead_trainer_is_told_at_once_and_its_successor_let_in() -> None:
    told = lines(calm(fault(Kind.CRASH, "m01")))
    (over,) = [line for line in told if " is over" in line]
    assert float(over.split()[0]) < 5.01
    assert [line for line in told if "m01" in line and "joined" in line and float(line.split()[0]) > 6.0]


def test_a_listener_that_dies_is_replaced_and_nobody_is_failed() -> None:
    assert not [line for line in lines(calm(fault(Kind.LISTENER, "m01"))) if " is over" in line]


def test_a_stopped_trainer_is_failed_and_comes_back() -> None:
    told = lines(calm(fault(Kind.STOP, "m01", length_s=3.0)))
    assert [line for line in told if "process stopped (SIGSTOP)" in line]
    assert [line for line in told if "m01" in line and "joined" in line and float(line.split()[0]) > 8.0]


def test_a_lighthouse_that_is_killed_while_it_sends_comes_back_and_fails_nobody() -> None:
    modes = ("while sending, own state", "after persisting, older state", "at once, none state")
    for mode in modes:
        told = lines(calm(fault(Kind.LIGHTHOUSE_KILL, mode=mode)))
        assert not [line for line in told if " is over" in line]
        assert [line for line in told if "starts with epoch" in line]


def test_the_same_seed_is_the_same_run_bit_for_bit() -> None:
    code = """
from procguard.sim.fleet import run
from procguard.sim.schedule import schedule_of
print(*[run(schedule_of(seed)).digest for seed in (3, 5)])
"""
    digests = set()
    for hash_seed in ("1", "2"):
        environ = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(REPOSITORY)}
        ran = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60, check=True
        )
        digests.add(ran.stdout)
    assert len(digests) == 1
    first, second = digests.pop().split()
    assert first != second
    assert first == run(schedule_of(3)).digest, "and it does not matter what ran before in the same process"


def test_a_run_leaves_no_process_behind() -> None:
    fleet = Fleet(schedule_of(2, 3, 3))
    fleet.run()
    assert fleet.processes == {}
    assert all(process.computer.dead and not process.computer.tasks for process in fleet.retired)
