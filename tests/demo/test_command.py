"""``procguard demo`` as a user starts it: real processes, really killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from procguard.demo import command
from procguard.demo.keeper import MARK, sweep
from procguard.main import main

DEADLINE_S = 240.0
"""For the whole demo, which takes 12 s on an idle machine."""
POLL_S = 0.02


class Demo:
    """``procguard demo`` in a process of its own, with its folders in ``folder``."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self._folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "procguard.main", "demo", "--replicas=3", "--seed=7", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(folder)},
            text=True,
        )

    def processes(self, *words: str) -> list[psutil.Process]:
        """Those that the demo has started and in whose command line all these words are."""
        found = []
        for process in psutil.process_iter():
            try:
                mark, line = process.environ().get(MARK, ""), " ".join(process.cmdline())
            except psutil.Error:  # gone meanwhile, or another user's
                continue
            if mark.startswith(str(self._folder)) and all(word in line for word in words):
                found.append(process)
        return found

    def wait_until(self, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not holds():
            assert time.monotonic() < deadline, "it never came so far"
            time.sleep(POLL_S)

    def end(self) -> tuple[int, str, str]:
        """Its exit code, and what it said."""
        output, errors = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, output, errors


@contextmanager
def running(folder: Path, *flags: str) -> Iterator[Demo]:
    demo = Demo(folder, *flags)
    try:
        yield demo
    finally:
        demo.process.kill()
        demo.process.communicate()
        for run in folder.iterdir():
            sweep(str(run))


def test_the_job_survives(tmp_path: Path) -> None:
    with running(tmp_path, "--json") as demo:
        code, output, errors = demo.end()
        assert code == 0, errors
        assert demo.processes() == []
    facts = json.loads(output)
    assert [event["kind"] for event in facts["events"]] == ["kill", "stop"]
    for event in facts["events"]:
        assert len(event["told_ms"]) == 2
        assert min(*event["told_ms"], event["next_step_ms"], event["healed_ms"]) > 0
    assert facts["weights_equal"]
    assert facts["accuracy"] >= 0.9
    assert facts["broken_promises"] == []
    assert (facts["false_notices"], facts["survivors_restarted"], facts["seed"]) == (0, 0, 7)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_promise_is_said_and_its_logs_are_kept(tmp_path: Path) -> None:
    with running(tmp_path) as demo:
        demo.wait_until(lambda: demo.processes("train_digits"))
        (lighthouse,) = demo.processes("lighthouse.cli")
        lighthouse.kill()
        code, _, errors = demo.end()
        assert code == 1
        assert "Broken: the lighthouse was ended by SIGKILL; its log ends with:" in errors
        (folder,) = tmp_path.iterdir()
        assert f"Logs and journals are in {folder} (seed 7)" in errors
        assert (folder / "lighthouse.log").stat().st_size > 0
        assert demo.processes() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_demo_that_is_ended_takes_everything_with_it(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path) as demo:
        demo.wait_until(lambda: demo.processes("client.listener"))
        demo.process.send_signal(number)
        code, _, errors = demo.end()
        demo.wait_until(lambda: not demo.processes())
        if number is signal.SIGTERM:
            assert (code, errors.strip()) == (1, "Aborted!")
            assert list(tmp_path.iterdir()) == []


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "NEEDED", {"numpy": "numpy", "no_such_module": "scikit-learn"})
    answer = CliRunner().invoke(main, ["demo"])
    assert answer.exit_code == 2
    assert answer.output == (
        "Error: procguard demo needs scikit-learn; install: python -m pip install 'procguard[demo]'\n"
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--replicas=1"], "1 is not in the range"),
        (["--kills=-1"], "-1 is not in the range"),
        (["--seed=x"], "'x' is not a valid integer range"),
        (["--compare", "--no-proactive"], "leave out --no-proactive"),
    ],
)
def test_what_it_refuses(flags: list[str], said: str) -> None:
    answer = CliRunner().invoke(main, ["demo", *flags])
    assert answer.exit_code == 2
    assert said in answer.output
