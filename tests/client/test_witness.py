"""The witness on real deaths: every way a trainer can end, and what must not be taken for an end."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from procguard.client import witness as witness_module
from procguard.client.proc_stat import ProcEntry
from procguard.client.robust_mutex import RobustMutex
from procguard.client.witness import Board, Death, LifeLine, TrainerState, Witness
from procguard.kernel import PF_EXITING, ProcStat

DEADLINE_MS = 30_000

# A trainer: hands its life line over, then does what the test says; "go()" waits for the test's word.
TRAINER = """
import ctypes, os, resource, signal, socket, sys, threading
from procguard.client.witness import LifeLine

link = socket.socket(fileno=int(sys.argv[1]))

def go():
    return link.recv(1)

def hand_over(line):
    socket.send_fds(link, [b"x"], line.fds)
"""

MAIN_THREAD = "hand_over(LifeLine())\n"

# A listener that waits for the mutex alone, and says what it was told.
LISTENER = """
import select, sys
from procguard.client.witness import Witness
witness = Witness(int(sys.argv[1]), int(sys.argv[2]))
poller = select.poll()
poller.register(witness.fds()[0], select.POLLIN)
print("ready", flush=True)
poller.poll()
print(witness.verdict(), flush=True)
"""


class Trainer:
    """A real process with a life line, and the test's end of it."""

    def __init__(self, body: str, cwd: Path | None = None) -> None:
        self.link, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", TRAINER + body, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=cwd,
            )
        self.link.settimeout(DEADLINE_MS / 1000)
        _, (self.memfd, self.pidfd), _, _ = socket.recv_fds(self.link, 1, 2)

    def go(self) -> None:
        self.link.send(b"g")

    def kill(self) -> None:
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.kill()
        self.process.kill()
        self.process.wait()
        self.link.close()
        os.close(self.memfd)
        os.close(self.pidfd)


StartTrainer = Callable[..., Trainer]


@pytest.fixture
def start_trainer() -> Iterator[StartTrainer]:
    with contextlib.ExitStack() as stack:

        def start(body: str, cwd: Path | None = None) -> Trainer:
            trainer = Trainer(body, cwd)
            stack.callback(trainer.close)
            return trainer

        yield start


