"""The proactive example: replica 0 ends in each of its ways, with proactive recovery and without.

All jobs train at once on one lighthouse: two replicas each or, where survivors' weights are compared, three.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.lighthouse.running import DEADLINE_S, REPOSITORY, Lighthouse, free_ports

if importlib.util.find_spec("torch") is None:  # not imported: that is the trainers' to do
    pytest.skip("PyTorch is not installed: pip install 'procguard[torch]'", allow_module_level=True)

HOWS = ["leave", "kill", "stop", "wedge"]
AT_STEP, STEPS = 3, 30
PATIENCE_S = 1.5
"""Of a collective, of the lighthouse for threads' beats, and for a step without progress."""
WITH_TWO_SURVIVORS = {("kill", True), ("stop", True), ("stop", False)}
TRAINING_TIMEOUT_S = 3 * DEADLINE_S
"""For all of them at once, on a crowded machine."""
MARK = "PROCGUARD_TEST_DDP"
Event = dict[str, Any]


class Trainer:
    """One replica of a job: where it writes, and how it ended."""

    def __init__(self, folder: Path, name: str) -> None:
        self.journal, self.log = folder / f"{name}.jsonl", folder / f"{name}.log"
        self.pid = 0
        self.code: int | None = None

    def events(self, kind: str) -> list[Event]:
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [event for line in lines if (event := json.loads(line))["event"] == kind]


class Nursery:
    """Trainers that share the import of torch; see ``tests.ddp_nursery``."""

    def __init__(self, mark: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.ddp_nursery"],
            cwd=REPOSITORY,
            env={**os.environ, MARK: mark},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._trainers: list[Trainer] = []
        self._named = 0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def start(self, trainer: Trainer, args: list[str], environ: dict[str, str]) -> None:
        self._trainers.append(trainer)
        order = {"args": args, "env": environ, "log": str(trainer.log)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            if "code" in said:
                next(trainer for trainer in self._trainers if trainer.pid == said["pid"]).code = said["code"]
            elif "pid" in said:
                self._trainers[self._named].pid = said["pid"]
                self._named += 1

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        self._process.stdout.close()


class Job:
    """Some replicas, the first of which ends in some way."""

    def __init__(self, folder: Path, how: str, is_proactive: bool) -> None:
        self.groups = 3 if (how, is_proactive) in WITH_TWO_SURVIVORS else 2
        self.name = f"{how}-{'proactive' if is_proactive else 'waiting'}"
        self.how, self.is_proactive = how, is_proactive
        self.victim, *self.survivors = [
            Trainer(folder, f"{self.name}-{group}") for group in range(self.groups)
        ]

    def start(self, nursery: Nursery, lighthouse: str) -> None:
        for group, trainer in enumerate([self.victim, *self.survivors]):
            # What torchft's users have in their environment works as well.
            prefix = "TORCHFT" if group == 1 else "PROCGUARD"
            environ = {
                f"{prefix}_LIGHTHOUSE": f"http://{lighthouse}",
                f"{prefix}_PROACTIVE_RECOVERY": str(int(self.is_proactive)),
                "PROCGUARD_JOB_ID": self.name,
                "REPLICA_GROUP_ID": str(group),
                "NUM_REPLICA_GROUPS": str(self.groups),
            }
            options = [f"--how={self.how}", f"--at-step={AT_STEP}", f"--steps={STEPS}", "--step-time-ms=20"]
            limits = [f"--timeout={PATIENCE_S}", f"--progress-timeout={PATIENCE_S}"]
            nursery.start(trainer, [*options, *limits, f"--journal={trainer.journal}"], environ)

    @property
    def is_over(self) -> bool:
        return all(survivor.code is not None for survivor in self.survivors)

    def tail(self) -> str:
        trainers = [self.victim, *self.survivors]
        return "\n".join(
            f"{t.log.name} {t.code}\n{t.log.read_text()[-2000:]}" for t in trainers if t.log.exists()
        )


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, bool], Job]]:
    """All of them, when their survivors have ended."""
    folder = tmp_path_factory.mktemp("ddp")
    jobs = {(how, flag): Job(folder, how, flag) for how in HOWS for flag in (True, False)}
    with ExitStack() as stack:
        patience = f"--thread-heartbeat-timeout-ms={PATIENCE_S * 1000:.0f}"
        port = f"--port={free_ports()}"
        lighthouse = stack.enter_context(Lighthouse(port, f"--state-dir={folder / 'state'}", patience))
        lighthouse.listening()
        nursery = Nursery(str(folder))
        stack.callback(_nobody_is_left, str(folder))
        stack.callback(nursery.close)
        for job in jobs.values():
            job.start(nursery, f"127.0.0.1:{port.partition('=')[2]}")
        deadline = time.monotonic() + TRAINING_TIMEOUT_S
        while not all(job.is_over for job in jobs.values()):
            late = [job.tail() for job in jobs.values() if not job.is_over]
            assert time.monotonic() < deadline, "\n".join(late)
            time.sleep(0.05)
        yield jobs


