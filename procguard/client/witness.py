"""The witness: how the listener learns that its trainer has died, before the memory is torn down.

The trainer makes a ``LifeLine`` and hands its descriptors to the listener it spawns; the listener makes a
``Witness`` of them. A pidfd, the EOF of a pipe and a TCP FIN all come after the kernel has given back the
trainer's memory (measured: 150 ms at 2 GiB), and a forked data loader that holds the descriptors delays
the latter two for as long as it lives. The robust mutex in the life line's page is released at the start
of the exit, in 0.2 ms whatever the size. It only says "look": the proof is what /proc says of the
trainer, and nothing is called a death without it.

============================  ==============================  =======================================
what is seen                  what it means                   told by
============================  ==============================  =======================================
leader exiting, or Z, or X    the process is dying or dead    mutex, at once; a beat's look otherwise
``CoreDumping: 1``            the same; the mutex comes only  a beat's look
                              when the dump is written
the entry is gone             dead and reaped                 pidfd
mutex released, none of it,   the program was replaced        mutex
held by the leader            (exec): no trainer any more
mutex released, none of it,   that thread ended, no more      pidfd, or a beat's look
held by another thread
============================  ==============================  =======================================

The page also carries the *board*: three numbers that the trainer writes without a system call and the
listener reads at each beat, so that progress is seen even while the trainer holds its GIL.

Runs in the trainer and in the listener: standard library only. It decides nothing about the job: that a
trainer which exits with 0 has *left* is for the session to say.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
import select
import threading
import time
from dataclasses import dataclass

from procguard.client.proc_stat import ProcEntry
from procguard.client.robust_mutex import MUTEX_BYTES, RobustMutex, map_shared
from procguard.kernel import ProcStat, reaped_exit_status

_log = logging.getLogger(__name__)

PAGE_BYTES = mmap.PAGESIZE
PROOF_ATTEMPTS_MAX = 20
PROOF_INTERVAL_S = 0.001
HANDOVER_PAUSE_S = 0.01

# The page: the mutex, then 64-bit words on a cache line of their own.
_OWNER, _PHASE, _PROGRESS, _STEP = range(4)
_Words = ctypes.c_uint64 * 4

_NO_OWNER, _OWNED_BY_LEADER, _OWNED_BY_THREAD = range(3)

_LETTER_GONE = "X"
_LETTER_UNKNOWN = "?"


@dataclass(frozen=True, slots=True)
class Death:
    """How the trainer ended; both ``exit_code`` and ``signal`` are None when nobody can tell any more.

    ``core``: a core dump was, or is still being, written. ``exec``: the process lives, its program was
    replaced.
    """

    exit_code: int | None = None
    signal: int | None = None
    core: bool = False
    exec: bool = False

    @classmethod
    def of_exit_status(cls, status: int | None) -> Death:
        """From a wait status: the signal in the low 7 bits, 0x80 for a core dump, the code above."""
        if status is None:
            return cls()
        if status & 0x7F:
            return cls(signal=status & 0x7F, core=bool(status & 0x80))
        return cls(exit_code=status >> 8 & 0xFF)


@dataclass(frozen=True, slots=True)
class TrainerState:
    """What one look at the trainer showed: its scheduler letter (``man 5 proc_pid_stat``; ``?`` where
    there is no /proc), whether a core dump is being written, and the verdict, if there is one."""

    letter: str
    core_dumping: bool = False
    death: Death | None = None


@dataclass(frozen=True, slots=True)
class Board:
    """What the trainer last wrote: ``phase`` in the writer's own numbering, a counter that moves with each
    sign of progress, and the training step."""

    phase: int
    progress: int
    step: int


class SharedBoard:
    """The three words of a ``Board`` in the shared page.

    There is no lock and no version word. Each word is one aligned 64-bit store, never torn. A reader may
    meet a write half-way and see words of two boards; that is harmless, for each is meaningful alone, the
    next beat has them all, and no deadline hangs on a single beat. A writer killed or stopped half-way
    leaves nothing locked. ``phase`` is stored last: who sees the new phase sees the step that goes with it
    (on x86; elsewhere, within the time that a store takes to be seen).
    """

    def __init__(self, words: ctypes.Array[ctypes.c_uint64]) -> None:
        self._words = words

    def write(
        self, *, phase: int | None = None, progress: int | None = None, step: int | None = None
    ) -> None:
        """Store what is given, from any thread; no system call, 0.2 us (measured)."""
        if progress is not None:
            self._words[_PROGRESS] = progress
        if step is not None:
            self._words[_STEP] = step
        if phase is not None:
            self._words[_PHASE] = phase

    def read(self) -> Board:
        """What was last written; zeros before that."""
        words = self._words
        return Board(phase=words[_PHASE], progress=words[_PROGRESS], step=words[_STEP])


class LifeLine:
    """The trainer's end: a page that holds the mutex and the board, and a pidfd of this process.

    To be made before the listener is spawned, and by the trainer's main thread: another thread may end
    while the process lives, after which deaths are seen later, by the pidfd. ``fds`` are for ``pass_fds``.
    Whatever the system lacks is None: without ``memfd`` the pidfd alone decides and the board is private;
    without ``pidfd`` there is no witness, and the listener has only its link's EOF.

    A forked child must not write on the board: it is still its parent's.
    """

    def __init__(self) -> None:
        self.memfd: int | None = None
        self.pidfd = _open_own_pidfd()
        page = _create_page()
        if page is None:
            self.board = SharedBoard(_Words())
            return
        self.memfd, address = page
        words = _Words.from_address(address + MUTEX_BYTES)
        self.board = SharedBoard(words)
        words[_OWNER] = _hold_mutex(address)

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors that the listener needs."""
        return tuple(fd for fd in (self.memfd, self.pidfd) if fd is not None)

    def close(self) -> None:
        """Close the descriptors. The page stays mapped and the mutex held until the process ends; the
        board can still be written."""
        for fd in self.fds:
            os.close(fd)
        self.memfd = self.pidfd = None


