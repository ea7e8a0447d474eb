"""Restarts, in small."""

from __future__ import annotations

from tests.benchmarks.running import cases, report_of

SITUATIONS = ("alone", "neighbour prints 10,000 lines/s", "its child's child holds stdout")


def test_a_few_restarts() -> None:
    flags = ("--kills=2", "--idle=2", "--window=0.1", "--crowd=5", "--crowds=1")
    report = report_of("restart", *flags)
    assert {case for case in cases(report) if case[2] == "ms"} == {
        (f"{floor}{what}, {situation}", 2 if "prints" in situation else 1, "ms")
        for floor in ("floor: ", "")
        for what in ("noticed", "first line")
        for situation in SITUATIONS
    }
    assert {case for case in cases(report) if case[2] != "ms"} == {
        ("idle", 2, "CPU s/minute"),
        ("idle", 2, "MiB RSS"),
        ("start all", 5, "s"),
        ("stop all", 5, "s"),
    }
    assert len(report["targets"]) == 10