def _nobody_is_left(mark: str) -> None:
    """Listeners end when they have told of their trainer's end."""
    deadline = time.monotonic() + DEADLINE_S
    while left := [process for process in psutil.process_iter() if _is_ours(process, mark)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def _is_ours(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark
    except psutil.Error:
        return False


@pytest.mark.parametrize("is_proactive", [True, False], ids=["proactive", "waiting"])
@pytest.mark.parametrize("how", HOWS)
def test_the_survivors_go_on(jobs: dict[tuple[str, bool], Job], how: str, is_proactive: bool) -> None:
    job = jobs[how, is_proactive]
    (ending,) = job.victim.events("ending")
    assert ending["step"] == AT_STEP and ending["how"] == how
    weights = set()
    for survivor in job.survivors:
        assert survivor.code == 0, job.tail()
        (end,) = survivor.events("end")
        weights.add(end["weights"])
        steps = survivor.events("step")
        committed = [step["step"] for step in steps if step["committed"]]
        assert committed == sorted(set(committed)) and committed[-1] == STEPS
        gave_up = not all(step["committed"] for step in steps)
        # Or it heard of the end while it was still connecting to the others.
        assert gave_up or "asking for a quorum again" in survivor.log.read_text(), job.tail()
        losses = [step["loss"] for step in steps if step["committed"]]
        assert sum(losses[-5:]) / 5 < losses[0] - 0.2, losses
    assert len(weights) == 1, job.tail()


CAUSES = {"leave": "left", "kill": "SIGKILL", "stop": "stopped", "wedge": "no progress"}


@pytest.mark.parametrize("how", HOWS)
def test_who_is_told_need_not_wait(jobs: dict[tuple[str, bool], Job], how: str) -> None:
    job = jobs[how, True]
    for survivor in job.survivors:
        told = survivor.events("told")
        assert told[0]["replica_id"] == "0" and CAUSES[how] in told[0]["cause"]
        assert told[0]["left"] == (how == "leave")
        kind = "departure" if how == "leave" else "failure"
        assert f"Peer {kind} received: replica 0" in survivor.log.read_text()


@pytest.mark.parametrize("how", ["stop"])
def test_who_is_not_told_waits_for_its_collective(jobs: dict[tuple[str, bool], Job], how: str) -> None:
    job = jobs[how, False]
    for survivor in job.survivors:
        assert survivor.events("told") == []
        assert "took longer than 1.5 s" in survivor.log.read_text()


README = REPOSITORY / "examples" / "ddp_proactive" / "README.md"


def commands_of_the_readme() -> list[list[str]]:
    """The lines that its reader copies into the second and the third shell, as words."""
    lines = [line for line in README.read_text().splitlines() if "torchrun" in line and "=" in line]
    return [shlex.split(line) for line in lines if line.startswith("PROCGUARD_")]


def test_the_lines_of_the_readme_under_torchrun(tmp_path: Path) -> None:
    """As they stand, but for the ports, and for options at the end that make it short."""
    ours = {"29510": str(free_ports()), "29600": str(free_ports()), "29601": str(free_ports())}
    ports = re.compile("|".join(ours))
    options = "--how=leave --steps=10 --step-time-ms=20"
    with ExitStack() as stack:
        port = f"--port={ours['29510']}"
        lighthouse = stack.enter_context(Lighthouse(port, f"--state-dir={tmp_path / 'state'}"))
        lighthouse.listening()
        stack.callback(_nobody_is_left, str(tmp_path))
        running = []
        for number, line in enumerate(commands_of_the_readme()):
            words = [ports.sub(lambda match: ours[match[0]], word) for word in line]
            log = stack.enter_context((tmp_path / f"{number}.log").open("w+"))
            command = [sys.executable, "-m", "torch.distributed.run", *words[words.index("torchrun") + 1 :]]
            variables = dict(word.split("=", 1) for word in words[: words.index("torchrun")])
            process = subprocess.Popen(
                [*command, *options.split()],
                cwd=REPOSITORY,
                env={**os.environ, **variables, MARK: str(tmp_path)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            stack.callback(_end, process)
            running.append((process, log.name))
        codes = [process.wait(TRAINING_TIMEOUT_S) for process, _ in running]
        first, second = [Path(name).read_text() for _, name in running]
    assert codes == [0, 0], first + second
    assert "[replica 0] step 3: leave" in first and "its listener is stopping" in first
    assert "Peer departure received: replica 0" in second
    assert "[replica 1] done at step 10" in second


def _end(process: subprocess.Popen[bytes]) -> None:
    """torchrun, when it is terminated, ends its trainer."""
    process.terminate()
    process.wait(DEADLINE_S)
