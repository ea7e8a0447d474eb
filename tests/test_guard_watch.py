"""``procguard status --watch`` of a guard: what is drawn, what is printed, and how it ends."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from procguard.errors import GuardUnreachable
from procguard.guard_watch import Printed, live_screen, watch
from procguard.supervisor.control_client import ControlClient
from tests.supervisor.fake_guard import DEADLINE_S, STARTED_AT, FakeCommands, fake_guard, worker
from tests.test_guard_commands import Enough, turns

NOW = STARTED_AT + 60


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        yield Path(os.path.realpath(name))


def snapshot(*workers: dict[str, Any]) -> dict[str, Any]:
    return {"guard": {"pid": 42, "started_at": STARTED_AT, "state": "running"}, "workers": [*workers]}


def test_a_snapshot_for_each_change(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = FakeCommands(worker("w0"))
    with fake_guard(folder, commands) as (server, _), ControlClient(server.path) as client:
        pause = turns(
            lambda: commands.workers[0].update(cpu_percent=1.0),
            lambda: commands.workers[0].update(pid=5),
            lambda: None,
        )
        with pytest.raises(Enough):
            watch(client, Printed(json_wanted=True), pause)
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["workers"][0]["pid"] for line in lines] == [4000, 5]


def test_without_json_it_is_the_picture_with_the_time_of_day(capsys: pytest.CaptureFixture[str]) -> None:
    printed = Printed(json_wanted=False)
    printed.show(snapshot(worker("w0")), NOW)
    printed.show(snapshot(worker("w0")), NOW + 1)
    printed.show(snapshot(worker("w0", "stopped")), NOW + 2)
    out = capsys.readouterr().out
    assert out.count("Guard 42: running") == 2
    assert out[2] == ":"
    assert "w0      stopped" in out


def test_a_guard_that_is_away_is_asked_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = fake_guard(folder)
    server, _ = first.__enter__()
    second = fake_guard(folder, FakeCommands(worker("new")))
    with ControlClient(server.path) as client:
        pause = turns(
            lambda: first.__exit__(None, None, None),
            lambda: None,
            lambda: None,
            second.__enter__,
            lambda: None,
        )
        with pytest.raises(Enough):
            watch(client, Printed(json_wanted=True), pause)
    second.__exit__(None, None, None)
    said = capsys.readouterr()
    assert [json.loads(line)["workers"][-1]["worker_id"] for line in said.out.splitlines()] == ["w1", "new"]
    assert said.err.count("still asking") == 1


def test_one_that_never_answered_is_an_error(folder: Path) -> None:
    with ControlClient(folder / "none.sock") as client, pytest.raises(GuardUnreachable):
        watch(client, Printed(json_wanted=True), turns())


@pytest.mark.parametrize("width", [60, 120])
def test_the_live_picture(width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=20, color_system="standard")
    with live_screen(console) as screen:
        screen.show(snapshot(worker("w0"), *(worker(f"x{i}", "exhausted") for i in range(30))), NOW)
        screen.away("no guard runs at /x", NOW + 5)
    drawn = out.getvalue()
    assert drawn.startswith("\x1b[?1049h")
    assert "\x1b[?1049l" in drawn
    assert "gave up" in drawn
    assert "more: " in drawn
    assert "NO ANSWER since" in drawn


def run_on_terminal(folder: Path, end: signal.Signals) -> tuple[int, bytes]:
    """The command on a terminal of its own, ended by a signal once it shows a worker."""
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "procguard.main",
        "status",
        "--watch",
        f"--socket={folder / 's.json.sock'}",
    ]
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    seen = b""
    try:
        while b"w1" not in seen:
            assert select.select([ours], [], [], DEADLINE_S)[0], seen
            seen += os.read(ours, 65536)
        process.send_signal(end)
        while True:
            assert select.select([ours], [], [], DEADLINE_S)[0], seen
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the last who had it open has gone
                break
            if not piece:
                break
            seen += piece
        return process.wait(DEADLINE_S), seen
    finally:
        process.kill()
        process.wait(DEADLINE_S)
        os.close(ours)


@pytest.mark.parametrize(("end", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_terminal_is_given_back(folder: Path, end: signal.Signals, code: int) -> None:
    with fake_guard(folder):
        exit_code, seen = run_on_terminal(folder, end)
    assert exit_code == code
    assert b"\x1b[?1049h" in seen
    assert seen.rindex(b"\x1b[?1049l") > seen.rindex(b"w1")
    assert b"Traceback" not in seen