@pytest.fixture
def start_listener() -> Iterator[Callable[[Trainer], subprocess.Popen[str]]]:
    with contextlib.ExitStack() as stack:

        def start(trainer: Trainer) -> subprocess.Popen[str]:
            fds = (trainer.memfd, trainer.pidfd)
            listener = subprocess.Popen(
                [sys.executable, "-c", LISTENER, *map(str, fds)],
                pass_fds=fds,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(listener.communicate)
            stack.callback(listener.kill)
            assert listener.stdout is not None
            assert listener.stdout.readline() == "ready\n"
            return listener

        yield start


def await_readable(fd: int) -> None:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    assert poller.poll(DEADLINE_MS), "the witness was not told"


def await_mutex(witness: Witness) -> Death | None:
    """The verdict when the mutex has told; the pidfd is not polled, so it cannot stand in."""
    wake_fd, _ = witness.fds()
    await_readable(wake_fd)
    return witness.verdict()


def await_pidfd(witness: Witness) -> Death | None:
    await_readable(witness.fds()[-1])
    return witness.verdict()


# --- every way to end ---------------------------------------------------------------------------

ENDINGS = {
    "end of the program": ("go()", Death(exit_code=0)),
    "sys.exit": ("go(); sys.exit(3)", Death(exit_code=3)),
    "os._exit": ("go(); os._exit(7)", Death(exit_code=7)),
    "uncaught exception": ("sys.stderr = None; go(); 1 / 0", Death(exit_code=1)),
    "SIGKILL": ("go(); os.kill(os.getpid(), signal.SIGKILL)", Death(signal=signal.SIGKILL)),
    "SIGTERM": ("go(); os.kill(os.getpid(), signal.SIGTERM)", Death(signal=signal.SIGTERM)),
    "a real SIGSEGV": ("go(); ctypes.string_at(0)", Death(signal=signal.SIGSEGV)),
    "os.abort": ("go(); os.abort()", Death(signal=signal.SIGABRT)),
    "os._exit by a thread": (
        "threading.Thread(target=lambda: (go(), os._exit(9))).start(); signal.pause()",
        Death(exit_code=9),
    ),
    "SIGSEGV in a thread": (
        "threading.Thread(target=lambda: (go(), ctypes.string_at(0))).start(); signal.pause()",
        Death(signal=signal.SIGSEGV),
    ),
    "SIGSEGV while threads run": (
        "[threading.Thread(target=threading.Event().wait).start() for _ in range(8)]\n"
        "go(); ctypes.string_at(0)",
        Death(signal=signal.SIGSEGV),
    ),
    "of a session leader": ("os.setsid(); go(); os._exit(7)", Death(exit_code=7)),
    "exec": ("go(); os.execlp('sleep', 'sleep', '1000')", Death(exec=True)),
}
NO_CORE = "resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))\n"


@pytest.mark.parametrize(("body", "death"), ENDINGS.values(), ids=ENDINGS.keys())
def test_the_mutex_tells_how_the_trainer_ended(start_trainer: StartTrainer, body: str, death: Death) -> None:
    trainer = start_trainer(NO_CORE + MAIN_THREAD + body)
    witness = Witness(trainer.memfd, trainer.pidfd)
    assert witness.verdict() is None
    trainer.go()
    assert await_mutex(witness) == death
    assert witness.look().death == death


@pytest.mark.parametrize(("body", "death"), ENDINGS.values(), ids=ENDINGS.keys())
def test_the_pidfd_alone_tells_it_too(start_trainer: StartTrainer, body: str, death: Death) -> None:
    if death.exec:
        pytest.skip("a pidfd lives through exec")
    trainer = start_trainer(NO_CORE + MAIN_THREAD + body)
    witness = Witness(None, trainer.pidfd)
    assert witness.board is None
    assert witness.fds() == (trainer.pidfd,)
    assert witness.verdict() is None
    trainer.go()
    assert await_pidfd(witness) == death


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY
    or Path("/proc/sys/kernel/core_pattern").read_text().startswith(("|", "/", "@")),
    reason="this machine writes no core file into the working directory",
)
def test_a_core_dump(start_trainer: StartTrainer, tmp_path: Path) -> None:
    body = "resource.setrlimit(resource.RLIMIT_CORE, (-1, -1))\n" + MAIN_THREAD + "go(); os.abort()"
    trainer = start_trainer(body, cwd=tmp_path)
    witness = Witness(trainer.memfd, trainer.pidfd)
    trainer.go()
    assert await_mutex(witness) == Death(signal=signal.SIGABRT, core=True)
    assert list(tmp_path.iterdir())


def test_a_forked_data_loader_delays_nothing(start_trainer: StartTrainer) -> None:
    body = "child = os.fork()\nif child: link.send(str(child).encode())\nsignal.pause()"
    trainer = start_trainer(MAIN_THREAD + body)
    child = int(trainer.link.recv(16))
    try:
        witness = Witness(trainer.memfd, trainer.pidfd)
        trainer.kill()
        assert await_mutex(witness) == Death(signal=signal.SIGKILL)
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_end_of_a_forked_child_is_nobodys_death(start_trainer: StartTrainer) -> None:
    trainer = start_trainer(MAIN_THREAD + "if os.fork() == 0: os._exit(1)\nos.wait(); link.send(b'w'); go()")
    witness = Witness(trainer.memfd, trainer.pidfd)
    assert trainer.link.recv(1) == b"w"
    assert witness.verdict() is None
    trainer.kill()
    assert await_mutex(witness) == Death(signal=signal.SIGKILL)


