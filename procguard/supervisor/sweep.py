"""The sweep: finds what a worker left behind, wherever it hid, and reaps what became our child by that.

A process can leave its group, its session and its parent, but not its ancestry: this process is made a
*subreaper*, so whatever loses its parent below us becomes our child. Of what is found there (or in all of
/proc, where a worker is adopted and thus no descendant of ours), a worker's own is

- what carries a token of this worker in its environment,
- what is in the session that its leader founded,
- and what descends from either.

What shows none of the three (its own session, its environment overwritten, its ancestors gone) is left alone:
it may as well be the program's own child.

The program has children of its own, whose exit status belongs to it: nothing here waits for "any child".
A zombie is reaped when it was seen alive as a worker's, or when its session proves that it was not born our
child: that is either in our own session or the leader of its own. So an orphan that leads its own session and
is gone between two looks stays a zombie until we end, as does one of the program's other children's.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from procguard.kernel import ProcStat
from procguard.supervisor import procfs
from procguard.supervisor.procfs import read_stat, tokens_of

_log = logging.getLogger(__name__)

EXEC_LOOKS_MAX = 6
EXEC_PAUSE_S = 0.0005
"""One that shows no environment at all may be in exec: it is looked at again, for three milliseconds."""
BARE_COUNT_MAX = 10_000

_KERNELS_OWN = 2
"""The process whose children are the kernel's threads."""
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is known of a worker whose remains are looked for.

    ``key`` is what its tokens begin with, those of all of its starts: none of an older one is to live either.
    ``adopted``: its leader was no child of ours, so neither are its orphans.
    """

    key: str
    leader: int
    start_ticks: int
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """A living process; it is this one as long as its start time is the same."""

    pid: int
    start_ticks: int


class Sweeper:
    """One for all workers of a process. For one thread."""

    def __init__(self) -> None:
        self._was_subreaper = _subreaper()
        self.subreaper = self._was_subreaper or _set_subreaper(True)
        if not self.subreaper:
            _log.warning(
                "this system has no subreapers: what workers leave behind is looked for in all of /proc"
            )
        self._orphans: dict[int, int] = {}
        """Start time by pid, of children of ours that were seen alive as a worker's."""
        self._bare: set[Found] = set()
        """Known to have no environment."""

    def close(self) -> None:
        """Be again what we were."""
        if self.subreaper and not self._was_subreaper:
            _set_subreaper(False)

    def find(self, wanted: Collection[Wanted], spared: Collection[int]) -> dict[str, list[Found]]:
        """What lives of the wanted workers, by key.

        Args:
            spared: pids not to be looked at, nor below: the leaders, and whatever else we have started.
        """
        for _ in range(EXEC_LOOKS_MAX):
            whose = _Whose(wanted, self._bare)
            found = self._find(whose, wanted, spared)
            if not whose.unsure:
                return found
            time.sleep(EXEC_PAUSE_S)
        if len(self._bare) > BARE_COUNT_MAX:
            self._bare.clear()
        self._bare |= whose.unsure
        return found

    def _find(
        self, whose: _Whose, wanted: Collection[Wanted], spared: Collection[int]
    ) -> dict[str, list[Found]]:
        candidates = None if any(one.adopted for one in wanted) else self._below_us(set(spared))
        if candidates is None:
            candidates = _in_all_of_proc(set(spared))
        found: dict[str, list[Found]] = {one.key: [] for one in wanted}
        for pid, stat, owner in whose.each_of(candidates):
            if owner and not stat.ended:
                found[owner].append(Found(pid, stat.start_ticks))
        return found

    def mind_orphans(self, spared: Collection[int]) -> None:
        """Take note of those that became our children, and reap those of them that have ended."""
        if not self.subreaper:
            return
        children = set(procfs.children_of(os.getpid()) or ())
        for pid in self._orphans.keys() - children:
            del self._orphans[pid]
        for pid in children.difference(spared):
            if stat := read_stat(pid):
                self._mind(pid, stat)

    def _mind(self, pid: int, stat: ProcStat) -> None:
        """``stat`` is of a child of ours that no start of ours has made."""
        known = self._orphans.get(pid) == stat.start_ticks
        if stat.ended:
            if known or stat.session not in (pid, os.getsid(0)):
                self._orphans.pop(pid, None)
                with contextlib.suppress(ChildProcessError):  # another thread was faster
                    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
        elif not known and stat.session != os.getsid(0) and tokens_of(pid):
            self._orphans[pid] = stat.start_ticks

    def _below_us(self, spared: set[int]) -> Iterable[tuple[int, ProcStat]] | None:
        """All descendants but those spared, parents first; None where the kernel does not list children."""
        children = procfs.children_of(os.getpid()) if self.subreaper else None
        return None if children is None else self._walk(children, spared)

    def _walk(self, children: list[int], spared: set[int]) -> Iterator[tuple[int, ProcStat]]:
        me = os.getpid()
        pids = [pid for pid in children if pid not in spared]
        seen = set(pids)
        for pid in pids:  # which grows
            stat = read_stat(pid)
            if stat is None:
                continue
            if stat.parent == me:
                self._mind(pid, stat)
            yield pid, stat
            below = [child for child in procfs.children_of(pid) or () if child not in seen | spared]
            seen.update(below)
            pids += below


