"""The state file: whole at every moment, set aside when broken, one guard's alone.

The tests may run as root, whom no permission stops: what is read-only or full here is so for everybody.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from procguard.errors import StateError
from procguard.supervisor.plan import Journal, Step
from procguard.supervisor.restarts import Restarts
from procguard.supervisor.state_file import (
    FILE_BYTES_MAX,
    Document,
    GaveUp,
    StateFile,
    WorkerRecord,
    encoded,
)
from procguard.supervisor.tasks import Move, Task

FULL = Document(
    boot_id="boot",
    workers={
        "a": WorkerRecord(False, "why", True, 12.5, Restarts((1.0, 2.5), 2), {"note": {"deep": [1, None]}})
    },
    tasks={"t1": Task({"shard": 3}, "a"), "t2": Task(orphan_of="a"), "t3": Task(completed=True)},
    task_queue=("t2",),
    recovery=Journal(
        number=4,
        failed=("a",),
        stop=("a", "b"),
        steps=(Step.CHECKPOINT, Step.STOP, Step.RESTART),
        at=1,
        attempt=2,
        moves=(Move("t2", "a", None),),
        left_out=(("a", "why"),),
        context={"living": ["b"]},
    ),
    gave_up=GaveUp("why", 1, 1.7e9),
    chains_count=4,
)


class Read:
    """What reading a file yields, and what is said of it."""

    def __init__(self, path: Path) -> None:
        self.asides: list[Path] = []
        self.wrongs: list[str] = []
        self.document = StateFile(path).read(self.on_broken)

    def on_broken(self, aside: Path, wrong: str) -> None:
        self.asides.append(aside)
        self.wrongs.append(wrong)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "er" / "state.json"


def test_all_of_it_comes_back(path: Path) -> None:
    StateFile(path).write(encoded(FULL), durable=True)
    assert Read(path).document == FULL
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == [path.name]


def test_there_may_be_none(path: Path) -> None:
    assert Read(path).document is None


BROKEN = {
    "empty": b"",
    "cut off": encoded(FULL)[:-200],
    "not text": b"\x00\xff\xfe\x80",
    "not an object": b"17",
    "no version": b"{}",
    "a version that is true": b'{"version": true}',
    "version 0": b'{"version": 0}',
    "nested for ever": b"[" * 100_000,
    "a worker that is a number": b'{"version": 1, "workers": {"a": 3}}',
    "a time that is none": b'{"version": 1, "workers": {"a": {"start_due": NaN}}}',
    "a task on two places": b'{"version": 1, "tasks": {"t": {"worker_id": "a"}}, "task_queue": ["t"]}',
    "a task nowhere": b'{"version": 1, "tasks": {"t": {}}}',
    "a queue of strangers": b'{"version": 1, "task_queue": ["t"]}',
    "a step that nobody knows": encoded(FULL).replace(b'"checkpoint"', b'"check"'),
    "a step beyond the last": encoded(FULL).replace(b'"at": 1,', b'"at": 9,'),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_set_aside(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    read = Read(path)
    assert read.document is None
    assert read.asides == [path.with_name("state.json.broken-1")]
    assert read.asides[0].read_bytes() == content
    assert read.wrongs[0]
    assert not path.exists()


def test_several_broken_files_are_all_kept(path: Path) -> None:
    path.parent.mkdir(parents=True)
    for content in ("first", "second"):
        path.write_text(content, encoding="utf-8")
        Read(path)
    kept = [path.with_name(f"state.json.broken-{n}").read_text(encoding="utf-8") for n in (1, 2)]
    assert kept == ["first", "second"]


def test_a_file_too_long_is_not_read_to_its_end(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with open(path, "wb") as file:
        file.truncate(FILE_BYTES_MAX + 1)  # a hole: nothing is written
    try:
        assert Read(path).wrongs == [f"longer than {FILE_BYTES_MAX} bytes"]
    finally:
        path.with_name("state.json.broken-1").unlink()


def test_a_newer_version_is_left_alone(path: Path) -> None:
    path.parent.mkdir(parents=True)
    content = b'{"version": 2, "workers": {"a": {"new": 1}}}'
    path.write_bytes(content)
    with pytest.raises(StateError, match=r"written by a newer ProcGuard \(version 2 .* this one knows 1\)"):
        Read(path)
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


def test_a_write_that_fails_leaves_the_old_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = StateFile(path)
    file.write(encoded(FULL), durable=False)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        StateError, match=r"cannot be written \(No space left on device\); state_file must name"
    ):
        file.write(encoded(Document()), durable=False)
    monkeypatch.undo()
    assert Read(path).document == FULL


def test_a_really_full_disk() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("/dev/full is missing")
    with pytest.raises(StateError, match="is not a file"):
        Read(Path("/dev/full"))
    assert os.path.exists("/dev/full")


def test_a_directory_or_a_fifo_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "."):
        with pytest.raises(StateError, match="is not a file"):
            Read(tmp_path / name)


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StateError, match="cannot be kept here"):
        StateFile(tmp_path / "file" / "state.json")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    StateFile(tmp_path / "link").write(encoded(FULL), durable=False)
    assert (tmp_path / "link").is_symlink()
    assert Read(tmp_path / "target").document == FULL


def test_one_guard_at_a_time(path: Path) -> None:
    first, second = StateFile(path), StateFile(path)
    first.lock()
    first.lock()
    with pytest.raises(StateError, match=rf"in use by another guard \(pid {os.getpid()}\)"):
        second.lock()
    first.write(encoded(FULL), durable=False)  # the lock outlives the file that is replaced
    with pytest.raises(StateError, match="in use"):
        second.lock()
    first.close()
    second.lock()
    second.close()
    second.close()


def test_a_killed_guard_leaves_no_lock(path: Path) -> None:
    code = (
        "import sys, os, signal; from procguard.supervisor.state_file import StateFile;"
        "StateFile(sys.argv[1]).lock(); print('locked', flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        file = StateFile(path)
        with pytest.raises(StateError, match=f"pid {holder.pid}"):
            file.lock()
        holder.kill()
        holder.wait()
    file.lock()
    file.close()
