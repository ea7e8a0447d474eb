"""The state directory: a greater epoch at every start, and what happens when it cannot be used.

The tests may run as root, whom no permission stops: what is read-only or full here is so for everybody.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from procguard.errors import StateError
from procguard.lighthouse.epoch_file import EpochFile, default_directory, first_epoch
from procguard.messages import EPOCH_MAX

CLOCK_MS = 1_790_000_000_000

Start = Callable[..., EpochFile]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a lighthouse's memory, as after the end of the one before."""
    running: list[EpochFile] = []

    def start(clock_ms: int = CLOCK_MS) -> EpochFile:
        while running:
            running.pop().close()
        running.append(EpochFile(tmp_path / "state", clock_ms))
        return running[0]

    yield start
    while running:
        running.pop().close()


def stored(memory: EpochFile) -> object:
    return json.loads(memory.path.read_text(encoding="utf-8"))


# --- the epoch


def test_the_first_epoch_is_the_clocks(start: Start) -> None:
    memory = start()
    assert (memory.epoch, memory.restarted, memory.set_aside) == (CLOCK_MS, False, None)
    assert stored(memory) == {"version": 1, "epoch": CLOCK_MS}


def test_each_start_has_a_greater_epoch(start: Start) -> None:
    assert [start().epoch for _ in range(3)] == [CLOCK_MS, CLOCK_MS + 1, CLOCK_MS + 2]
    assert start(CLOCK_MS - 86_400_000).epoch == CLOCK_MS + 3
    memory = start(CLOCK_MS + 50)
    assert (memory.epoch, memory.restarted) == (CLOCK_MS + 50, True)


def test_a_raised_epoch_is_remembered(start: Start) -> None:
    start().persist(CLOCK_MS + 1_000)
    assert start().epoch == CLOCK_MS + 1_001


@pytest.mark.parametrize("clock_ms", [-5, 0, EPOCH_MAX, EPOCH_MAX * 2])
def test_an_absurd_clock_counts_for_nothing(clock_ms: int) -> None:
    assert first_epoch(clock_ms) == 1
    assert first_epoch(clock_ms, stored=41) == 42


# --- files that cannot be understood

BROKEN = {
    "empty": b"",
    "cut off": b'{"version": 1, "epo',
    "not text": b"\x00\xff\xfe\x80",
    "not an object": b"17",
    "no version": b'{"epoch": 17}',
    "a version that is true": b'{"version": true, "epoch": 17}',
    "no epoch": b'{"version": 1}',
    "an epoch that is text": b'{"version": 1, "epoch": "17"}',
    "an epoch that is not whole": b'{"version": 1, "epoch": 1.5}',
    "an epoch below any": b'{"version": 1, "epoch": 0}',
    "an epoch without a next one": json.dumps({"version": 1, "epoch": EPOCH_MAX}).encode(),
    "nested for ever": b"[" * 4096,
    "too long": b'{"version": 1, "epoch": 17}' + b" " * 5000 + b"x",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_set_aside_never_overwritten(start: Start, content: bytes) -> None:
    path = start().path
    path.write_bytes(content)
    memory = start()
    assert memory.set_aside is not None
    assert memory.set_aside.parent == path.parent
    assert memory.set_aside.read_bytes() == content
    assert (memory.epoch, memory.restarted) == (CLOCK_MS, True)
    assert stored(memory) == {"version": 1, "epoch": CLOCK_MS}


def test_two_broken_files_are_both_kept(start: Start) -> None:
    kept = []
    for content in ("first", "second"):
        start().path.write_text(content, encoding="utf-8")
        kept.append(start().set_aside)
    assert [path and path.read_text(encoding="utf-8") for path in kept] == ["first", "second"]


def test_a_file_of_the_future_is_left_alone(start: Start) -> None:
    path = start().path
    content = '{"version": 2, "epoch": 5, "more": 1}'
    path.write_text(content, encoding="utf-8")
    with pytest.raises(StateError, match="newer ProcGuard") as caught:
        start()
    assert str(path) in str(caught.value)
    assert "--state-dir" in str(caught.value)
    assert path.read_text(encoding="utf-8") == content
    path.unlink()
    assert start().epoch == CLOCK_MS  # the refusal left no lock behind


def test_nobody_needs_to_write_to_a_fifo(start: Start) -> None:
    path = start().path
    path.unlink()
    os.mkfifo(path)
    assert start().set_aside is not None


# --- directories that cannot be used


def refusal(directory: Path) -> str:
    with pytest.raises(StateError) as caught:
        EpochFile(directory, CLOCK_MS)
    assert str(caught.value).startswith(f"{directory}: ")
    assert "--state-dir" in str(caught.value)
    return str(caught.value)


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "File exists" in refusal(tmp_path / "file")
    assert "Not a directory" in refusal(tmp_path / "file" / "under")


def test_where_nobody_can_write() -> None:
    refusal(Path("/proc/1/procguard"))  # not even root makes a directory in /proc


def test_a_full_disk_is_named(start: Start) -> None:
    memory = start()
    memory.path.with_suffix(".tmp").symlink_to("/dev/full")
    with pytest.raises(StateError, match="No space left on device"):
        memory.persist(CLOCK_MS + 1)
    assert stored(memory) == {"version": 1, "epoch": CLOCK_MS}


def test_two_lighthouses_do_not_share_a_directory(start: Start) -> None:
    memory = start()
    assert f"in use by another lighthouse (pid {os.getpid()})" in refusal(memory.path.parent)
    assert stored(memory) == {"version": 1, "epoch": CLOCK_MS}


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from procguard.lighthouse.epoch_file import EpochFile;"
        f"EpochFile(Path(sys.argv[1]), {CLOCK_MS}); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60, check=False)
    assert killed.returncode == -9
    memory = EpochFile(tmp_path, CLOCK_MS)
    memory.close()
    assert (memory.epoch, memory.restarted) == (CLOCK_MS + 1, True)


# --- the default directory


@pytest.mark.parametrize(
    ("environ", "home", "directory"),
    [
        ({"XDG_STATE_HOME": "/x"}, "/home/ada", "/x/procguard/lighthouse-29510"),
        ({}, "/home/ada", "/home/ada/.local/state/procguard/lighthouse-29510"),
        ({"XDG_STATE_HOME": "relative"}, "/home/ada", "/home/ada/.local/state/procguard/lighthouse-29510"),
        ({"XDG_STATE_HOME": ""}, "/home/ada", "/home/ada/.local/state/procguard/lighthouse-29510"),
        ({}, "no-home", None),
    ],
)
def test_the_default_directory_is_the_users(
    environ: dict[str, str], home: str, directory: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    assert default_directory(29510, environ) == (directory and Path(directory))
