"""Ingest, in small."""

from __future__ import annotations

from tests.benchmarks.running import cases, report_of

SMOOTHLY = ("floor: bare ROUTER", "10 Hz, smoothly")
LOADS = ("% of a core", "MiB RSS")


def test_a_small_ingest() -> None:
    flags = ("--rounds=1", "--beats=2000", "--members=10", "--windows=1", "--window=0.2", "--fresh")
    report = report_of("ingest", *flags, "--keys", "--knocks=3")
    assert cases(report) == {
        ("floor: bare ROUTER drain", 20, "beats/s"),
        ("floor: bare ROUTER drain", 20, "CPU s/100k beats"),
        ("saturation", 20, "beats/s"),
        ("saturation", 20, "CPU s/100k beats"),
        ("saturation with CURVE", 20, "beats/s"),
        ("saturation with CURVE", 20, "CPU s/100k beats"),
        ("connections", 3, "connections/s"),
        ("connections", 3, "CPU ms each"),
        ("connections with CURVE", 3, "connections/s"),
        ("connections with CURVE", 3, "CPU ms each"),
        *((name, members, unit) for name in SMOOTHLY for members in (1, 10) for unit in LOADS),
    }
    assert [target["bound"] for target in report["targets"]] == ["at least", "at most", "at most", "at most"]
