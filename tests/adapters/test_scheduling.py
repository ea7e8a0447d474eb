"""Prompt threads: asking changes the slice and nothing else, and never raises."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from procguard.adapters import scheduling
from procguard.adapters.scheduling import SLICE_NS, run_promptly


def in_a_thread(call: object) -> list[object]:
    """What ``call`` returns in a thread of its own, whose scheduling nobody else shares."""
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(call()))  # type: ignore[operator]
    thread.start()
    thread.join()
    return results


def slice_ns() -> int:
    for line in Path("/proc/thread-self/sched").read_text().splitlines():
        if line.startswith("se.slice"):
            return int(line.split(":")[1])
    return 0


def test_the_slice_becomes_short_and_priority_stays() -> None:
    def ask() -> tuple[bool, int, int, int]:
        agreed = run_promptly()
        return agreed, slice_ns(), os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)

    ((agreed, slice_now, nice, policy),) = in_a_thread(ask)
    if not agreed:
        pytest.skip("this kernel grants no short slices")
    assert slice_now in (0, SLICE_NS)  # 0: it does not show them
    assert (nice, policy) == (os.getpriority(os.PRIO_PROCESS, 0), os.SCHED_OTHER)


def test_on_another_machine_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling.platform, "machine", lambda: "riscv64")
    assert in_a_thread(run_promptly) == [False]


def test_where_it_is_forbidden_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(scheduling.os, "getpriority", forbidden)
    assert in_a_thread(run_promptly) == [False]
