"""The verbs of a running guard, as a person and as a script meet them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from procguard.env import guard_folders
from procguard.errors import GuardError
from procguard.guard_commands import LOOKS_PER_ASKING, LogPrinter, follow_logs, news_of
from procguard.guard_logs import Following
from procguard.main import main
from procguard.supervisor.control_client import ControlClient
from tests.supervisor.fake_guard import DEADLINE_S, STARTED_AT, FakeCommands, fake_guard


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        monkeypatch.setenv("PROCGUARD_RUNTIME_DIR", str(Path(name) / "run"))
        yield Path(os.path.realpath(name))


@pytest.fixture
def guard(folder: Path) -> Iterator[FakeCommands]:
    with fake_guard(folder, folders=guard_folders()) as (_, commands):
        yield commands


def procguard(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


class Enough(Exception):
    """Ends what has no end."""


def turns(*steps: Callable[[], Any]) -> Callable[[float], None]:
    """A pause that does the next step instead of waiting, and raises ``Enough`` after the last."""
    left = iter(steps)

    def pause(seconds: float) -> None:
        step = next(left, None)
        if step is None:
            raise Enough
        step()

    return pause


# --- what changes something


@pytest.mark.parametrize(
    ("arguments", "said", "told"),
    [
        (["start", "w1"], "w1: runs\n", ("start", ["w1"])),
        (["stop", "w1", "w0"], "w1: stopped\nw0: stopped\n", ("stop", ["w1", "w0"], False)),
        (["stop", "--all", "--force"], "w0: stopped\nw1: stopped\n", ("stop", ["w0", "w1"], True)),
        (["restart", "--all"], "w0: runs anew\nw1: runs anew\n", ("restart", ["w0", "w1"])),
    ],
)
def test_commands(guard: FakeCommands, arguments: list[str], said: str, told: tuple[Any, ...]) -> None:
    for _ in range(2):
        shown = procguard(*arguments)
        assert (shown.exit_code, shown.stdout, shown.stderr) == (0, said, "")
    assert guard.told == [told, told]
    as_json = json.loads(procguard(*arguments, "--json").stdout)
    assert as_json == dict.fromkeys(told[1], True)


def test_what_could_not_be_done_is_exit_code_1(guard: FakeCommands) -> None:
    guard.outcome = False
    shown = procguard("stop", "w0")
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert shown.stderr == "w0: not all of it has ended; `procguard status` says why\n"
    as_json = procguard("start", "w0", "--json")
    assert (as_json.exit_code, json.loads(as_json.stdout)) == (1, {"w0": False})
    guard.refusal = GuardError("the chain is at work")
    assert procguard("start", "w0").stderr == "Error: the chain is at work\n"


@pytest.mark.parametrize("verb", ["start", "stop", "restart"])
def test_nothing_is_never_all(guard: FakeCommands, verb: str) -> None:
    shown = procguard(verb)
    assert shown.exit_code == 2
    assert f"Say `procguard {verb} WORKER...`, or --all" in shown.stderr
    assert "--all and w0 both say which workers" in procguard(verb, "w0", "--all").stderr
    unknown = procguard(verb, "w00")
    assert (unknown.exit_code, unknown.stderr) == (2, "Error: no worker 'w00'; did you mean w0?\n")
    assert guard.told == []


def test_without_a_guard_each_verb_says_how_to_start_one(folder: Path) -> None:
    for arguments in (
        ["start", "w0"],
        ["stop", "--all"],
        ["restart", "w0"],
        ["logs", "w0"],
        ["tasks"],
        ["events"],
    ):
        shown = procguard(*arguments)
        assert shown.exit_code == 1
        assert "Start one with `procguard --config FILE`" in shown.stderr


def test_a_guard_without_workers(guard: FakeCommands) -> None:
    guard.workers = []
    assert procguard("stop", "--all").stdout == "This guard has no workers\n"


# --- tasks and events


def test_tasks(guard: FakeCommands) -> None:
    assert procguard("tasks").stdout.splitlines() == [
        "  TASK  WORKER",
        "  t1    w0",
        "  t2    w0",
        "  t3    (nobody yet: in the queue)",
    ]
    assert json.loads(procguard("tasks", "--json").stdout)["queue"] == ["t3"]


def happened(seq: int) -> dict[str, Any]:
    return {"seq": seq, "at": STARTED_AT + seq, "worker_id": "w0", "kind": "started", "text": f"start {seq}"}


def test_the_last_events(guard: FakeCommands) -> None:
    guard.happened = [happened(seq) for seq in range(1, 30)]
    lines = procguard("events", "-n", "3").stdout.splitlines()
    assert [line.split("  ")[1:] for line in lines] == [
        ["w0", "start 27"],
        ["w0", "start 28"],
        ["w0", "start 29"],
    ]
    lines = procguard("events", "--json").stdout.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == list(range(10, 30))


def test_events_are_followed_over_a_restart_of_the_guard(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = FakeCommands(), FakeCommands()
    first.happened = [happened(1), happened(2)]
    second.happened = [happened(1)]
    running = fake_guard(folder, first)
    server, _ = running.__enter__()
    with ControlClient(server.path) as client:
        client.ask("status")
        client.guard_pid = -1  # both guards are this process: let the first be another
        later = fake_guard(folder, second)
        pause = turns(
            lambda: first.happened.append(happened(3)),
            lambda: running.__exit__(None, None, None),
            lambda: None,
            later.__enter__,
        )
        seen: list[int] = []
        with pytest.raises(Enough):
            for events in news_of(client, 2, pause):
                seen += [event["seq"] for event in events]
        later.__exit__(None, None, None)
    assert seen == [3, 1]
    said = capsys.readouterr().err
    assert said.count("still asking") == 1
    assert "The guard answers again" in said


# --- logs


def wrote(guard: FakeCommands, folder: Path, out: str, err: str) -> tuple[Path, Path]:
    paths = folder / "w.log", folder / "w.err"
    paths[0].write_text(out)
    paths[1].write_text(err)
    guard.paths = {"stdout": str(paths[0]), "stderr": str(paths[1])}
    return paths


def test_both_streams_are_shown(guard: FakeCommands, folder: Path) -> None:
    wrote(guard, folder, "one\ntwo\nthree\n", "Traceback\nBoom")
    shown = procguard("logs", "w0", "-n", "2").stdout
    assert shown == "==> w0 stdout <==\ntwo\nthree\n\n==> w0 stderr <==\nTraceback\nBoom\n"
    assert procguard("logs", "w0", "--stderr").stdout == "Traceback\nBoom"
    lines = procguard("logs", "w0", "--json", "-n1").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"worker_id": "w0", "stream": "stdout", "line": "three"},
        {"worker_id": "w0", "stream": "stderr", "line": "Boom"},
    ]


def test_one_file_for_both_is_shown_once(guard: FakeCommands, folder: Path) -> None:
    out, _ = wrote(guard, folder, "one\n\x1b[32mgreen\x1b[0m\n", "")
    guard.paths = {"stdout": str(out), "stderr": str(out)}
    assert procguard("logs", "w0").stdout_bytes == b"one\n\x1b[32mgreen\x1b[0m\n"


def test_what_is_not_there(guard: FakeCommands, folder: Path) -> None:
    wrote(guard, folder, "", "")
    assert procguard("logs", "w0").stdout == ""
    assert procguard("logs", "w9").exit_code == 2
    guard.paths = {}
    shown = procguard("logs", "w0")
    assert (shown.exit_code, shown.stderr) == (1, "Error: the guard keeps no output of w0\n")


def test_logs_are_followed_over_rotation_other_paths_and_the_guards_absence(
    guard: FakeCommands,
    folder: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, _ = wrote(guard, folder, "old\n", "")
    guard.paths = {"stdout": str(out)}
    other = folder / "other.log"

    def add(path: Path, text: str) -> Callable[[], None]:
        def write() -> None:
            with path.open("a") as file:
                file.write(text)

        return write

    def rotate() -> None:
        (folder / "w.log.1").write_bytes(out.read_bytes())
        os.truncate(out, 0)

    def move() -> None:
        other.write_text("elsewhere\n")
        guard.paths = {"stdout": str(other)}

    def vanish() -> None:
        client.path = folder / "nobody.sock"
        client.close()

    nothing = [lambda: None] * (LOOKS_PER_ASKING + 1)
    pause = turns(
        add(out, "one\n"),
        rotate,
        add(out, "two\n"),
        *nothing,
        move,
        *nothing,
        vanish,
        *nothing,
        *nothing,
        add(other, "last\n"),
    )
    with ControlClient(folder / "s.json.sock") as client:
        following = {"stdout": Following(out)}
        following["stdout"].tail(0)
        printer = LogPrinter("w0", json_wanted=False, several=False)
        with pytest.raises(Enough):
            follow_logs(client, "w0", None, following, printer, pause)
    printed = capfdbinary.readouterr()
    assert printed.out == b"one\ntwo\nelsewhere\nlast\n"
    assert printed.err.count(b"still following w0's files") == 1


def test_lines_of_two_streams_never_mix(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    printer = LogPrinter("w0", json_wanted=False, several=True)
    printer.add("stdout", b"half of")
    printer.add("stderr", b"error\n")
    printer.add("stdout", b" a line\n")
    printer.add("stdout", b"more\n")
    assert capfdbinary.readouterr().out == (
        b"==> w0 stderr <==\nerror\n\n==> w0 stdout <==\nhalf of a line\nmore\n"
    )


# --- what it costs


@pytest.mark.parametrize("arguments", [["stop", "--help"], ["logs", "--help"], ["events", "--help"]])
def test_a_verb_loads_nothing_of_the_lighthouses_wire(arguments: list[str]) -> None:
    program = (
        "import sys; from procguard.main import main; main(sys.argv[1:], standalone_mode=False);"
        "print(sorted({'numpy', 'rich', 'zmq', 'msgpack', 'pydantic', 'psutil'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, *arguments]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"
