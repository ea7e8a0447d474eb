"""Tells of failures: calls whoever recovers, and sees to the reports. On a thread of its own.

So a recovery that takes minutes never stops the watching. What fails meanwhile is kept for the next call.
What failed in one wake of the monitor is one call.

What a report needs is taken before the call, because the call kills what hangs and starts what died, and
then neither the stacks nor the end of stderr are what they were. It is written a moment after the call has
begun: to write takes 1.5 ms, for which a worker would otherwise wait before it is started again.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

from procguard.supervisor import probes
from procguard.supervisor.health_words import Failed
from procguard.supervisor.reports import STDERR_BYTES_MAX, FailureReports
from procguard.supervisor.stacks import take_stacks

_log = logging.getLogger(__name__)

STACKS_AT_ONCE_MAX = 8
WRITE_DELAY_S = 0.05
REPORTS_WAITING_MAX = 200
"""Reports that wait for a disk that hangs; beyond that the oldest are lost."""
GIVE_UP_S = 1.0
"""A call that runs is not waited for longer when the monitor stops."""

FailureCallback: TypeAlias = Callable[[list[str]], object]
StderrTail: TypeAlias = Callable[[str, int], str]


@dataclass(frozen=True, slots=True)
class Case:
    """One failure, with what was known at its moment. Times in Unix seconds."""

    worker_id: str
    verdict: Failed
    at: float
    pid: int | None
    started_at: float | None
    exit: dict[str, Any] | None
    history: Sequence[dict[str, Any]]
    stack_signals: Sequence[tuple[int, int]] = ()


class FailureCalls:
    """Cases in, one report for each and one call for all that wait.

    Args:
        reports: where the reports go.
        stderr_tail: the last so many bytes of a worker's stderr, as text.
        still_failed: asked right before the call, for a case may have waited for a recovery that has
            started its worker anew: then there is nothing to recover, only to report.
    """

    def __init__(
        self, reports: FailureReports, stderr_tail: StderrTail, still_failed: Callable[[Case], bool]
    ) -> None:
        self.callback: FailureCallback | None = None
        self._reports = reports
        self._stderr_tail = stderr_tail
        self._still_failed = still_failed
        self._waiting: dict[str, Case] = {}
        self._unwritten: deque[_Evidence] = deque(maxlen=REPORTS_WAITING_MAX)
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._call_all, name="procguard-failures", daemon=True),
            threading.Thread(target=self._write_all, name="procguard-reports", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def post(self, cases: Sequence[Case]) -> None:
        """Have them told, together, as soon as the call that may be running is over."""
        with self._changed:
            self._waiting.update((case.worker_id, case) for case in cases)
            self._changed.notify_all()

    def close(self) -> None:
        """No further call begins. Waits a moment for a call that runs, unless it is the one that closes us,
        and for the reports that are not written yet."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(GIVE_UP_S)

    # --- the calls ---

    def _call_all(self) -> None:
        while (cases := self._next()) is not None:
            try:
                evidence = self._gather(cases)
                with self._changed:
                    self._unwritten.extend(evidence)
                    self._changed.notify_all()
            except Exception:  # noqa: BLE001  # it is not the cure: the log hears of it, the recovery goes on
                _log.exception("No report on the failure of %s", ", ".join(case.worker_id for case in cases))
            try:
                failed = [case.worker_id for case in cases if self._still_failed(case)]
                if failed and self.callback is not None:
                    self.callback(failed)
            except Exception:  # noqa: BLE001  # theirs: the watching goes on, and the log hears of it
                _log.exception("The failure callback raised")

    def _next(self) -> list[Case] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            cases, self._waiting = list(self._waiting.values()), {}
            return None if self._closed else cases

    def _gather(self, cases: list[Case]) -> list[_Evidence]:
        hung = [case for case in cases if case.verdict.hung and case.pid is not None]
        inside: dict[str, dict[str, Any]] = {}
        if hung:
            with ThreadPoolExecutor(STACKS_AT_ONCE_MAX) as pool:
                seen = pool.map(_look_inside, hung)
                inside = {case.worker_id: each for case, each in zip(hung, seen, strict=True)}
        return [
            _Evidence(
                case, inside.get(case.worker_id, {}), self._stderr_tail(case.worker_id, STDERR_BYTES_MAX)
            )
            for case in cases
        ]

    # --- the reports ---

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unwritten or self._closed)
                if self._unwritten and not self._closed:
                    self._changed.wait_for(lambda: self._closed, WRITE_DELAY_S)
                evidence, closed = list(self._unwritten), self._closed
                self._unwritten.clear()
            for each in evidence:
                self._write(each)
            if closed and not evidence:
                return

    def _write(self, evidence: _Evidence) -> None:
        case = evidence.case
        try:
            path = self._reports.add(case.worker_id, case.at, evidence.report())
        except Exception:  # noqa: BLE001  # a bug of ours: the log hears of it, the next report is written
            _log.exception("No report on the failure of %s", case.worker_id)
            return
        if path is not None:
            _log.info("Report on the failure of %s: %s", case.worker_id, path)


@dataclass(frozen=True, slots=True)
class _Evidence:
    """All that goes into a report."""

    case: Case
    inside: dict[str, Any]
    stderr: str

    def report(self) -> dict[str, Any]:
        case, verdict = self.case, self.case.verdict
        return {
            "status": verdict.status.value,
            "cause": verdict.cause.value,
            "text": verdict.text,
            "pid": case.pid,
            "started_at": case.started_at,
            "exit": case.exit,
            "history": list(case.history),
            "machine": probes.machine(),
            **self.inside,
            "stderr": self.stderr,
        }


def _look_inside(case: Case) -> dict[str, Any]:
    assert case.pid is not None
    stacks = take_stacks(case.pid, case.stack_signals)
    return {"stacks": stacks.text, "stacks_by": stacks.by, "threads": probes.threads(case.pid)}
