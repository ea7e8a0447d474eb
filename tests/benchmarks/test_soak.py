"""The soak, in small."""

from __future__ import annotations

from tests.benchmarks.running import cases, report_of


def test_a_small_soak() -> None:
    report = report_of("soak", "--seconds=1", "--members=2", "--per-core=1")
    assert cases(report) == {
        ("soak", 2, "replica-hours"),
        ("quorum of all, in the crowd", 2, "ms"),
    }
    assert all(target["met"] for target in report["targets"])
