"""The command line: many schedules, one that is told in full, and what fails."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from procguard.sim import __main__ as front
from procguard.sim.fleet import Result, run
from procguard.sim.invariants import Violation
from procguard.sim.schedule import schedule_of


def test_a_trace_tells_what_happens() -> None:
    ran = CliRunner().invoke(front.main, ["--seed", "3", "--members", "3", "--trace"])
    assert ran.exit_code == 0
    assert "lighthouse: quorum" in ran.output
    assert ran.output.count("FAULT") == len(schedule_of(3, 3, 3).faults)


def test_a_failing_seed_names_the_line_that_replays_it(monkeypatch: pytest.MonkeyPatch) -> None:
    good = run(schedule_of(3, 2, 3))
    bad = good._replace(seed=4, violations=[Violation(1.5, "stuck", "a waits")])

    def results(seeds: range, members: tuple[int, int], jobs: int) -> list[Result]:
        assert (list(seeds), members) == ([3, 4], (2, 3))
        return [good, bad]

    monkeypatch.setattr(front, "run_seeds", results)
    arguments = ["--schedules", "2", "--seed", "3", "--members", "2-3"]
    ran = CliRunner().invoke(front.main, arguments)
    assert ran.exit_code == 1
    assert "seed 4: 1.5000 s: stuck: a waits" in ran.output
    assert "python -m procguard.sim --seed 4 --members 2-3 --trace" in ran.output
    report = json.loads(CliRunner().invoke(front.main, [*arguments, "--json"]).output)
    assert (report["schedules"], report["failed"]) == (2, 1)
    assert report["failures"][0]["replay"].endswith("--seed 4 --members 2-3 --trace")


@pytest.mark.parametrize("members", ["1-3", "4-2", "many"])
def test_a_range_that_is_none_is_refused(members: str) -> None:
    assert CliRunner().invoke(front.main, ["--members", members]).exit_code == 2