def test_a_trainer_with_another_parent(start_trainer: StartTrainer) -> None:
    """Its parent is gone; whoever reaps it now may be quicker than we are."""
    trainer = start_trainer("if os.fork(): os._exit(0)\nos.setsid()\n" + MAIN_THREAD + "go(); os._exit(7)")
    trainer.process.wait()
    witness = Witness(trainer.memfd, trainer.pidfd)
    assert witness.verdict() is None
    trainer.go()
    assert await_mutex(witness) in (Death(exit_code=7), Death())


# --- deaths before the witness -------------------------------------------------------------------


def test_a_zombie(start_trainer: StartTrainer) -> None:
    trainer = start_trainer(MAIN_THREAD + "go()")
    trainer.kill()
    os.waitid(os.P_PIDFD, trainer.pidfd, os.WEXITED | os.WNOWAIT)
    witness = Witness(trainer.memfd, trainer.pidfd)
    assert witness.look() == TrainerState("Z", death=Death(signal=signal.SIGKILL))
    assert await_mutex(witness) == await_pidfd(witness) == Death(signal=signal.SIGKILL)


def test_a_trainer_that_is_dead_and_reaped(start_trainer: StartTrainer) -> None:
    trainer = start_trainer(MAIN_THREAD + "go()")
    trainer.kill()
    trainer.process.wait()
    witness = Witness(trainer.memfd, trainer.pidfd)
    assert witness.look().letter == "X"
    assert await_pidfd(witness) in (Death(signal=signal.SIGKILL), Death())  # unknown before Linux 6.15


def test_a_verdict_stays_when_the_trainer_is_reaped(start_trainer: StartTrainer) -> None:
    trainer = start_trainer(MAIN_THREAD + "go()")
    witness = Witness(trainer.memfd, trainer.pidfd)
    trainer.kill()
    assert await_mutex(witness) == Death(signal=signal.SIGKILL)
    trainer.process.wait()
    assert witness.look() == TrainerState("X", death=Death(signal=signal.SIGKILL))


# --- listeners come and go -----------------------------------------------------------------------


def test_the_third_listener_is_told(
    start_trainer: StartTrainer, start_listener: Callable[[Trainer], subprocess.Popen[str]]
) -> None:
    trainer = start_trainer(MAIN_THREAD + "go()")
    for _ in range(2):
        killed = start_listener(trainer)
        killed.kill()
        killed.wait()
    third = start_listener(trainer)
    trainer.kill()
    assert third.communicate(timeout=DEADLINE_MS / 1000)[0] == f"{Death(signal=9)}\n"


def test_two_listeners_at_once_are_both_told(
    start_trainer: StartTrainer, start_listener: Callable[[Trainer], subprocess.Popen[str]]
) -> None:
    trainer = start_trainer(MAIN_THREAD + "go()")
    listeners = [start_listener(trainer), start_listener(trainer)]
    trainer.kill()
    for listener in listeners:
        assert listener.communicate(timeout=DEADLINE_MS / 1000)[0] == f"{Death(signal=9)}\n"


def test_each_life_line_of_a_process_is_told(start_trainer: StartTrainer) -> None:
    trainer = start_trainer(MAIN_THREAD + "hand_over(LifeLine())\ngo()")
    _, fds, _, _ = socket.recv_fds(trainer.link, 1, 2)
    witnesses = [Witness(trainer.memfd, trainer.pidfd), Witness(*fds)]
    trainer.kill()
    for witness in witnesses:
        assert await_mutex(witness) == Death(signal=signal.SIGKILL)
    for fd in fds:
        os.close(fd)


# --- a life line made outside the main thread ------------------------------------------------------


