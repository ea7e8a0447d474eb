"""A training job of real processes: a lighthouse, trainers (``tests.trainer``), and all that they say.

Everything that is waited for has one deadline, generous enough for a crowded machine, and what was said until
then stands in the failure's message. Nothing here sleeps: what a trainer says wakes the one who waits, and
what only the kernel or the lighthouse know is asked again after a tick.

A test strikes trainers with ``strike`` and ``end``; all others are innocent, and ``check`` holds that nobody
was told of them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from procguard.messages import MemberView, Snapshot, SnapshotRequest
from tests.lighthouse.running import DEADLINE_S, REPOSITORY, Lighthouse, free_ports

MARK = "PROCGUARD_TEST_JOB"
"""In the environment of every trainer, and so of every process that comes of it."""
TICK_S = 0.02
STEPS_PROVING_LIFE = 2
TAIL_COUNT = 8

Event = dict[str, Any]


class Trainer:
    """One trainer process, and what it said."""

    def __init__(
        self, job: Job, replica_id: str, log: Path, environ: dict[str, str], at: Sequence[str] = ()
    ) -> None:
        self.replica_id = replica_id
        self.rank = int(environ.get("RANK", "0"))
        self.events: list[Event] = []
        self.struck: list[str] = []
        """Incarnations that the test put an end to."""
        self.job_id = environ.get("PROCGUARD_JOB_ID", "default")
        self.is_threaded = environ.get("PROCGUARD_PROACTIVE_RECOVERY") == "0"
        self._job = job
        self._log = log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [*at, sys.executable, "-m", "tests.trainer"],
                cwd=REPOSITORY,
                env={**os.environ, "OWN_JOB": "1", "REPLICA_ID": replica_id, **environ},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self.pid = self.process.pid
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._job.news:
                self.events.append(json.loads(line))
                self._job.news.notify_all()

    @property
    def lives(self) -> bool:
        return self.process.poll() is None

    @property
    def log(self) -> str:
        """What it wrote on stderr so far."""
        return self._log.read_text(errors="replace")

    def said(self, event: str, **facts: Any) -> list[Event]:
        """Its events of this kind, and with these facts."""
        return [e for e in list(self.events) if e["event"] == event and facts.items() <= e.items()]

    @property
    def last(self) -> Event:
        """The facts of its last step."""
        return self.said("step")[-1]

    @property
    def incarnation(self) -> str:
        return str(self.last["incarnation"])

    @property
    def is_watched(self) -> bool:
        """By a listener process, if it wants one; no thread stands in for it."""
        return self.is_threaded or not self.last["thread_beats"]

    def do(self, words: str) -> None:
        """Have its main thread run these words of Python in the middle of the next step."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    def hang(self, words: str = "hang()") -> None:
        """Return when it has stopped in the middle of a step, with the others waiting in their collective."""
        before = len(self.said("hanging"))
        self.do(words)
        self._job.until(lambda: len(self.said("hanging")) > before, f"{self.replica_id} hangs")

    def strike(self, number: signal.Signals) -> None:
        """Send a signal that puts an end to its incarnation."""
        self.struck.append(self.incarnation)
        self.process.send_signal(number)

    def end(self, words: str) -> None:
        """Have it run words that put an end to its incarnation."""
        self.struck.append(self.incarnation)
        self.do(words)

    def exit_code(self) -> int:
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        """Kill it, if it still runs."""
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def release(self) -> None:
        """Let go of its pipes, once nobody holds their other ends."""
        self._reader.join(DEADLINE_S)
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):  # words that it did not live to hear
            self.process.stdin.close()
        self.process.stdout.close()

    def tail(self) -> str:
        lines = [*map(json.dumps, self.events[-TAIL_COUNT:]), *self.log.splitlines()[-TAIL_COUNT:]]
        return "\n  ".join([f"{self.replica_id} (pid {self.pid}, exit code {self.process.poll()})", *lines])


