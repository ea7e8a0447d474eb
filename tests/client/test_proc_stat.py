"""Reading /proc: the parsers on real lines, the entry on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from procguard.client.proc_stat import ProcEntry, parse_core_dumping, pid_of
from procguard.kernel import PF_EXITING, boot_id, parse_stat, read_stat, reaped_exit_status


def stat_line(
    command: str = "python3",
    letter: str = "S",
    flags: int = 0x400000,
    start_code: int = 4194304,
    status: int = 0,
) -> bytes:
    """A line of 52 fields, as the kernel writes it."""
    fields = ["0"] * 49
    fields[3 - 3], fields[9 - 3], fields[22 - 3] = letter, str(flags), "109673"
    fields[26 - 3], fields[51 - 3] = str(start_code), "17"
    return f"4242 ({command}) {' '.join(fields)} {status}\n".encode()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def pidfd(child: subprocess.Popen[bytes]) -> Iterator[int]:
    fd = os.pidfd_open(child.pid)
    yield fd
    os.close(fd)


def await_end(child: subprocess.Popen[bytes]) -> None:
    """Kill it and wait until it is a zombie, without reaping it."""
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


def test_a_living_process() -> None:
    stat = parse_stat(stat_line())
    assert (stat.letter, stat.start_ticks, stat.exit_status, stat.exiting) == ("S", 109673, 0, False)


@pytest.mark.parametrize("command", ["a b", "evil) R 1 1", "((", "))", ""])
def test_a_command_name_cannot_shift_the_fields(command: str) -> None:
    assert parse_stat(stat_line(command, status=139)) == parse_stat(stat_line(status=139))


@pytest.mark.parametrize(
    ("letter", "flags"), [("R", 0x400000 | PF_EXITING), ("Z", 0x400000), ("X", 0x400000), ("D", PF_EXITING)]
)
def test_an_exiting_process(letter: str, flags: int) -> None:
    stat = parse_stat(stat_line(letter=letter, flags=flags, status=9))
    assert stat.exiting
    assert stat.exit_status == 9


def test_a_hidden_exit_status_is_told_from_zero() -> None:
    assert parse_stat(stat_line(start_code=1)).exit_status is None
    assert parse_stat(stat_line(start_code=0)).exit_status == 0


@pytest.mark.parametrize(
    ("lines", "dumping"),
    [
        ("Name:\tx\nCoreDumping:\t1\nTHP_enabled:\t1\n", True),
        ("Name:\tx\nCoreDumping:\t0\nTHP_enabled:\t1\n", False),
        ("Name:\tCoreDumping:\\t1\nThreads:\t1\n", False),
    ],
)
def test_core_dumping(lines: str, dumping: bool) -> None:
    assert parse_core_dumping(lines.encode()) is dumping


def test_the_entry_of_a_process_through_its_pidfd(child: subprocess.Popen[bytes], pidfd: int) -> None:
    entry = ProcEntry(pidfd)
    assert entry.pid == pid_of(pidfd) == child.pid
    assert not entry.stat().exiting
    assert not entry.core_dumping()
    assert entry.stat().start_ticks == read_stat(child.pid).start_ticks


def test_a_zombie_is_exiting_and_tells_its_status(child: subprocess.Popen[bytes], pidfd: int) -> None:
    entry = ProcEntry(pidfd)
    await_end(child)
    assert entry.stat().letter == "Z"
    assert entry.stat().exiting
    assert entry.stat().exit_status == signal.SIGKILL
    assert reaped_exit_status(pidfd) is None


def test_an_entry_outlives_nobody(child: subprocess.Popen[bytes], pidfd: int) -> None:
    entry = ProcEntry(pidfd)
    child.kill()
    child.wait()
    with pytest.raises(ProcessLookupError):
        entry.stat()
    with pytest.raises(ProcessLookupError):
        entry.core_dumping()
    with pytest.raises(ProcessLookupError):
        ProcEntry(pidfd)
    assert reaped_exit_status(pidfd) in (signal.SIGKILL, None)  # None before Linux 6.15


def test_a_descriptor_that_is_no_pidfd() -> None:
    with open(os.devnull) as file, pytest.raises(OSError, match="no pidfd"):
        ProcEntry(file.fileno())


def test_reading_what_is_not_there_is_an_os_error() -> None:
    with pytest.raises(OSError):
        read_stat(0)


def test_the_boot_id_is_a_uuid_and_stays() -> None:
    assert len(boot_id()) == 36
    assert boot_id() == boot_id()
