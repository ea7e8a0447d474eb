"""The robust mutex between real threads and processes: who is told, and that everybody is."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from procguard.client import robust_mutex
from procguard.client.robust_mutex import MUTEX_BYTES, RobustMutex, map_shared

DEADLINE_S = 30.0

HOLDER = """
import os, sys
from procguard.client.robust_mutex import RobustMutex, map_shared
address = map_shared(int(sys.argv[1]), 4096)
for offset in range(0, 4096, 64)[:int(sys.argv[2])]:
    RobustMutex.create(address + offset).hold()
print("held", flush=True)
sys.stdin.read()
"""

WAITER = """
import sys
from procguard.client.robust_mutex import RobustMutex, map_shared
mutex = RobustMutex(map_shared(int(sys.argv[1]), 4096))
print("waiting", flush=True)
mutex.wait_for_owner()
print("told", flush=True)
"""


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("test")
    os.ftruncate(fd, mmap.PAGESIZE)
    yield fd
    os.close(fd)


_spawned: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _no_process_left() -> Iterator[None]:
    yield
    for process in _spawned:
        process.kill()
        process.communicate()
    _spawned.clear()


def spawn(script: str, memfd: int, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(memfd), *arguments],
        pass_fds=[memfd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    _spawned.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() in ("held\n", "waiting\n")
    return process


def waiting_thread(mutex: RobustMutex) -> threading.Thread:
    thread = threading.Thread(target=mutex.wait_for_owner, daemon=True)
    thread.start()
    return thread


def assert_told(thread: threading.Thread) -> None:
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "normal exit"])
def test_the_end_of_the_holder_is_told(memfd: int, kill: bool) -> None:
    holder = spawn(HOLDER, memfd, "1")
    waiter = waiting_thread(RobustMutex(map_shared(memfd, mmap.PAGESIZE)))
    if kill:
        holder.kill()
    holder.communicate()
    assert_told(waiter)


def test_every_mutex_of_a_process_is_released(memfd: int) -> None:
    holder = spawn(HOLDER, memfd, "8")
    address = map_shared(memfd, mmap.PAGESIZE)
    waiters = [waiting_thread(RobustMutex(address + n * MUTEX_BYTES)) for n in range(8)]
    holder.kill()
    holder.communicate()
    for waiter in waiters:
        assert_told(waiter)


def test_all_waiters_are_told_and_so_are_those_who_come_later(memfd: int) -> None:
    holder = spawn(HOLDER, memfd, "1")
    mutex = RobustMutex(map_shared(memfd, mmap.PAGESIZE))
    other_process = spawn(WAITER, memfd)
    threads = [waiting_thread(mutex) for _ in range(3)]
    holder.kill()
    holder.communicate()
    for thread in threads:
        assert_told(thread)
    assert other_process.communicate(timeout=DEADLINE_S)[0] == "told\n"
    assert_told(waiting_thread(mutex))


def test_a_killed_waiter_takes_nothing_with_it(memfd: int) -> None:
    holder = spawn(HOLDER, memfd, "1")
    for _ in range(2):
        waiter = spawn(WAITER, memfd)
        waiter.kill()
        assert waiter.communicate()[0] == ""
    thread = waiting_thread(RobustMutex(map_shared(memfd, mmap.PAGESIZE)))
    holder.kill()
    holder.communicate()
    assert_told(thread)


def test_the_end_of_a_holding_thread_is_told(memfd: int) -> None:
    mutex = RobustMutex.create(map_shared(memfd, mmap.PAGESIZE))
    held, end = threading.Event(), threading.Event()

    def hold() -> None:
        mutex.hold()
        held.set()
        end.wait(DEADLINE_S)

    threading.Thread(target=hold, daemon=True).start()
    assert held.wait(DEADLINE_S)
    waiter = waiting_thread(mutex)
    assert waiter.is_alive()
    end.set()
    assert_told(waiter)


def test_a_mutex_that_nobody_holds_cannot_be_waited_for(memfd: int) -> None:
    mutex = RobustMutex.create(map_shared(memfd, mmap.PAGESIZE))
    with pytest.raises(OSError) as caught:
        mutex.wait_for_owner()
    assert caught.value.errno == errno.EINVAL


def test_a_file_that_is_too_short_is_not_mapped(memfd: int) -> None:
    with pytest.raises(OSError, match="shorter than"):
        map_shared(memfd, mmap.PAGESIZE + 1)


def test_what_cannot_be_mapped_says_why() -> None:
    with open(sys.executable, "rb") as read_only, pytest.raises(PermissionError):
        map_shared(read_only.fileno(), mmap.PAGESIZE)


def test_a_libc_without_robust_mutexes(memfd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    address = map_shared(memfd, mmap.PAGESIZE)
    monkeypatch.setattr(robust_mutex, "_libc", object())
    with pytest.raises(OSError) as caught:
        RobustMutex.create(address)
    assert caught.value.errno == errno.ENOTSUP