def test_the_end_of_the_creating_thread_is_not_a_death(
    start_trainer: StartTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    body = "thread = threading.Thread(target=lambda: (hand_over(LifeLine()), go())); thread.start(); "
    trainer = start_trainer(body + "thread.join(); signal.pause()")
    witness = Witness(trainer.memfd, trainer.pidfd)
    trainer.go()
    with caplog.at_level(logging.WARNING):
        assert await_mutex(witness) is None
        assert witness.verdict() is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "main thread" in caplog.text
    trainer.kill()
    assert await_pidfd(witness) == Death(signal=signal.SIGKILL)


def test_a_living_thread_that_holds_the_mutex_serves_as_well(start_trainer: StartTrainer) -> None:
    trainer = start_trainer("threading.Thread(target=lambda: (hand_over(LifeLine()), go())).start()")
    witness = Witness(trainer.memfd, trainer.pidfd)
    trainer.kill()
    await_readable(witness.fds()[0])
    assert await_pidfd(witness) == Death(signal=signal.SIGKILL)


# --- looks -----------------------------------------------------------------------------------------


def test_a_stopped_trainer_is_seen_and_is_not_dead(start_trainer: StartTrainer) -> None:
    trainer = start_trainer(MAIN_THREAD + "go()")
    witness = Witness(trainer.memfd, trainer.pidfd)
    trainer.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PIDFD, trainer.pidfd, os.WSTOPPED)
    assert witness.look() == TrainerState("T")
    trainer.kill()
    assert await_mutex(witness) == Death(signal=signal.SIGKILL)


def stat(letter: str, flags: int = 0x400000, exit_status: int | None = 0) -> ProcStat:
    return ProcStat(letter, 1, 1, flags, threads=1, start_ticks=1, exit_status=exit_status)


ALIVE, HIDDEN = stat("S"), stat("S", exit_status=None)
ENDED = stat("R", PF_EXITING)
DUMPING = stat("D", exit_status=signal.SIGSEGV)


class ScriptedEntry(ProcEntry):
    """An entry that shows one stat a reading; ``dumping`` holds from the first on."""

    def __init__(self, *stats: ProcStat, dumping: bool = False, no_core: bool = False) -> None:
        self.pid = 4242
        self._stats = itertools.chain(stats, itertools.repeat(stats[-1]))
        self._dumping = dumping
        self._no_core = no_core

    def stat(self) -> ProcStat:
        return next(self._stats)

    def core_dumping(self) -> bool:
        return self._dumping

    def may_leave_core(self) -> bool:
        return not self._no_core


@pytest.fixture
def own_pidfd() -> Iterator[int]:
    pidfd = os.pidfd_open(os.getpid())
    yield pidfd
    os.close(pidfd)


@pytest.mark.parametrize(
    ("entry", "state"),
    [
        (ScriptedEntry(ALIVE), TrainerState("S")),
        # The signal came between the two readings: the second has it.
        (ScriptedEntry(ALIVE, DUMPING, dumping=True), TrainerState("S", True, Death(signal=11, core=True))),
        (ScriptedEntry(ALIVE, dumping=True), TrainerState("S", True, Death(core=True))),
        (ScriptedEntry(HIDDEN, dumping=True), TrainerState("S", True, Death(core=True))),
        (ScriptedEntry(DUMPING, dumping=True, no_core=True), TrainerState("D", True, Death(signal=11))),
    ],
    ids=["alive", "dumping", "dumping, an older kernel", "dumping, hidden", "no core allowed"],
)
def test_a_core_dump_is_a_death_before_it_is_written(
    monkeypatch: pytest.MonkeyPatch, own_pidfd: int, entry: ProcEntry, state: TrainerState
) -> None:
    monkeypatch.setattr(witness_module, "ProcEntry", lambda pidfd: entry)
    assert Witness(None, own_pidfd).look() == state


def test_an_exit_status_that_the_kernel_hides_is_unknown(
    monkeypatch: pytest.MonkeyPatch, own_pidfd: int
) -> None:
    """Seen hidden once, it is not trusted later: without its memory a process no longer says so."""
    monkeypatch.setattr(witness_module, "ProcEntry", lambda pidfd: ScriptedEntry(HIDDEN, ENDED))
    witness = Witness(None, own_pidfd)
    assert witness.look() == TrainerState("S")
    assert witness.verdict() == Death()


