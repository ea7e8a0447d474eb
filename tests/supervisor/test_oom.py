"""Kills for memory, as the kernel counts them."""

from __future__ import annotations

from pathlib import Path

from procguard.supervisor.oom import OomWatch, counter_files


def test_a_count_that_rises(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\noom 3\noom_kill 3\n")
    watch = OomWatch([tmp_path / "missing", tmp_path, events])
    assert not watch.has_risen()
    events.write_text("low 0\noom 4\noom_kill 4\n")
    assert watch.has_risen()
    assert not watch.has_risen()
    events.write_text("")
    assert not watch.has_risen()
    watch.close()
    watch.close()


def test_nobody_counts(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("oom_kill many\n")
    watch = OomWatch([tmp_path / "other", tmp_path])
    assert not watch.has_risen()
    watch.close()


def test_where_it_counts(tmp_path: Path) -> None:
    cgroups = tmp_path / "cgroup"
    cgroups.write_text("9:name=systemd:/\n4:cpu,memory:/job\n0::/unified\n")
    assert [str(file) for file in counter_files(cgroups)] == [
        "/sys/fs/cgroup/memory/job/memory.oom_control",
        "/sys/fs/cgroup/unified/memory.events",
        "/proc/vmstat",
    ]
    assert [str(file) for file in counter_files(tmp_path / "missing")] == ["/proc/vmstat"]