class Job:
    """A lighthouse on a port of its own, and the trainers that ever were.

    Use as a context manager: at its end no process of it is left, or that is a failure.
    """

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self.news = threading.Condition()
        self.trainers: list[Trainer] = []
        self.port = free_ports()
        self.address = f"127.0.0.1:{self.port}"
        self.places: dict[str, Sequence[str]] = {}
        """What stands in front of the command of a replica that runs elsewhere."""
        self._flags = flags
        self._state_dirs = 0
        self.start_lighthouse(empty=True)

    # --- what is done to it -------------------------------------------------------------------------

    def start_lighthouse(self, *, empty: bool = False) -> None:
        """Start it on the job's port, with the state of the last one, or an empty state directory."""
        self._state_dirs += empty
        state_dir = self.folder / f"state-{self._state_dirs}"
        self.lighthouse = Lighthouse(f"--port={self.port}", f"--state-dir={state_dir}", *self._flags)
        self.lighthouse.listening()
        self.is_lit = True

    def kill_lighthouse(self) -> None:
        self.is_lit = False
        self.lighthouse.kill(signal.SIGKILL)
        self.lighthouse.__exit__()

    def start(self, replica_id: str, **environ: str) -> Trainer:
        log = self.folder / f"trainer-{len(self.trainers)}.log"
        marked = {"PROCGUARD_LIGHTHOUSE": self.address, MARK: str(self.folder), **environ}
        trainer = Trainer(self, replica_id, log, marked, self.places.get(replica_id, ()))
        self.trainers.append(trainer)
        return trainer

    def fill(self, *replica_ids: str, **environ: str) -> list[Trainer]:
        """These replicas, in training together, each with its listener; who has no process gets one."""
        job_id = environ.get("PROCGUARD_JOB_ID", "default")
        living = {t.replica_id: t for t in self.trainers if t.lives and t.job_id == job_id}
        trainers = [living.get(replica_id) or self.start(replica_id, **environ) for replica_id in replica_ids]
        self.trains(*trainers)
        self.until(lambda: all(trainer.is_watched for trainer in trainers), "listeners watch all of them")
        return trainers

    def dismiss_all_but(self, *replica_ids: str) -> None:
        """End the trainers of all other replicas."""
        for trainer in self.trainers:
            if trainer.lives and trainer.replica_id not in replica_ids:
                trainer.strike(signal.SIGKILL)
                trainer.exit_code()

    # --- what is waited for -------------------------------------------------------------------------

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Return when it holds."""
        deadline = time.monotonic() + DEADLINE_S
        with self.news:
            while not condition():
                assert time.monotonic() < deadline, f"waited in vain until {what}\n{self.tail()}"
                self.news.wait(TICK_S)

    def trains(self, *trainers: Trainer) -> None:
        """Wait until these have committed some more steps, the same ones, in a quorum of just them."""
        seen = {trainer: len(trainer.events) for trainer in trainers}

        def good_steps(trainer: Trainer) -> set[tuple[int, int]]:
            steps = [e for e in trainer.events[seen[trainer] :] if e["event"] == "step" and e["committed"]]
            return {(e["step"], e["quorum"]) for e in steps if e["size"] == len(trainers)}

        def common() -> set[tuple[int, int]]:
            return set.intersection(*map(good_steps, trainers))

        names = ", ".join(trainer.replica_id for trainer in trainers)
        self.until(lambda: len(common()) >= STEPS_PROVING_LIFE, f"{names} train together")

    def told(self, victim: Trainer, by: Sequence[Trainer]) -> set[str]:
        """Wait until all of them know of the victim's end; the causes that they were told."""
        (*_, incarnation) = victim.struck

        def notices(trainer: Trainer) -> list[Event]:
            return trainer.said("told", replica_id=victim.replica_id, incarnation=incarnation)

        self.until(lambda: all(map(notices, by)), f"all were told of {victim.replica_id}")
        return {event["cause"] for trainer in by for event in notices(trainer)}

    def snapshot(self, job_id: str = "default") -> Snapshot:
        """What the lighthouse knows."""
        snapshot = self.lighthouse.answer(SnapshotRequest(job_id))
        assert isinstance(snapshot, Snapshot)
        return snapshot

    def members(self, job_id: str = "default") -> dict[str, MemberView]:
        """The members as the lighthouse sees them."""
        return {member.replica_id: member for job in self.snapshot(job_id).jobs for member in job.members}

    def is_watched(self, trainer: Trainer) -> bool:
        """As seen from outside: its listener process hears notices, and no thread of its own does."""

        def hears(process: psutil.Process) -> bool:
            connections = process.net_connections("tcp")
            return any(end.raddr and end.raddr.port == self.port + 1 for end in connections)

        process = psutil.Process(trainer.pid)
        return not hears(process) and any(map(hears, process.children()))

    # --- what must hold, whatever happened ----------------------------------------------------------

    def check(self) -> None:
        """Nobody was told of an innocent, or twice; weights are equal; no process too many, nor a zombie."""
        self._check_notices()
        self._check_weights()
        living = [trainer for trainer in self.trainers if trainer.lives]
        wanted = {trainer.pid for trainer in living}

        def listeners() -> set[int]:
            return {pid for trainer in living for pid in trainer.last["listeners"]}

        self.until(lambda: self.processes() == wanted | listeners(), "there is no process too many")
        self.until(lambda: not any(map(zombies_of, wanted)), "no trainer has a zombie")

    def _check_notices(self) -> None:
        over = {(trainer.replica_id, life) for trainer in self.trainers for life in trainer.struck}
        for trainer in self.trainers:
            told = [(event["replica_id"], event["incarnation"]) for event in trainer.said("told")]
            assert len(told) == len(set(told)), f"{trainer.replica_id} was told twice: {told}"
            assert set(told) <= over, f"{trainer.replica_id} was told of the living: {set(told) - over}"

    def _check_weights(self) -> None:
        weights = defaultdict(set)
        for trainer in self.trainers:
            for event in trainer.said("step", committed=True):
                weights[event["step"], event["quorum"], trainer.rank].add(event["weights"])
        unequal = {step: digests for step, digests in weights.items() if len(digests) > 1}
        assert not unequal, f"weights differ after {unequal}"

    def processes(self) -> set[int]:
        """All that came of this job's trainers and still runs."""
        return {process.pid for process in psutil.process_iter() if self._is_ours(process)}

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == str(self.folder)
        except psutil.Error:  # gone meanwhile, or a zombie, or another user's
            return False

    def tail(self) -> str:
        """What a failure's message says of all of it."""
        said = [line for line in iter(lambda: _next(self.lighthouse), None) if line]
        known = [
            f"{m.replica_id}: {m.state.name} {m.incarnation} step {m.step} in "
            f"{'/'.join([rank.phase.name for rank in m.ranks])}{', asking' * m.waiting}"
            for m in (self.members("").values() if self.is_lit else ())
        ]
        return "\n".join(["lighthouse", *said, *known, *(trainer.tail() for trainer in self.trainers)])

    # --- its end ------------------------------------------------------------------------------------

    def close(self) -> None:
        """End it. The lighthouse goes last: listeners stay until it has heard of their trainers' end."""
        for trainer in self.trainers:
            trainer.close()
        try:
            self.until(lambda: not self.processes(), "the last listener has gone")
        finally:
            for pid in self.processes():
                os.kill(pid, signal.SIGKILL)
            for trainer in self.trainers:
                trainer.release()
            self.lighthouse.__exit__()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _next(lighthouse: Lighthouse) -> str | None:
    return None if lighthouse.errors.empty() else lighthouse.errors.get()


def zombies_of(pid: int) -> list[int]:
    """Children that have ended and that nobody waited for."""
    try:
        children = psutil.Process(pid).children()
        return [child.pid for child in children if child.status() == psutil.STATUS_ZOMBIE]
    except psutil.NoSuchProcess:
        return []