def test_without_proc_the_pidfd_alone_decides(
    start_trainer: StartTrainer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_proc(pidfd: int) -> ProcEntry:
        raise FileNotFoundError(2, "No such file or directory", "/proc/self/fdinfo")

    monkeypatch.setattr(witness_module, "ProcEntry", no_proc)
    trainer = start_trainer(MAIN_THREAD + "go()")
    witness = Witness(trainer.memfd, trainer.pidfd)
    assert "/proc" in caplog.text
    assert witness.fds() == (trainer.pidfd,)
    assert witness.look() == TrainerState("?")
    trainer.kill()
    assert await_pidfd(witness) in (Death(signal=signal.SIGKILL), Death())


# --- when something is missing -----------------------------------------------------------------------


def test_a_page_that_cannot_be_mapped(start_trainer: StartTrainer, caplog: pytest.LogCaptureFixture) -> None:
    trainer = start_trainer(MAIN_THREAD + "go()")
    read_end, write_end = os.pipe()
    try:
        witness = Witness(read_end, trainer.pidfd)
    finally:
        os.close(read_end)
        os.close(write_end)
    assert "the pidfd alone" in caplog.text
    assert witness.board is None
    trainer.kill()
    assert await_pidfd(witness) == Death(signal=signal.SIGKILL)


def test_a_life_line_without_robust_mutexes(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(address: int) -> RobustMutex:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(RobustMutex, "create", unsupported)
    line = LifeLine()
    assert line.memfd is not None
    assert line.pidfd is not None
    witness = Witness(line.memfd, line.pidfd)
    assert witness.fds() == (line.pidfd,)
    assert witness.board is not None
    line.board.write(step=5)
    assert witness.board.read().step == 5
    line.close()


def test_a_life_line_with_nothing_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.delattr(os, "pidfd_open")
    line = LifeLine()
    assert line.fds == ()
    line.board.write(phase=1, progress=2, step=3)
    assert line.board.read() == Board(phase=1, progress=2, step=3)
    line.close()


def test_closing_a_life_line_twice() -> None:
    line = LifeLine()
    fds = line.fds
    line.close()
    line.close()
    for fd in fds:
        with pytest.raises(OSError):
            os.fstat(fd)
    line.board.write(step=1)


# --- the board -----------------------------------------------------------------------------------------


def test_the_listener_reads_what_the_trainer_writes(start_trainer: StartTrainer) -> None:
    body = (
        "line = LifeLine()\nhand_over(line)\ngo()\n"
        "line.board.write(phase=2, progress=2**63, step=7); link.send(b'1'); go()\n"
        "line.board.write(progress=8); link.send(b'2'); go()"
    )
    trainer = start_trainer(body)
    witness = Witness(trainer.memfd, trainer.pidfd)
    assert witness.board is not None
    assert witness.board.read() == Board(phase=0, progress=0, step=0)
    trainer.go()
    assert trainer.link.recv(1) == b"1"
    assert witness.board.read() == Board(phase=2, progress=2**63, step=7)
    trainer.go()
    assert trainer.link.recv(1) == b"2"
    trainer.kill()
    assert await_mutex(witness) == Death(signal=signal.SIGKILL)
    assert witness.board.read() == Board(phase=2, progress=8, step=7)


# --- wait statuses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "death"),
    [
        (None, Death()),
        (0, Death(exit_code=0)),
        (3 << 8, Death(exit_code=3)),
        (255 << 8, Death(exit_code=255)),
        (9, Death(signal=9)),
        (11 | 0x80, Death(signal=11, core=True)),
    ],
)
def test_an_exit_status_in_words(status: int | None, death: Death) -> None:
    assert Death.of_exit_status(status) == death