class _Whose:
    """Tells whose each process is."""

    def __init__(self, wanted: Collection[Wanted], bare: Collection[Found]) -> None:
        self.unsure: set[Found] = set()
        """They show no environment, and nobody knows yet that they have none."""
        self._bare = bare
        self._keys = {one.key for one in wanted}
        self._length = max((len(key) for key in self._keys), default=0)
        # A session's number is not given again while anything of the session lives. So if another process
        # has it, nothing of the session is left.
        self._sessions = {
            one.leader: one.key
            for one in wanted
            if (stat := read_stat(one.leader)) is None or stat.start_ticks == one.start_ticks
        }
        self._owners: dict[int, str] = {}

    def each_of(self, candidates: Iterable[tuple[int, ProcStat]]) -> Iterator[tuple[int, ProcStat, str]]:
        """Each with the key of the worker it belongs to; empty: to none."""
        for pid, stat in candidates:
            owner = self._owner(pid, stat)
            if owner:
                self._owners[pid] = owner
            yield pid, stat, owner

    def _owner(self, pid: int, stat: ProcStat) -> str:
        if owner := self._sessions.get(stat.session):
            return owner
        tokens = tokens_of(pid)
        for token in tokens or ():
            if token[: self._length] in self._keys:
                return token[: self._length]
        owner = self._owners.get(stat.parent, "")
        this = Found(pid, stat.start_ticks)
        if tokens is None and not owner and not stat.ended and this not in self._bare:
            self.unsure.add(this)
        return owner


def _in_all_of_proc(spared: set[int]) -> Iterator[tuple[int, ProcStat]]:
    spared.add(os.getpid())
    stats = ((pid, read_stat(pid)) for pid in procfs.all_pids() if pid not in spared)
    known = [(pid, stat) for pid, stat in stats if stat is not None and stat.parent != _KERNELS_OWN]
    return iter(sorted(known, key=lambda one: one[1].start_ticks))  # parents first


Carriers = dict[str, list[tuple[str, Found]]]
"""By key, oldest first, what lives and carries a token that begins with it: the token and the process."""


def by_key(keys: Collection[str], length: int) -> Carriers:
    """Whatever lives and carries a token that begins with one of these keys, oldest first: token and process.

    ``length``: of a key.
    """
    for _ in range(EXEC_LOOKS_MAX):
        carriers: Carriers = {}
        unsure = False
        for pid, stat in _in_all_of_proc(set()):
            tokens = () if stat.ended else tokens_of(pid)
            unsure |= tokens is None
            for token in tokens or ():
                if token[:length] in keys:
                    carriers.setdefault(token[:length], []).append((token, Found(pid, stat.start_ticks)))
        if not unsure:
            break
        time.sleep(EXEC_PAUSE_S)
    return carriers


def _subreaper() -> bool:
    flag = ctypes.c_int(0)
    with contextlib.suppress(OSError, AttributeError):
        if ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(flag), 0, 0, 0) == 0:
            return bool(flag.value)
    return False


def _set_subreaper(on: bool) -> bool:
    with contextlib.suppress(OSError, AttributeError):  # not Linux, or a libc without it
        return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0) == 0)
    return False
