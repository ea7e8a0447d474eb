"""Quorum, in small."""

from __future__ import annotations

from benchmarks.quorum import Times, until_arrived_ms, until_had_ms
from tests.benchmarks.running import cases, report_of


def test_a_round_lasts_from_the_last_ask_to_the_last_answer() -> None:
    early, late = Times(1.0, 5.5, 7.0), Times(5.0, 5.25, 5.5)
    assert until_arrived_ms([early, late]) == 500
    assert until_had_ms([early, late]) == 2000


def test_a_small_quorum() -> None:
    report = report_of("quorum", "--rounds=3", "--members=2", "--members=3")
    assert cases(report) == {
        (name, members, "ms")
        for name in (
            "floor: bare ROUTER and DEALER",
            "last ask to last answer",
            "last ask until all have read it",
        )
        for members in (2, 3)
    }
    assert [target["name"] for target in report["targets"]] == ["quorum p50 ms, 2 members"]
