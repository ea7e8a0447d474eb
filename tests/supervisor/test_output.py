"""Output files: kept short without losing what is written meanwhile, and never a worker's undoing."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from procguard.errors import UsageError
from procguard.supervisor import output
from procguard.supervisor.manager import ProcessManager
from procguard.supervisor.output import (
    LOOK_INTERVAL_S,
    LOOK_INTERVAL_S_MIN,
    Outputs,
    next_look_s,
)
from tests.supervisor.processes import Heard, until

SIZE_MAX = 64 << 10


@pytest.fixture
def outputs() -> Iterator[Outputs]:
    running = Outputs()
    yield running
    running.close()


def write(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def can_collapse(folder: Path) -> bool:
    path = folder / "probe"
    write(path, bytes(8192))
    with path.open("r+b") as file:
        return output._collapse_front(file.fileno(), 4096)


@pytest.mark.parametrize("collapse", [True, False])
def test_a_file_that_grows_too_large_begins_anew(
    outputs: Outputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collapse: bool
) -> None:
    if not collapse:
        monkeypatch.setattr(output, "_collapse_front", lambda descriptor, size: False)
    path = tmp_path / "x.log"
    os.close(outputs.open(path, bytes_max=SIZE_MAX, backups=2))
    written = b""
    for turn in range(4):
        content = b"".join(b"%d %d\n" % (turn, line) for line in range(12_000))
        write(path, content)
        written += content
        outputs.look(1.0)
        kept = [tmp_path / name for name in ("x.log.2", "x.log.1", "x.log")]
        assert written.endswith(b"".join(file.read_bytes() for file in kept if file.exists()))
        assert path.stat().st_size <= 4096
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.log", "x.log.1", "x.log.2"]


def test_without_backups_the_oldest_part_goes(outputs: Outputs, tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    os.close(outputs.open(path, bytes_max=SIZE_MAX, backups=0))
    write(path, bytes(SIZE_MAX) + b"the end")
    outputs.look(1.0)
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_size < 4096 + len(b"the end")


def test_the_tail_reaches_into_the_backup_but_not_into_an_earlier_run(
    outputs: Outputs, tmp_path: Path
) -> None:
    path = tmp_path / "x.log"
    write(path, b"an earlier run's\n")
    os.close(outputs.open(path, bytes_max=SIZE_MAX, backups=1))
    assert outputs.tail(path, 100) == b""
    content = b"".join(b"%d\n" % line for line in range(20_000))
    write(path, content)
    assert outputs.tail(path, 1 << 20) == content
    outputs.look(1.0)
    assert outputs.tail(path, 1 << 20) == content
    assert outputs.tail(path, 50_000) == content[-50_000:]


def test_a_flood_is_rotated_and_not_a_line_is_lost(
    manager: ProcessManager, heard: Heard, tmp_path: Path
) -> None:
    lines = 300_000
    config = {"command": ["seq", str(lines)], "log_rotation": {"max_bytes": 200_000, "backups": 1000}}
    manager.register_worker_config("w0", config)
    manager.start_worker("w0")
    log = manager.state_dir / "logs" / "w0.log"
    heard.end_of("w0")
    until(lambda: log.stat().st_size <= 200_000 and not log.with_name("w0.log.tmp").exists(), "the rotation")
    backups = sorted(log.parent.glob("w0.log.[0-9]*"), key=lambda path: -int(path.suffix[1:]))
    assert backups
    content = b"".join(path.read_bytes() for path in (*backups, log))
    if can_collapse(tmp_path):
        assert content.split() == [b"%d" % line for line in range(1, lines + 1)]
    else:
        assert content.endswith(b"%d\n" % lines)


def test_two_writers_at_full_speed_lose_nothing(outputs: Outputs, tmp_path: Path) -> None:
    if not can_collapse(tmp_path):
        pytest.skip("this file system cannot take a range out of a file")
    path = tmp_path / "x.log"
    descriptor = outputs.open(path, bytes_max=SIZE_MAX, backups=1000)
    flood = subprocess.Popen(["seq", "200000"], stdout=descriptor)
    os.close(descriptor)
    while flood.poll() is None:
        outputs.look(0.01)
    backups = sorted(tmp_path.glob("x.log.[0-9]*"), key=lambda file: -int(file.suffix[1:]))
    content = b"".join(file.read_bytes() for file in (*backups, path))
    assert content.split() == [b"%d" % line for line in range(1, 200_001)]


def test_a_full_disk_costs_the_backup_and_nothing_else(
    outputs: Outputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "x.log"
    os.close(outputs.open(path, bytes_max=SIZE_MAX, backups=2))
    (tmp_path / "x.log.1").write_text("old")
    (tmp_path / "x.log.2").write_text("older")
    write(path, bytes(2 * SIZE_MAX))
    monkeypatch.setattr(output, "_copy", no_space)
    with caplog.at_level(logging.ERROR):
        outputs.look(1.0)
        write(path, bytes(2 * SIZE_MAX))
        outputs.look(1.0)
    assert path.stat().st_size <= 4096
    assert not (tmp_path / "x.log.2").exists()
    assert not (tmp_path / "x.log.tmp").exists()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "could not be rotated (No space left on device)" in said


def test_no_space_for_a_new_file_throws_the_output_away(
    outputs: Outputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_space(path: Path) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output, "_open_for_appending", no_space)
    descriptor = outputs.open(tmp_path / "x.log", bytes_max=SIZE_MAX, backups=2)
    assert os.path.samestat(os.fstat(descriptor), os.stat(os.devnull))
    os.close(descriptor)
    assert "no space for a worker's output" in caplog.text


def test_what_is_no_file_is_written_to_and_left_alone(outputs: Outputs, tmp_path: Path) -> None:
    os.close(outputs.open(Path(os.devnull), bytes_max=4096, backups=1))
    assert outputs.look(1.0) == LOOK_INTERVAL_S
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match=r"log_file: .* cannot be written"):
        outputs.open(tmp_path / "fifo", bytes_max=4096, backups=1)


def test_a_file_that_was_just_cut_is_looked_at_as_often_as_it_grows(outputs: Outputs, tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    os.close(outputs.open(path, bytes_max=SIZE_MAX, backups=0))
    write(path, bytes(4 * SIZE_MAX))
    assert outputs.look(1.0) == pytest.approx(0.25, rel=0.1)


def test_a_file_that_somebody_removed(outputs: Outputs, tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    os.close(outputs.open(path, bytes_max=4096, backups=1))
    path.unlink()
    assert outputs.look(1.0) == LOOK_INTERVAL_S
    assert outputs.tail(path, 100) == b""


def test_it_is_looked_at_again_before_it_is_too_large() -> None:
    assert next_look_s(0, 0, 1.0, 1000) == LOOK_INTERVAL_S
    assert next_look_s(100, 10, 1.0, 1000) == LOOK_INTERVAL_S
    assert next_look_s(600, 800, 1.0, 1000) == 0.5
    assert next_look_s(5000, 800, 1.0, 1000) == LOOK_INTERVAL_S_MIN
    assert next_look_s(100, 10, 0.0, 1000) == LOOK_INTERVAL_S


def test_the_thread_ends_with_it(tmp_path: Path) -> None:
    before = threading.active_count()
    outputs = Outputs()
    os.close(outputs.open(tmp_path / "x.log", bytes_max=4096, backups=1))
    assert threading.active_count() == before + 1
    outputs.close()
    assert threading.active_count() == before
