"""The processes of a run: a lighthouse, the replicas, their logs and journals; none of them outlives it.

All of them carry the run's mark, by which ``close`` (or the keeper, if the demo is killed) finds them. They
run in sessions of their own, so that a Ctrl-C in the terminal is the demo's alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from procguard.demo.faults import name_of
from procguard.demo.journal import Entry, parse
from procguard.demo.keeper import MARK, sweep

STEP_TIME_MS = 20
COLLECTIVE_TIMEOUT_S = 5
STEPS_MAX = 1_000_000
"""The demo asks the replicas to end long before."""
KEEPER_TIMEOUT_S = 10.0
LOG_LINES_SHOWN = 5
STEERING = (
    "PROCGUARD_",
    "TORCHFT_",
    "REPLICA_",
    "NUM_REPLICA_",
    "TORCHELASTIC_",
    "MASTER_",
    "RANK",
    "WORLD_SIZE",
)
"""Variables that begin like this are left behind: the user's own settings must not change the demo."""


class Life:
    """One process of a replica, and what it writes."""

    def __init__(
        self,
        replica_id: str,
        rank: int,
        name: str,
        process: subprocess.Popen[bytes],
        log: Path,
        journal: Path,
    ) -> None:
        self.replica_id = replica_id
        self.rank = rank
        self.name = name
        self.process = process
        self.log = log
        self.doomed = False
        """It, or another rank of its group, was killed: it may end as it likes."""
        self._journal = journal.open("rb")
        self._unread = b""

    def entries(self) -> Iterator[Entry]:
        """What it wrote since the last call."""
        *lines, self._unread = (self._unread + self._journal.read()).split(b"\n")
        for line in lines:
            yield parse(self.name, line.decode())

    def close(self) -> None:
        self.process.wait()
        self._journal.close()


class Processes:
    """Starts everything in ``folder``; use as a context manager."""

    def __init__(self, folder: Path, *, ranks: int, proactive: bool, seed: int) -> None:
        self.folder = folder
        self._ranks = ranks
        self._proactive = proactive
        self._seed = seed
        self._environ = _environment(folder)
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "procguard.demo.keeper", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=folder,
            env={name: value for name, value in self._environ.items() if name != MARK},
            start_new_session=True,
        )
        self.lives: list[Life] = []
        self._lighthouse = self._start(
            ["procguard.lighthouse.cli", "--port=0", "--log-format=json"], self._lighthouse_log, {}
        )

    @property
    def _lighthouse_log(self) -> Path:
        return self.folder / "lighthouse.log"

    def lighthouse_address(self) -> str | None:
        """Where it listens; None until it does."""
        *lines, _ = self._lighthouse_log.read_text().split("\n")
        for line in lines:
            if line.startswith("{") and "address" in (said := json.loads(line)):
                return str(said["address"])
        return None

    def start_replica(self, replica_id: str, address: str) -> None:
        """Start the processes of this replica, its first or new ones."""
        run = sum(life.replica_id == replica_id and life.rank == 0 for life in self.lives)
        for rank in range(self._ranks):
            self._start_rank(replica_id, rank, run, address)

    def _start_rank(self, replica_id: str, rank: int, run: int, address: str) -> None:
        name = name_of(replica_id, rank, self._ranks)
        stem = f"replica-{name.replace('/', '-rank-')}-process-{run + 1}"
        journal = self.folder / f"{stem}.jsonl"
        journal.touch()
        options = {
            "steps": STEPS_MAX,
            "step-time-ms": STEP_TIME_MS,
            "timeout": COLLECTIVE_TIMEOUT_S,
            "seed": self._seed + len(self.lives),
            "journal": journal,
        }
        environ = {
            "PROCGUARD_LIGHTHOUSE": address,
            "PROCGUARD_PROACTIVE_RECOVERY": str(int(self._proactive)),
            "REPLICA_GROUP_ID": replica_id,
            "RANK": str(rank),
            "WORLD_SIZE": str(self._ranks),
            "TORCHELASTIC_RUN_ID": "demo",
            "TORCHELASTIC_RESTART_COUNT": str(run),
        }
        command = ["procguard.demo.train_digits", *(f"--{key}={value}" for key, value in options.items())]
        log = self.folder / f"{stem}.log"
        process = self._start(command, log, environ)
        self.lives.append(Life(replica_id, rank, name, process, log, journal))

    def group(self, replica_id: str) -> list[Life]:
        """The present processes of a replica, by rank."""
        return [life for life in self.lives if life.replica_id == replica_id][-self._ranks :]

    def strike(self, replica_id: str, rank: int, number: signal.Signals) -> float:
        """Send a signal to one process; the time right before."""
        group = self.group(replica_id)
        for life in group:
            life.doomed = number is signal.SIGKILL
        at = time.monotonic()
        os.kill(group[rank].process.pid, number)
        return at

    def ask_to_end(self, replica_id: str) -> None:
        """Ask one replica; the others hear of it from its ranks, each from the one of its own number."""
        for life in self.group(replica_id):
            os.kill(life.process.pid, signal.SIGUSR1)

    def has_ended(self, replica_id: str) -> bool:
        """No process of this replica is left."""
        return all(life.process.poll() is not None for life in self.group(replica_id))

    def entries(self) -> list[Entry]:
        """What all replicas wrote since the last call, by time."""
        return sorted((entry for life in self.lives for entry in life.entries()), key=lambda entry: entry.at)

    def unexpected_end(self) -> str:
        """Says which process has ended that should not have; empty if none. With 0, a replica may end."""
        if (code := self._lighthouse.poll()) is not None:
            return _obituary("the lighthouse", code, self._lighthouse_log)
        for life in self.lives:
            code = life.process.poll()
            if code and not life.doomed:
                return _obituary(f"replica {life.name} (pid {life.process.pid})", code, life.log)
        return ""

    def all_exited(self) -> bool:
        """All replicas' processes have ended."""
        return all(life.process.poll() is not None for life in self.lives)

    def died_count(self) -> int:
        """Processes that neither the demo killed nor ended well: somebody would have to restart them."""
        return sum(not life.doomed and bool(life.process.poll()) for life in self.lives)

    def close(self) -> None:
        """End all that still runs."""
        sweep(str(self.folder))
        self._lighthouse.wait()
        for life in self.lives:
            life.close()
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait(KEEPER_TIMEOUT_S)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self, command: Sequence[str], log: Path, environ: dict[str, str]) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**self._environ, **environ},
                start_new_session=True,
            )


def _environment(folder: Path) -> dict[str, str]:
    """Of all processes of a run: they find the modules that the demo finds, and compute in one thread."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(STEERING)}
    search = os.pathsep.join(map(os.path.abspath, sys.path))
    return {**inherited, MARK: str(folder), "PYTHONPATH": search, "OMP_NUM_THREADS": "1"}


def _obituary(name: str, code: int, log: Path) -> str:
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    last_words = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])
    return f"{name} {how}; its log ends with:\n{last_words}"
