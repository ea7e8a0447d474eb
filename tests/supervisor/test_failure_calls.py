"""One call for all that failed together, and a report for each, whatever becomes of the call."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from procguard.supervisor import failure_calls
from procguard.supervisor.failure_calls import Case, FailureCalls
from procguard.supervisor.health_words import Cause, Failed, HealthStatus
from procguard.supervisor.reports import FailureReports
from tests.supervisor.programs import DEADLINE_S, until


def case(worker_id: str, at: float = 1.0) -> Case:
    verdict = Failed(HealthStatus.DEAD, Cause.DIED, "exit code 3")
    return Case(worker_id, verdict, at, pid=None, started_at=0.5, exit=None, history=[])


def always(_: Case) -> bool:
    return True


def test_what_is_no_failure_any_more_is_reported_and_not_called() -> None:
    got: list[list[str]] = []
    reports = FailureReports(None)
    calls = FailureCalls(reports, lambda *_: "", lambda case: case.worker_id == "b")
    calls.callback = got.append
    calls.post([case("a"), case("b")])
    until(lambda: reports.newest("a") and reports.newest("b"))
    assert got == [["b"]]
    calls.post([case("a")])
    calls.post([case("c")])
    until(lambda: reports.newest("c"))
    assert got == [["b"]]
    calls.close()


def test_the_end_of_stderr_is_taken_before_the_call_and_the_report_is_written_after_it_has_begun() -> None:
    reports, seen = FailureReports(None), []
    stderr = ["of the old life"]

    def recover(worker_ids: list[str]) -> None:
        seen.append((worker_ids, reports.newest("a")))
        stderr[0] = "of the new life"

    calls = FailureCalls(reports, lambda _, bytes_max: stderr[0][:bytes_max], always)
    calls.callback = recover
    calls.post([case("a"), case("b")])
    until(lambda: reports.newest("a") and reports.newest("b"))
    assert seen == [(["a", "b"], None)]
    assert (reports.newest("a") or {})["stderr"] == "of the old life"
    calls.close()


def test_what_is_unwritten_at_the_end_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure_calls, "WRITE_DELAY_S", DEADLINE_S)
    reports, called = FailureReports(tmp_path), threading.Event()
    calls = FailureCalls(reports, lambda *_: "", always)
    calls.callback = lambda _: called.set()
    calls.post([case("a")])
    assert called.wait(DEADLINE_S)
    assert reports.newest("a") is None
    calls.close()
    assert reports.newest("a") is not None


def test_evidence_that_cannot_be_had_does_not_stop_the_recovery(caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> str:
        raise RuntimeError("no such luck")

    got: list[list[str]] = []
    calls = FailureCalls(FailureReports(None), broken, always)
    calls.callback = got.append
    calls.post([case("a")])
    until(lambda: got == [["a"]])
    assert "No report on the failure of a" in caplog.text
    calls.close()


def test_a_report_that_cannot_be_made_does_not_stop_the_next(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reports = FailureReports(None)
    add = reports.add

    def stumbling(worker_id: str, at: float, report: dict[str, Any]) -> Path | None:
        if worker_id == "a":
            raise RuntimeError("no such luck")
        return add(worker_id, at, report)

    monkeypatch.setattr(reports, "add", stumbling)
    calls = FailureCalls(reports, lambda *_: "", always)
    calls.post([case("a"), case("b")])
    until(lambda: reports.newest("b"))
    assert "No report on the failure of a" in caplog.text
    calls.close()


def test_no_call_begins_after_the_end() -> None:
    calls = FailureCalls(FailureReports(None), lambda *_: "", always)
    got: list[list[str]] = []
    calls.callback = got.append
    calls.close()
    calls.post([case("a")])
    assert not [each for each in calls._threads if each.is_alive()]
    assert got == []


def test_a_call_may_close_what_calls_it() -> None:
    calls = FailureCalls(FailureReports(None), lambda *_: "", always)
    calls.callback = lambda _: calls.close()
    calls.post([case("a")])
    until(lambda: not [each for each in calls._threads if each.is_alive()])
