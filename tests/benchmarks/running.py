"""A benchmark, run as a user runs it, but so small that its figures mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent.parent
DEADLINE_S = 120


def report_of(benchmark: str, *flags: str) -> dict[str, Any]:
    """Its JSON report, looked through for cases that cannot be."""
    ran = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{benchmark}", "--json", *flags],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    report: dict[str, Any] = json.loads(ran.stdout)
    assert report["benchmark"] == benchmark
    for case in report["cases"]:
        assert case["n"] > 0
        assert 0 <= case["p50"] <= case["p99"] <= case["max"], case
    return report


def cases(report: dict[str, Any]) -> set[tuple[str, int, str]]:
    """Name, members and unit of each."""
    return {(case["name"], case["members"], case["unit"]) for case in report["cases"]}
