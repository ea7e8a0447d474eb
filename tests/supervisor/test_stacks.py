"""Stacks of a hung worker: by py-spy or by signal, and never at the price of the worker's life."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from procguard.client.stack_dumps import STACK_SIGNAL
from procguard.supervisor import probes, stacks
from procguard.supervisor.stacks import take_stacks
from tests.supervisor.programs import WAIT, process, until

HANGS = """
import faulthandler, sys, time
faulthandler.register({signal}, all_threads=True)
def the_place_where_it_hangs():
    print("hanging", file=sys.stderr, flush=True)
    time.sleep(1000)
the_place_where_it_hangs()
"""


@pytest.fixture(autouse=True)
def no_py_spy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "find_py_spy", lambda: None)


def fake_py_spy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    tool = tmp_path / "py-spy"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(stacks, "find_py_spy", lambda: str(tool))


def test_a_worker_that_asked_for_the_signal_writes_its_stacks(tmp_path: Path) -> None:
    log = tmp_path / "err"
    with process(HANGS.format(signal=STACK_SIGNAL), output=log) as worker:
        until(lambda: "hanging" in log.read_text())
        taken = take_stacks(worker.pid, [(worker.pid, STACK_SIGNAL)])
        assert taken.by == "faulthandler"
        assert "the_place_where_it_hangs" in taken.text
        assert "hanging" not in taken.text
        assert worker.poll() is None


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL, STACK_SIGNAL, 0, -1, 4242])
def test_a_signal_that_is_not_caught_is_never_sent(number: int, tmp_path: Path) -> None:
    with process(WAIT, output=tmp_path / "err") as worker:
        until(lambda: probes.state_letter(worker.pid) == "S")
        taken = take_stacks(worker.pid, [(worker.pid, number)])
        assert (taken.text, worker.poll()) == ("", None)
        assert f"process {worker.pid} wrote nothing upon signal {number}" in taken.by


def test_stderr_that_is_no_file_cannot_be_read_back() -> None:
    with process(HANGS.format(signal=STACK_SIGNAL)) as worker:
        until(lambda: probes.catches(worker.pid, STACK_SIGNAL))
        assert take_stacks(worker.pid, [(worker.pid, STACK_SIGNAL)]).text == ""
        assert worker.poll() is None


def test_who_asked_for_nothing_and_no_py_spy() -> None:
    with process(WAIT) as worker:
        taken = take_stacks(worker.pid)
        assert taken.text == ""
        assert taken.by.startswith(
            "py-spy is not installed; no process of it called procguard.client.stack_dumps"
        )


def test_py_spy_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_py_spy(tmp_path, monkeypatch, 'echo "stacks of $*"')
    with process(WAIT) as worker:
        taken = take_stacks(worker.pid, [(worker.pid, signal.SIGKILL)])
        assert (taken.by, taken.text) == ("py-spy", f"stacks of dump --pid {worker.pid}\n")


def test_py_spy_finds_the_python_inside_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_py_spy(tmp_path, monkeypatch, 'grep -q python /proc/$3/comm && echo "stacks of $3" || exit 1')
    with process(f"{sys.executable} -S -c 'import time; time.sleep(1000)' & wait", python=False) as shell:
        until(lambda: len(probes.family(shell.pid)) == 2)
        child = probes.family(shell.pid)[1]
        until(lambda: "python" in Path(f"/proc/{child}/comm").read_text())
        assert take_stacks(shell.pid).text == f"stacks of {child}\n"


@pytest.mark.parametrize("script", ["exit 1", "exec sleep 1000", "true"])
def test_py_spy_that_fails_or_hangs_is_done_without(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_py_spy(tmp_path, monkeypatch, script)
    monkeypatch.setattr(stacks, "PY_SPY_TIMEOUT_S", 0.2)
    log = tmp_path / "err"
    with process(HANGS.format(signal=STACK_SIGNAL), output=log) as worker:
        until(lambda: "hanging" in log.read_text())
        assert take_stacks(worker.pid, [(worker.pid, STACK_SIGNAL)]).by == "faulthandler"
        assert "py-spy could not read its processes" in take_stacks(worker.pid).by


def test_stacks_without_end_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_py_spy(tmp_path, monkeypatch, "head -c 300000 /dev/zero | tr '\\0' x")
    with process(WAIT) as worker:
        assert len(take_stacks(worker.pid).text) < 70_000


def test_a_worker_that_has_gone(tmp_path: Path) -> None:
    with process(WAIT) as worker:
        worker.kill()
        worker.wait()
        assert take_stacks(worker.pid, [(worker.pid, STACK_SIGNAL)]).text == ""
