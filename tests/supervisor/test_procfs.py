"""Reading /proc, as others write it."""

from __future__ import annotations

import os
import platform
import signal

import pytest

from procguard import kernel
from procguard.supervisor import procfs
from tests.supervisor.processes import FOR_EVER, process, python, until
from tests.supervisor.programs import no_descriptor_left


def test_this_process() -> None:
    stat = procfs.read_stat(os.getpid())
    assert stat is not None
    assert (stat.parent, stat.session, stat.ended) == (os.getppid(), os.getsid(0), False)
    assert kernel.boot_id()
    assert os.getpid() in procfs.all_pids()


def test_a_name_full_of_brackets_and_a_zombie() -> None:
    script = "import ctypes, os; ctypes.CDLL(None).prctl(15, b'a) Z 1 (b', 0, 0, 0); os._exit(3)"
    with process(python(script)) as child:
        stat = until(lambda: ended(child.pid), "its end")
        assert (stat.letter, stat.parent, stat.exit_status) == ("Z", os.getpid(), 3 << 8)
        assert procfs.open_pidfd(child.pid, stat.start_ticks + 1) is None
    assert procfs.read_stat(child.pid) is None
    assert procfs.open_pidfd(child.pid, stat.start_ticks) is None


EXIT_OF_A_THREAD = {"x86_64": 60, "aarch64": 93}
"""The number of the system call that ends one thread alone, which libc keeps for itself."""


@pytest.mark.skipif(
    platform.machine() not in EXIT_OF_A_THREAD, reason="no system call number for this machine"
)
def test_a_leader_that_has_ended_before_its_threads_has_not_ended() -> None:
    script = (
        "import threading, time, ctypes; threading.Thread(target=time.sleep, args=[1000]).start(); "
        f"ctypes.CDLL(None).syscall({EXIT_OF_A_THREAD[platform.machine()]}, 0)"
    )
    with process(python(script)) as child:
        pidfd = os.pidfd_open(child.pid)
        stat = until(lambda: zombie(child.pid), "the leader's end")
        assert stat.threads > 1
        assert not stat.ended
        assert not procfs.has_ended(pidfd)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert procfs.has_ended(pidfd)
        os.close(pidfd)


def test_children() -> None:
    with process(FOR_EVER) as child:
        assert child.pid in (procfs.children_of(os.getpid()) or [])
        assert procfs.children_of(child.pid) == []
    assert procfs.children_of(child.pid) == []


def test_tokens() -> None:
    environment = {"PATH": os.environ["PATH"], "OTHER": f"{procfs.START_VARIABLE}=c"}
    with process(FOR_EVER, "a:b", environment=environment) as child:
        assert procfs.tokens_of(child.pid) == ("a", "b")
    assert procfs.tokens_of(child.pid) == ()


def test_out_of_descriptors_is_not_gone() -> None:
    with no_descriptor_left():
        for read in (procfs.read_stat, procfs.tokens_of, procfs.children_of):
            with pytest.raises(OSError, match="Too many open files"):
                read(os.getpid())


def ended(pid: int) -> procfs.ProcStat | None:
    stat = procfs.read_stat(pid)
    return stat if stat and stat.ended else None


def zombie(pid: int) -> procfs.ProcStat | None:
    stat = procfs.read_stat(pid)
    return stat if stat and stat.letter == "Z" else None
