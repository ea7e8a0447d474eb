"""Memory that is mapped ahead: it holds what it held, and counts as this process's."""

from __future__ import annotations

import mmap
import threading
import time
from contextlib import closing

import pytest

from procguard.client import pages_ahead
from procguard.client.pages_ahead import PagesAhead
from tests.client.fakes import DEADLINE_S

MEBIBYTE = 1 << 20


def resident_pages() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1])


def fresh(size_bytes: int) -> mmap.mmap:
    return mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def test_pages_are_there_before_they_are_filled() -> None:
    memory = fresh(32 * MEBIBYTE)
    before = resident_pages()
    with closing(PagesAhead()) as prepare:
        prepare(memoryview(memory))
        until = time.monotonic() + DEADLINE_S
        while resident_pages() - before < 31 * MEBIBYTE // mmap.PAGESIZE:
            assert time.monotonic() < until
            threading.Event().wait(0.001)


def test_what_is_filled_already_stays_as_it_is() -> None:
    contents = bytes(range(256)) * 4096
    memory = fresh(len(contents))
    memory[:] = contents
    with closing(PagesAhead()) as prepare:
        for start in range(0, len(contents), 100_003):  # of no alignment
            prepare(memoryview(memory)[start : start + 100_003])
        prepare(memoryview(memory)[5:17])
    assert memory[:] == contents


def test_closed_it_holds_no_memory() -> None:
    memory = bytearray(MEBIBYTE)
    with closing(PagesAhead()) as prepare:
        prepare(memoryview(memory))
    memory.clear()  # a BufferError, were it held


def test_where_the_kernel_cannot_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages_ahead, "_MADV_POPULATE_WRITE", 9999)
    memory = fresh(32 * MEBIBYTE)
    before = resident_pages()
    with closing(PagesAhead()) as prepare:
        for start in range(0, len(memory), MEBIBYTE):
            prepare(memoryview(memory)[start : start + MEBIBYTE])
    assert resident_pages() - before < 16 * MEBIBYTE // mmap.PAGESIZE
    assert not any(memory[:MEBIBYTE])
