"""Pid files: whole or not at all, and never another's."""

from __future__ import annotations

from pathlib import Path

import pytest

from procguard.errors import UsageError
from procguard.supervisor.pid_file import PidFile


def test_it_is_there_from_start_to_end(tmp_path: Path) -> None:
    file = PidFile("w0", tmp_path / "pid")
    file.prepare()
    assert not (tmp_path / "pid").exists()
    file.write(7)
    assert (tmp_path / "pid").read_text() == "7\n"
    file.remove(7)
    file.remove(7)
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_about_another_process_stays(tmp_path: Path) -> None:
    file = PidFile("w0", tmp_path / "pid")
    file.write(7)
    file.remove(8)
    assert (tmp_path / "pid").read_text() == "7\n"


def test_a_start_that_fails_leaves_nothing_new(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text("of somebody\n")
    file = PidFile("w0", tmp_path / "pid")
    file.prepare()
    file.withdraw()
    assert [path.name for path in tmp_path.iterdir()] == ["pid"]


def test_one_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"w0: pid_file: .* name a file in a directory"):
        PidFile("w0", tmp_path / "missing" / "pid").prepare()