def _create_page() -> tuple[int, int] | None:
    """A page of zeros to share: its descriptor, and the address where it is mapped for good."""
    try:
        memfd = os.memfd_create("procguard-life-line")
    except (AttributeError, OSError):  # not Linux, or a sandbox forbids it
        return None
    try:
        os.ftruncate(memfd, PAGE_BYTES)
        return memfd, map_shared(memfd, PAGE_BYTES)
    except OSError:  # out of memory or of mappings
        os.close(memfd)
        return None


def _open_own_pidfd() -> int | None:
    try:
        return os.pidfd_open(os.getpid())
    except (AttributeError, OSError):  # not Linux, older than 5.3, or a sandbox forbids it
        return None


def _hold_mutex(address: int) -> int:
    """Create and take the mutex; the kind of owner it has now."""
    try:
        mutex = RobustMutex.create(address)
    except OSError:  # libc or the kernel has none
        return _NO_OWNER
    mutex.hold()
    return _OWNED_BY_LEADER if threading.get_native_id() == os.getpid() else _OWNED_BY_THREAD


class Witness:
    """The listener's end: tells that the trainer has died, and how.

    Poll ``fds()`` for reading and call ``verdict()`` when any of them is readable; call ``look()`` at each
    beat. Both are for one thread. A witness has no end of its own: it lives as long as its process.
    """

    def __init__(self, memfd: int | None, pidfd: int) -> None:
        self._pidfd = pidfd
        self._death: Death | None = None
        self._exit_status_hidden = False
        self._entry = _open_entry(pidfd)
        self._owner = _NO_OWNER
        self._released = False
        self._wake_fd: int | None = None
        self.board: SharedBoard | None = None
        if memfd is not None:
            self._join_page(memfd)

    def fds(self) -> tuple[int, ...]:
        """What to poll: the mutex's eventfd, and the pidfd as its backstop."""
        return (self._pidfd,) if self._wake_fd is None else (self._wake_fd, self._pidfd)

    def verdict(self) -> Death | None:
        """Look because a descriptor was readable: the death, or None when it was none."""
        if self._wake_fd is not None:
            with contextlib.suppress(BlockingIOError):  # the pidfd was the readable one
                os.eventfd_read(self._wake_fd)
        return self.look().death

    def look(self) -> TrainerState:
        """Look at the trainer now (measured: 16 us). Once there is a death, it stays the same."""
        released = self._released  # before looking: what is seen must be younger than the release
        state = self._examine(released)
        if self._death is None:
            self._death = state.death
        return TrainerState(state.letter, state.core_dumping, self._death)

    def _examine(self, released: bool) -> TrainerState:
        if self._entry is None:
            return self._ask_pidfd()
        try:
            stat = self._entry.stat()
            self._exit_status_hidden |= stat.exit_status is None
            if stat.exiting:
                return TrainerState(stat.letter, death=Death.of_exit_status(self._exit_status_of(stat)))
            if self._entry.core_dumping():
                # The first reading may be older than the signal: read again.
                status = self._exit_status_of(self._entry.stat())
                return TrainerState(stat.letter, True, _death_of_dump(status, self._entry.may_leave_core()))
        except ProcessLookupError:
            return self._gone()
        if released and self._owner == _OWNED_BY_LEADER:
            return TrainerState(stat.letter, death=Death(exec=True))
        if released:
            self._forget_mutex()
        return TrainerState(stat.letter)

    def _exit_status_of(self, stat: ProcStat) -> int | None:
        return None if self._exit_status_hidden else stat.exit_status

    def _ask_pidfd(self) -> TrainerState:
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return self._gone() if poller.poll(0) else TrainerState(_LETTER_UNKNOWN)

    def _gone(self) -> TrainerState:
        return TrainerState(_LETTER_GONE, death=Death.of_exit_status(reaped_exit_status(self._pidfd)))

    def _forget_mutex(self) -> None:
        self._released = False
        _log.warning(
            "the thread that created the Manager has ended while the trainer goes on: its death will be "
            "seen later, by the pidfd; create the Manager in the main thread"
        )

    def _join_page(self, memfd: int) -> None:
        try:
            address = map_shared(memfd, PAGE_BYTES)
        except OSError as error:
            _log.warning("no shared page with the trainer (%s): the pidfd alone tells of its death", error)
            return
        words = _Words.from_address(address + MUTEX_BYTES)
        self.board = SharedBoard(words)
        self._owner = words[_OWNER]
        if self._owner == _NO_OWNER or self._entry is None:
            return
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        waiting = (RobustMutex(address), self._wake_fd, self._entry)
        threading.Thread(target=self._wait_for_owner, args=waiting, name="witness", daemon=True).start()

    def _wait_for_owner(self, mutex: RobustMutex, wake_fd: int, entry: ProcEntry) -> None:
        """The witness thread: block until the mutex is released, wake the loop, end."""
        try:
            mutex.wait_for_owner()
        except OSError as error:
            _log.warning("the trainer's mutex cannot be waited for (%s): the pidfd alone tells", error)
            return
        if self._owner == _OWNED_BY_THREAD:
            _await_leader(entry)
        self._released = True
        os.eventfd_write(wake_fd, 1)
        # Out of the loop's way: a thread that ends holds GIL and CPU for 0.1 ms (measured).
        time.sleep(HANDOVER_PAUSE_S)


def _open_entry(pidfd: int) -> ProcEntry | None:
    try:
        return ProcEntry(pidfd)
    except ProcessLookupError:  # already reaped: the pidfd says so
        return None
    except OSError as error:
        _log.warning("no /proc entry of the trainer (%s): the pidfd alone tells of its death", error)
        return None


def _await_leader(entry: ProcEntry) -> None:
    """Give the leader a moment to follow: of a killed process, any thread may be the first to exit."""
    try:
        for _ in range(PROOF_ATTEMPTS_MAX):
            if entry.stat().exiting:
                return
            time.sleep(PROOF_INTERVAL_S)
    except ProcessLookupError:  # reaped: that is an answer too
        return


def _death_of_dump(status: int | None, core: bool) -> Death:
    """While the dump is written, older kernels do not tell the signal yet, and none adds the core bit."""
    return Death(signal=(status or 0) & 0x7F or None, core=core)
