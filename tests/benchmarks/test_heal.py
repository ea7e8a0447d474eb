"""Healing, in small."""

from __future__ import annotations

import pytest

from benchmarks.heal import checksum, state_of
from tests.benchmarks.running import cases, report_of


def test_a_small_heal() -> None:
    report = report_of("heal", "--mib=4", "--rounds=2")
    assert cases(report) == {
        ("floor: bare TCP", 2, "GB/s"),
        ("heal", 2, "GB/s"),
        ("most memory, source", 2, "MiB RSS"),
        ("most memory, fetcher", 2, "MiB RSS"),
    }
    assert [target["bound"] for target in report["targets"]] == ["at most", "at most", "at least"]


def test_a_small_heal_of_tensors() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'procguard[torch]'")
    report = report_of("heal", "--mib=4", "--rounds=2", "--tensors")
    assert {
        ("heal, tensors", 2, "GB/s"),
        ("most memory, source, tensors", 2, "MiB RSS"),
        ("most memory, fetcher, tensors", 2, "MiB RSS"),
    } <= cases(report)


def test_another_state_has_another_sum() -> None:
    state = state_of(1 << 20)
    before = checksum(state)
    assert checksum(state_of(1 << 20)) == before
    state["weights"]["layer63"][0] += 1
    assert checksum(state) != before
