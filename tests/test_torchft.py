"""torchft's own Manager and ProcessGroupGloo, unchanged, train on ProcGuard: real processes, and struck.

The script (``tests/torchft_train.py``) knows torchft alone. Its collectives have five minutes of patience, so
whoever goes on sooner than that was freed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.lighthouse.running import REPOSITORY, Lighthouse, free_ports

if find_spec("torchft") is None:  # not imported here: that takes seconds, and the nursery does it
    pytest.skip("torchft is not installed: pip install procguard[torchft]", allow_module_level=True)

RANKS = 2
DEADLINE_S = 180.0
"""For what takes a second on an idle machine; well below the collectives' patience."""
TICK_S = 0.02
STEPS_TO_COME = 10
PATIENT = (
    "--heartbeat-timeout-ms=5000",
    "--thread-heartbeat-timeout-ms=20000",
    "--disconnect-grace-ms=3000",
)
"""On a crowded machine a listener may not come to beat for a second."""
Event = dict[str, Any]


class Trainer:
    """One rank, as a process of the nursery's."""

    def __init__(self, group: str, rank: int, pid: int, out: Path, err: Path) -> None:
        self.group, self.rank, self.pid = group, rank, pid
        self._out, self._err = out, err

    @property
    def events(self) -> list[Event]:
        text = self._out.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    @property
    def steps(self) -> list[Event]:
        return [event for event in self.events if event["event"] == "step"]

    @property
    def committed(self) -> list[Event]:
        return [event for event in self.steps if event["committed"]]

    @property
    def log(self) -> str:
        return self._err.read_text(errors="replace")

    def said(self, event: str) -> list[Event]:
        return [each for each in self.events if each["event"] == event]


class Job:
    """A lighthouse, a nursery, and the trainers it has forked."""

    def __init__(self, directory: Path, port: int) -> None:
        self._directory = directory
        self._port = port
        self._last_step = directory / "last_step"
        self._news: list[Event] = []
        self._heard = threading.Condition()
        self.codes: dict[int, int] = {}
        self._trainers: list[Trainer] = []
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", "tests.torchft_nursery"],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._nursery.stdout is not None
        for line in self._nursery.stdout:
            event = json.loads(line)
            with self._heard:
                if "ended" in event:
                    self.codes[event["ended"]] = event["code"]
                else:
                    self._news.append(event)
                self._heard.notify_all()

    def start(self, group: str, **environ: str) -> list[Trainer]:
        """All ranks of a replica group, with a store of their own."""
        store = str(free_ports())
        trainers = [self._start(group, 0, store, environ)]
        # Who asks for a store that is not there yet asks again after a pause that doubles each time.
        self.until(lambda: bool(trainers[0].said("store")), "rank 0 opens the store")
        return trainers + [self._start(group, rank, store, environ) for rank in range(1, RANKS)]

    def _start(self, group: str, rank: int, store: str, environ: dict[str, str]) -> Trainer:
        name = f"{group}-{rank}-{len(self._trainers)}"
        out, err = self._directory / f"{name}.out", self._directory / f"{name}.err"
        out.touch()
        facts = {
            "REPLICA_GROUP_ID": group,
            "RANK": str(rank),
            "WORLD_SIZE": str(RANKS),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": store,
            "LAST_STEP": str(self._last_step),
            "PROCGUARD_LIGHTHOUSE": f"127.0.0.1:{self._port}",
            **environ,
        }
        assert self._nursery.stdin is not None
        self._nursery.stdin.write(json.dumps({"environ": facts, "out": str(out), "err": str(err)}) + "\n")
        self._nursery.stdin.flush()
        with self._heard:
            assert self._heard.wait_for(lambda: self._news, DEADLINE_S)
            pid = self._news.pop(0)["born"]
        trainer = Trainer(group, rank, pid, out, err)
        self._trainers.append(trainer)
        return trainer

    def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not holds():
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {t.group}/{t.rank}\n{t.log[-3000:]}" for t in self._trainers)
                raise AssertionError(f"it did not happen that {what}\n{logs}")
            with self._heard:
                self._heard.wait(TICK_S)

    def train(self, *trainers: Trainer, groups: int) -> None:
        """Two steps more of each are committed, by so many groups together."""
        before = {trainer.pid: len(trainer.steps) for trainer in trainers}

        def further(trainer: Trainer) -> bool:
            later = trainer.steps[before[trainer.pid] :]
            return len([s for s in later if s["committed"] and s["participants"] == groups]) >= 2

        self.until(lambda: all(map(further, trainers)), f"{groups} groups commit together")

    def code(self, trainer: Trainer) -> int:
        self.until(lambda: trainer.pid in self.codes, f"{trainer.group}/{trainer.rank} ends")
        return self.codes[trainer.pid]

    def finish(self, *trainers: Trainer) -> list[Event]:
        """Let all stop at one step to come; what they say in the end."""
        scratch = self._last_step.with_suffix(".new")
        scratch.write_text(str(max(t.steps[-1]["step"] for t in trainers) + STEPS_TO_COME))
        scratch.rename(self._last_step)
        assert {self.code(trainer) for trainer in trainers} == {0}, [t.log[-2000:] for t in trainers]
        return [trainer.said("ended")[0] for trainer in trainers]

    def close(self) -> None:
        assert self._nursery.stdin is not None and self._nursery.stdout is not None
        self._nursery.stdin.close()
        self._nursery.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        self._nursery.stdout.close()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    with Lighthouse("--port=0", *PATIENT) as lighthouse:
        job = Job(tmp_path, lighthouse.listening().port)
        try:
            yield job
        finally:
            job.close()


@pytest.mark.parametrize("fsdp", ["0", "1"], ids=["ddp", "fsdp"])
def test_a_group_is_lost_in_the_middle_of_a_step_and_heals(job: Job, fsdp: str) -> None:
    zero, one = job.start("0", FSDP=fsdp), job.start("1", FSDP=fsdp)
    job.train(*zero, *one, groups=2)

    os.kill(one[1].pid, signal.SIGSTOP)  # Gloo does not notice, nor does it let go when it is aborted
    os.kill(
        one[0].pid, signal.SIGKILL
    )  # and this is told to all, also to those who wait for the stopped rank
    job.train(*zero, groups=1)
    assert all("Peer failure received: replica 1:" in trainer.log for trainer in zero)
    os.kill(one[1].pid, signal.SIGKILL)

    one = job.start("1", FSDP=fsdp)
    job.train(*zero, *one, groups=2)
    assert all(trainer.said("healed") for trainer in one)
    ended = job.finish(*zero, *one)
    for rank in range(RANKS):
        weights = {(e["step"], e["weights"]) for e in ended if e["rank"] == rank}
        assert len(weights) == 1, ended
    assert len({event["weights"] for event in ended}) == RANKS  # each rank has a shard of its own
    losses = [step["loss"] for step in zero[0].committed]
    assert losses[-1] < losses[0] / 2
