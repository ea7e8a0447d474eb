"""Failure reports: whole or not at all, bounded in number, and never in the way of a recovery."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from procguard.supervisor.reports import FailureReports


def test_a_report_is_a_json_file(tmp_path: Path) -> None:
    path = FailureReports(tmp_path / "failures").add("w-1", 1_800_000_000.25, {"cause": "died"})
    assert path is not None
    assert path.name == "20270115T080000.250000Z-w-1.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == {
        "version": 1,
        "worker_id": "w-1",
        "at": 1_800_000_000.25,
        "time": "2027-01-15T08:00:00.250000+00:00",
        "cause": "died",
    }
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_newest_is_found_also_by_the_next_guard(tmp_path: Path) -> None:
    reports = FailureReports(tmp_path)
    for at, worker_id in enumerate(["a", "b", "a-b", "a"]):
        reports.add(worker_id, float(at), {"number": at})
    for seen_by in (reports, FailureReports(tmp_path)):
        assert [(seen_by.newest(name) or {}).get("number") for name in ("a", "b", "a-b", "c")] == [
            3,
            1,
            2,
            None,
        ]


def test_the_oldest_go(tmp_path: Path) -> None:
    reports = FailureReports(tmp_path, count_max=3)
    (tmp_path / "notes.txt").write_text("mine")
    for at in range(10):
        reports.add("w", float(at), {})
    assert len(list(tmp_path.glob("*.json"))) == 3
    assert (reports.newest("w") or {})["at"] == 9.0
    assert (tmp_path / "notes.txt").exists()


def test_without_a_directory_the_last_one_is_kept_in_memory() -> None:
    reports = FailureReports(None)
    assert reports.add("w", 1.0, {}) is None
    assert reports.add("w", 2.0, {}) is None
    assert (reports.newest("w") or {})["at"] == 2.0
    reports.forget("w")
    assert reports.newest("w") is None


def test_a_place_that_cannot_be_written_costs_the_file_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "failures").touch()
    reports = FailureReports(tmp_path / "failures")
    assert reports.add("w", 1.0, {}) is None
    assert (reports.newest("w") or {})["at"] == 1.0
    (tmp_path / "failures").unlink()
    assert reports.add("w", 2.0, {}) is not None
    assert (reports.newest("w") or {})["at"] == 2.0
    assert "The report on w's failure is lost" in caplog.text


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    assert FailureReports(tmp_path).add("w", 1.0, {}) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_a_file_that_is_no_report_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "20270115T080000.250000Z-w.json").write_text(content)
    assert FailureReports(tmp_path).newest("w") is None
