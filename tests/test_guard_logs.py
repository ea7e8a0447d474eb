"""Following files that others write, cut, copy and rename: nothing is lost, nothing comes twice."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from procguard.guard_logs import LOST_LOOKS_MAX, Following, WholeLines, rotated


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "w.log"


@pytest.fixture
def following(log: Path) -> Iterator[Following]:
    log.write_bytes(b"")
    found = Following(log)
    yield found
    found.close()


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def copy_to_backup(path: Path, content: bytes) -> None:
    unfinished = path.with_name("unfinished")
    unfinished.write_bytes(content)
    for number in range(8, 0, -1):
        if rotated(path, number).exists():
            rotated(path, number).rename(rotated(path, number + 1))
    unfinished.rename(rotated(path))


def cut_all(path: Path) -> None:
    """Copied, and then cut to nothing."""
    whole = path.read_bytes()
    os.truncate(path, 0)
    copy_to_backup(path, whole)


def cut_front(path: Path, size: int) -> None:
    """The front is copied and taken out, as a file system can do it; the copy gets its name afterwards."""
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.write(whole[size:])
        file.truncate()
    copy_to_backup(path, whole[:size])


# --- the tail


def tail(path: Path, count: int) -> bytes:
    following = Following(path)
    lines = following.tail(count)
    following.close()
    return lines


@pytest.mark.parametrize(
    ("content", "count", "lines"),
    [
        (b"", 5, b""),
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\nb\nc\n", 9, b"a\nb\nc\n"),
        (b"a\nb\n", 0, b""),
        (b"a\n10%\r20%\r30%\nb\n", 2, b"10%\r20%\r30%\nb\n"),
        (b"\n\n\n", 2, b"\n\n"),
    ],
)
def test_the_last_lines(log: Path, content: bytes, count: int, lines: bytes) -> None:
    log.write_bytes(content)
    assert tail(log, count) == lines


def test_the_last_lines_of_a_great_file(log: Path) -> None:
    log.write_bytes(b"".join(b"%06d\n" % number for number in range(100_000)))
    assert tail(log, 20_000) == b"".join(b"%06d\n" % number for number in range(80_000, 100_000))


def test_a_file_that_has_just_begun_anew_is_continued_backwards(log: Path) -> None:
    log.write_bytes(b"3\n4\n")
    rotated(log).write_bytes(b"0\n1\n2\n")
    assert tail(log, 4) == b"1\n2\n3\n4\n"
    assert tail(log, 1) == b"4\n"


def test_what_is_no_file_has_no_lines(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "nothing", Path("/dev/zero")):
        assert tail(path, 5) == b""
        following = Following(path)
        assert following.read() == b""
        following.close()


# --- following


def test_what_is_added(log: Path, following: Following) -> None:
    assert following.read() == b""
    append(log, b"one\n")
    assert following.read() == b"one\n"
    assert following.read() == b""
    append(log, b"half")
    assert following.read() == b"half"


def test_it_begins_where_the_tail_ended(log: Path) -> None:
    log.write_bytes(b"old\n" * 100)
    following = Following(log)
    assert following.tail(3) == b"old\n" * 3
    append(log, b"new\n")
    assert following.read() == b"new\n"
    following.close()


def test_a_file_that_comes_later(tmp_path: Path) -> None:
    following = Following(tmp_path / "later.log")
    assert following.read() == b""
    append(tmp_path / "later.log", b"here\n")
    assert following.read() == b"here\n"
    following.close()


def test_cut_to_nothing(log: Path, following: Following) -> None:
    append(log, b"one\n")
    following.read()
    append(log, b"unread\n")
    cut_all(log)
    append(log, b"two\n")
    assert following.read() == b"unread\ntwo\n"


def test_cut_and_grown_past_the_old_place(log: Path, following: Following) -> None:
    append(log, b"one\n")
    following.read()
    cut_all(log)
    append(log, b"two, and more than there was before\n")
    assert following.read() == b"two, and more than there was before\n"


@pytest.mark.parametrize("size", [1, 4, 5, 8])
def test_cut_at_the_front(log: Path, following: Following, size: int) -> None:
    append(log, b"one\ntwo\n")
    assert following.read() == b"one\ntwo\n"
    append(log, b"three\n")
    cut_front(log, size)
    append(log, b"four\n")
    assert following.read() == b"three\nfour\n"
    append(log, b"five\n")
    assert following.read() == b"five\n"


def test_the_copy_gets_its_name_after_the_cut(log: Path, following: Following) -> None:
    append(log, b"one\ntwo\n")
    following.read()
    append(log, b"three\n")
    cut_front(log, 8)
    copy = rotated(log).rename(log.with_name("unfinished"))
    assert following.read() == b""
    copy.rename(rotated(log))
    assert following.read() == b"three\n"


def test_cut_without_a_copy(log: Path, following: Following) -> None:
    append(log, b"one\ntwo\n")
    following.read()
    os.truncate(log, 0)
    append(log, b"three\n")
    assert b"".join(following.read() for _ in range(LOST_LOOKS_MAX + 1)) == b"three\n"


def test_renamed_and_made_anew(log: Path, following: Following) -> None:
    append(log, b"one\n")
    following.read()
    append(log, b"two\n")
    log.rename(rotated(log))
    log.write_bytes(b"three\n")
    assert following.read() + following.read() == b"two\nthree\n"


def test_removed_and_made_anew(log: Path, following: Following) -> None:
    append(log, b"one\n")
    following.read()
    log.unlink()
    assert following.read() == b""
    log.write_bytes(b"two\n")
    assert following.read() == b"two\n"


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_between_two_looks_each_line_comes_once(
    log: Path, following: Following, seed: int
) -> None:
    chance = random.Random(seed)
    written, read = b"", b""
    for number in range(300):
        line = b"%d %s\n" % (number, b"x" * chance.randrange(40))
        append(log, line)
        written += line
        if chance.random() < 0.05:
            if chance.random() < 0.5:
                cut_all(log)
            else:
                cut_front(log, chance.randrange(log.stat().st_size) + 1)
            if chance.random() < 0.5:
                read += following.read()
        elif chance.random() < 0.3:
            read += following.read()
    assert read + following.read() == written, f"seed {seed}"


def test_lines_are_whole() -> None:
    lines = WholeLines()
    assert lines.add(b"one\ntw") == [b"one"]
    assert lines.add(b"o") == []
    assert lines.add(b"\n\nthr") == [b"two", b""]
    assert lines.rest() == b"thr"
    assert lines.rest() == b""
