"""A guard that does nothing and remembers what it was told, behind a real socket."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from procguard.supervisor.control import ControlServer

DEADLINE_S = 30.0
STARTED_AT = 1_700_000_000.0


def worker(worker_id: str, state: str = "running", **fields: Any) -> dict[str, Any]:
    """A worker as a guard's snapshot has it."""
    return {
        "worker_id": worker_id,
        "state": state,
        "health": "healthy",
        "reasons": [],
        "pid": 4000,
        "started_at": STARTED_AT,
        "restarts": 0,
        "max_restarts": 5,
        "restart_window_s": 300.0,
        "next_start_at": None,
        "last_exit": None,
        "tasks": [],
        "rss_bytes": 1 << 30,
        "cpu_percent": 97.4,
        "adopted": False,
        **fields,
    }


class FakeCommands:
    """``slow`` verbs wait until ``go_on`` is set; ``refusal`` is raised by each but ``snapshot``."""

    def __init__(self, *workers: Mapping[str, Any]) -> None:
        self.workers = list(workers) or [worker("w0"), worker("w1")]
        self.told: list[tuple[Any, ...]] = []
        self.outcome = True
        self.refusal: Exception | None = None
        self.slow: set[str] = set()
        self.busy = threading.Event()
        self.go_on = threading.Event()
        self.paths: dict[str, str] = {}
        self.happened: list[dict[str, Any]] = []
        self.guard = {"pid": 4242, "started_at": STARTED_AT, "config": "/etc/guard.yaml", "state": "running"}
        self.recovery: dict[str, Any] | None = None

    def snapshot(self) -> Mapping[str, Any]:
        return {"guard": self.guard, "workers": self.workers, "recovery": self.recovery}

    def start(self, ids: Sequence[str]) -> Mapping[str, bool]:
        return self._done("start", ids)

    def stop(self, ids: Sequence[str], force: bool) -> Mapping[str, bool]:
        return self._done("stop", ids, force)

    def restart(self, ids: Sequence[str]) -> Mapping[str, bool]:
        return self._done("restart", ids)

    def kill(self, ids: Sequence[str], signal: signal.Signals) -> Mapping[str, bool]:
        return self._done("kill", ids, signal)

    def log_paths(self, worker_id: str) -> Mapping[str, str]:
        return self.paths

    def tasks(self) -> Mapping[str, Any]:
        return {"workers": {"w0": ["t1", "t2"], "w1": []}, "queue": ["t3"]}

    def events(self, after_seq: int | None, count_max: int) -> Sequence[Mapping[str, Any]]:
        if after_seq is None:
            return self.happened[-count_max:] if count_max else []
        return [event for event in self.happened if event["seq"] > after_seq][:count_max]

    def _done(self, verb: str, ids: Sequence[str], *more: Any) -> Mapping[str, bool]:
        if self.refusal:
            raise self.refusal
        self.told.append((verb, list(ids), *more))
        if verb in self.slow:
            self.busy.set()
            assert self.go_on.wait(DEADLINE_S)
        return dict.fromkeys(ids, self.outcome)


@contextmanager
def fake_guard(
    folder: Path,
    commands: FakeCommands | None = None,
    *,
    config: Path | None = None,
    folders: Sequence[Path] = (),
) -> Iterator[tuple[ControlServer, FakeCommands]]:
    """One that listens, with its state file in ``folder``."""
    commands = commands or FakeCommands()
    with ControlServer(commands, folder / "s.json", config=config, folders=folders) as server:
        try:
            yield server, commands
        finally:
            commands.go_on.set()
