"""What the monitor holds of one worker beside the rules: its process, its past lives, what it said of
itself."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

from procguard.supervisor import endings, probes
from procguard.supervisor.failure_calls import Case
from procguard.supervisor.health_words import Failed, Usage
from procguard.supervisor.notify_socket import Datagram
from procguard.worker_config import WorkerConfig

LIVES_COUNT_MAX = 20
"""Lives of a worker that its failure report recounts."""
STACK_SIGNALS_MAX = 16
"""Processes of one worker that may ask for the stack signal."""


class WorkerUsage(NamedTuple):
    """Of all processes of a worker: percent of one CPU since the last look, and resident memory."""

    cpu_percent: float | None
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class _Look:
    at: float
    usage: Usage


class Watched:
    """One worker. Not thread-safe: the monitor's lock guards it."""

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self.pid: int | None = None
        self.alive = False
        self.probe: probes.Probe | None = None
        self.pidfd: int | None = None
        self.told: str | None = None
        """What it last said of itself (``STATUS=``)."""
        self.shown: object = None
        """The status that was last told to others."""
        self._exit: dict[str, Any] | None = None
        self._lives: deque[dict[str, Any]] = deque(maxlen=LIVES_COUNT_MAX)
        self._stack_signals: dict[int, int] = {}
        self._unheeded: set[str] = set()
        self._looked: _Look | None = None

    def begin(self, pid: int | None, at: float) -> None:
        """A new life."""
        self.pid, self.alive, self.told, self._exit, self._looked = pid, True, None, None, None
        self._stack_signals.clear()
        self._lives.append({"pid": pid, "started_at": at, "ended_at": None, "text": None})

    def life(self) -> endings.Beginning | None:
        """The process that runs, and since when."""
        if not self.alive or self.pid is None:
            return None
        return endings.Beginning(self.pid, self._started_at())

    def end(self, ending: endings.Ending, at: float) -> None:
        """Its process has ended."""
        self.alive, self._exit = False, ending.exit
        if self._lives:
            self._lives[-1].update(ended_at=at, text=ending.event.text)

    def let_go(self) -> None:
        """Of the process: it has ended, or nobody watches any more."""
        if self.probe is not None:
            self.probe.close()
        if self.pidfd is not None:
            os.close(self.pidfd)  # the kernel takes it out of the epoll set
        self.probe = self.pidfd = None

    def sample(self, whole_tree: bool) -> Usage | None:
        """What it has used so far; None where that cannot be seen."""
        if self.probe is None:
            return None
        return self.probe.tree_usage() if whole_tree else self.probe.usage()

    def usage(self, now: float) -> WorkerUsage | None:
        """For people: CPU since the last call, and memory."""
        usage = self.sample(whole_tree=True)
        if usage is None:
            return None
        before, self._looked = self._looked, _Look(now, usage)
        percent = None
        if before is not None and now > before.at:
            percent = max(usage.cpu_s - before.usage.cpu_s, 0.0) * 100.0 / (now - before.at)
        return WorkerUsage(percent, usage.memory_bytes)

    def take_in(self, datagram: Datagram) -> bool:
        """What it says besides its health; returns whether it says something unheeded for the first time."""
        if datagram.status is not None:
            self.told = datagram.status
        if datagram.stack_signal is not None and len(self._stack_signals) < STACK_SIGNALS_MAX:
            self._stack_signals[datagram.pid] = datagram.stack_signal
        new = set(datagram.unheeded) - self._unheeded
        self._unheeded |= new
        return bool(new)

    def same_life(self, case: Case) -> bool:
        """Whether no other life has begun since this case was made."""
        return case.pid == self.pid and case.started_at == self._started_at()

    def _started_at(self) -> float | None:
        return self._lives[-1]["started_at"] if self._lives else None

    def case(self, verdict: Failed, at: float) -> Case:
        """Its failure, with what is known at this moment."""
        return Case(
            worker_id=self.config.worker_id,
            verdict=verdict,
            at=at,
            pid=self.pid,
            started_at=self._started_at(),
            exit=self._exit,
            history=[dict(life) for life in self._lives],
            stack_signals=list(self._stack_signals.items()),
        )
