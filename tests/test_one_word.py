"""``procguard status`` and ``procguard kill``: whom they ask, guard or lighthouse."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from procguard.env import guard_folders
from procguard.main import main
from tests.lighthouse.running import Lighthouse, free_ports
from tests.supervisor.fake_guard import fake_guard


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        monkeypatch.setenv("PROCGUARD_RUNTIME_DIR", str(Path(name) / "run"))
        yield Path(os.path.realpath(name))


def procguard(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environ)


def test_the_guard_that_runs_here_is_asked(folder: Path) -> None:
    with fake_guard(folder, folders=guard_folders()):
        shown = procguard("status")
        assert (shown.exit_code, shown.stderr) == (0, "")
        assert shown.stdout.startswith("Guard 4242: running")
        assert json.loads(procguard("status", "--json").stdout)["guard"]["pid"] == 4242


def test_a_lighthouse_that_is_named_goes_before_it(folder: Path) -> None:
    with (
        Lighthouse("--port=0").listening() as lighthouse,
        fake_guard(folder, folders=guard_folders()) as (server, _),
    ):
        address = f"127.0.0.1:{lighthouse.port}"
        by_variable = procguard("status", PROCGUARD_LIGHTHOUSE=address)
        assert by_variable.stdout.startswith(f"Lighthouse {address}")
        assert by_variable.stderr == "\nA guard runs here, too: procguard status --guard\n"
        by_flag = procguard("status", f"--lighthouse={address}")
        assert by_flag.stdout.startswith(f"Lighthouse {address}")
        assert by_flag.stderr == ""
        assert "epoch" in json.loads(procguard("status", "--json", PROCGUARD_LIGHTHOUSE=address).stdout)
        for flag in ("--guard", f"--socket={server.path}"):
            assert procguard("status", flag, PROCGUARD_LIGHTHOUSE=address).stdout.startswith("Guard 4242")


def test_where_neither_is_both_are_explained(folder: Path) -> None:
    shown = procguard("status", "--timeout=0.05")
    assert shown.exit_code == 1
    assert (
        "no guard runs here for you, and no lighthouse is named. Start one with `procguard --config"
        in shown.stderr
    )
    assert "No lighthouse answered at localhost:29510" in shown.stderr
    killed = procguard("kill", "a")
    assert killed.exit_code == 2
    assert "no guard runs here for you" in killed.stderr
    assert "needs an operator's key" in killed.stderr


def test_a_named_lighthouse_that_is_away_is_no_reason_to_ask_the_guard(folder: Path) -> None:
    with fake_guard(folder, folders=guard_folders()):
        shown = procguard("status", "--timeout=0.05", PROCGUARD_LIGHTHOUSE=f"localhost:{free_ports()}")
        assert shown.exit_code == 1
        assert shown.stderr.startswith("Error: No lighthouse answered at localhost:")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["status", "--guard", "--lighthouse=a:1"],
            "--guard is about a guard and --lighthouse about a lighthouse",
        ),
        (
            ["status", "--config=g.yaml", "--job=train"],
            "--config is about a guard and --job about a lighthouse",
        ),
        (
            ["kill", "a", "--signal=TERM", "--keys=k"],
            "--signal is about a guard and --keys about a lighthouse",
        ),
        (["kill"], "Missing argument 'NAME...'"),
        (
            ["kill", "a", "b", "--lighthouse=localhost:1"],
            "a lighthouse ends one replica at a time, and 2 are named",
        ),
        (["status", "--guard"], "no guard runs here for you"),
        (["status", "--guard", "--timeout=never", "--socket=/s"], "--timeout: 'never' is not a time span"),
    ],
)
def test_what_does_not_go_together(folder: Path, arguments: list[str], said: str) -> None:
    shown = procguard(*arguments)
    assert shown.exit_code in (1, 2)
    assert said in shown.stderr
    assert shown.stdout == ""


def test_kill_signals_workers(folder: Path) -> None:
    with fake_guard(folder, folders=guard_folders()) as (_, commands):
        killed = procguard("kill", "w0", "w1", "--signal", "term")
        assert (killed.exit_code, killed.stdout) == (0, "w0: got SIGTERM\nw1: got SIGTERM\n")
        assert json.loads(procguard("kill", "w1", "--json").stdout) == {"w1": True}
        assert commands.told == [("kill", ["w0", "w1"], signal.SIGTERM), ("kill", ["w1"], signal.SIGKILL)]
        commands.outcome = False
        down = procguard("kill", "w0")
        assert (down.exit_code, down.stderr) == (1, "w0: does not run: nobody got the signal\n")
        assert "--signal: 'X' is no signal" in procguard("kill", "w0", "--signal=X").stderr


def test_a_replica_that_is_no_worker_is_a_hint_at_the_lighthouse(folder: Path) -> None:
    with fake_guard(folder, folders=guard_folders()) as (_, commands):
        shown = procguard("kill", "replica-7")
        assert shown.exit_code == 2
        assert "no worker 'replica-7'" in shown.stderr
        assert "name its lighthouse with --lighthouse" in shown.stderr
        assert commands.told == []


def test_a_named_lighthouse_protects_a_worker_of_the_same_name(folder: Path) -> None:
    with fake_guard(folder, folders=guard_folders()) as (_, commands):
        shown = procguard("kill", "w0", PROCGUARD_LIGHTHOUSE="localhost:1")
        assert shown.exit_code == 2
        assert shown.stderr.startswith("Error: procguard kill needs an operator's key")
        assert commands.told == []


@pytest.mark.parametrize("word", ["status", "kill"])
def test_help_says_the_rule(word: str) -> None:
    text = " ".join(procguard(word, "--help").output.split())
    assert "a lighthouse, if you name one" in text
    assert "otherwise the guard that runs here" in text
