"""Tells of failures: writes the report, then calls whoever recovers. On a thread of its own.

So a recovery that takes minutes never stops the watching. What fails meanwhile is kept for the next call.
What failed in one wake of the monitor is one call. A report is written before the call, because the call
kills what hangs and starts what died, and then neither the stacks nor the end of stderr are what they were.
"""

from __future__ import annotations

import logging
import threading
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
    """

    def __init__(self, reports: FailureReports, stderr_tail: StderrTail) -> None:
        self.callback: FailureCallback | None = None
        self._reports = reports
        self._stderr_tail = stderr_tail
        self._waiting: dict[str, Case] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="procguard-failures", daemon=True)
        self._thread.start()

    def post(self, cases: Sequence[Case]) -> None:
        """Have them reported, together, as soon as the call that may be running is over."""
        with self._changed:
            self._waiting.update((case.worker_id, case) for case in cases)
            self._changed.notify()

    def close(self) -> None:
        """No further call begins. Waits a moment for one that runs, unless it is the one that closes us."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not threading.current_thread():
            self._thread.join(GIVE_UP_S)

    def _run(self) -> None:
        while (cases := self._next()) is not None:
            try:
                self._write_reports(cases)
            except Exception:  # noqa: BLE001  # a report is evidence, not the cure: the log hears of it, the recovery goes on
                _log.exception("No report on the failure of %s", ", ".join(case.worker_id for case in cases))
            try:
                if self.callback is not None:
                    self.callback([case.worker_id for case in cases])
            except Exception:  # noqa: BLE001  # theirs: the watching goes on, and the log hears of it
                _log.exception("The failure callback raised")

    def _next(self) -> list[Case] | None:
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            cases, self._waiting = list(self._waiting.values()), {}
            return None if self._closed else cases

    def _write_reports(self, cases: list[Case]) -> None:
        hung = [case for case in cases if case.verdict.hung and case.pid is not None]
        stacks: dict[str, dict[str, Any]] = {}
        if hung:
            with ThreadPoolExecutor(STACKS_AT_ONCE_MAX) as pool:
                stacks = {
                    case.worker_id: seen
                    for case, seen in zip(hung, pool.map(_look_inside, hung), strict=True)
                }
        for case in cases:
            path = self._reports.add(
                case.worker_id, case.at, self._report(case, stacks.get(case.worker_id, {}))
            )
            if path is not None:
                _log.info("Report on the failure of %s: %s", case.worker_id, path)

    def _report(self, case: Case, stacks: dict[str, Any]) -> dict[str, Any]:
        verdict = case.verdict
        return {
            "status": verdict.status.value,
            "cause": verdict.cause.value,
            "text": verdict.text,
            "pid": case.pid,
            "started_at": case.started_at,
            "exit": case.exit,
            "history": list(case.history),
            "machine": probes.machine(),
            **stacks,
            "stderr": self._stderr_tail(case.worker_id, STDERR_BYTES_MAX),
        }


def _look_inside(case: Case) -> dict[str, Any]:
    assert case.pid is not None
    stacks = take_stacks(case.pid, case.stack_signals)
    return {"stacks": stacks.text, "stacks_by": stacks.by, "threads": probes.threads(case.pid)}
