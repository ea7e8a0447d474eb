"""``keeper.py PID START_TICKS``: ends the workers that must not outlive their guard, when the guard has died.

It waits for the guard's pidfd, by whatever death that becomes readable, and then kills whatever carries the
token of one of those workers, with the sessions that they lead. Its stdin tells it the tokens, a line each,
each before the process exists that will carry it; the line ``quit`` says that the guard ends in good order.
The end of stdin says nothing: a fork of the guard may hold the other end.

It is run as a file of its own, isolated and without site packages, so that it starts in ten milliseconds and
holds little memory: standard library only, and nothing of ProcGuard.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

VARIABLE = b"PROCGUARD_START="
QUIT = "quit"
KEY_LENGTH = 16
"""A token's first half is the worker's own: a newer token replaces the one before it."""
ROUND_PAUSE_S = 0.02
ROUNDS_MAX = 500
"""Ten seconds. What even then has not died is in a system call that nothing ends."""


def main(guard: int, start_ticks: int) -> None:
    """Wait for the guard's end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    tokens = await_end(guard, start_ticks)
    for _ in range(ROUNDS_MAX):
        if not tokens or not kill_all(tokens):
            return
        time.sleep(ROUND_PAUSE_S)


def await_end(guard: int, start_ticks: int) -> set[str]:
    """Return when the guard is dead, with the tokens of those that must die too; none if it said quit."""
    tokens: dict[str, str] = {}
    unread = b""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    try:
        pidfd = os.pidfd_open(guard)
    except ProcessLookupError:
        pidfd = None
    if pidfd is not None and start_ticks_of(guard) == start_ticks:
        poll.register(pidfd, select.POLLIN)
    else:  # it was faster in dying than we in starting
        pidfd = None
    while True:
        # The pidfd first, the pipe after it: what was written before the death is then read for sure.
        ready = {fd for fd, _ in poll.poll(0 if pidfd is None else None)}
        dead = pidfd is None or pidfd in ready
        while 0 in {fd for fd, _ in poll.poll(0)}:
            chunk = os.read(0, 65536)
            if not chunk:
                poll.unregister(0)
                break
            *lines, unread = (unread + chunk).split(b"\n")
            for line in lines:
                text = line.decode("ascii", "replace")
                if text == QUIT:
                    return set()
                tokens[text[:KEY_LENGTH]] = text
        if dead:
            return set(tokens.values())


def kill_all(tokens: set[str]) -> bool:
    """One round; whether anything was there to be killed."""
    me, found = os.getpid(), False
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == me:
            continue
        pid = int(name)
        with contextlib.suppress(OSError, ValueError):  # gone meanwhile, or another user's
            pidfd = os.pidfd_open(pid)
            try:
                if carries(pid, tokens):
                    found = True
                    if os.getsid(pid) == pid:
                        os.killpg(pid, signal.SIGKILL)
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)
    return found


def carries(pid: int, tokens: set[str]) -> bool:
    """Whether one of these tokens is in the environment that the process was started with."""
    with open(f"/proc/{pid}/environ", "rb") as file:
        content = file.read()
    for variable in content.split(b"\0") if VARIABLE in content else ():
        if variable.startswith(VARIABLE):
            return not tokens.isdisjoint(variable[len(VARIABLE) :].decode("ascii", "replace").split(":"))
    return False


def start_ticks_of(pid: int) -> int:
    """When a process started, in clock ticks since boot; -1 when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            content = file.read()
        return int(content[content.rindex(b")") + 1 :].split()[19])
    except OSError:
        return -1


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
