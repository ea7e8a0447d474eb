"""Scale, in small."""

from __future__ import annotations

from tests.benchmarks.running import cases, report_of


def test_a_small_scale() -> None:
    report = report_of("scale", "--members=3", "--members=12", "--windows=1", "--window=0.2", "--deaths=2")
    assert cases(report) == {
        (name, members, unit)
        for name, unit in (
            ("10 Hz, smoothly", "% of a core"),
            ("10 Hz, smoothly", "MiB RSS"),
            ("obituary to notice", "ms"),
            ("lost connection to notice", "ms"),
        )
        for members in (3, 12)
    }
    told = {(case["name"], case["members"]): case["n"] for case in report["cases"]}
    assert told["obituary to notice", 3] == 2 * 2
    assert told["obituary to notice", 12] == 2 * 9
    assert report["targets"] == []
