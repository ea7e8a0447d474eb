"""A real guard in a test: started as a user starts it, asked over its socket, and cleaned up after.

    with Guard(tmp_path, [worker("a"), worker("b")]) as guard:
        guard.start()
        guard.until(lambda: guard.states() == {"a": "running", "b": "running"}, "both run")

Everything that is waited for has one deadline, generous enough for a crowded machine; when it is over, what
the guard said and showed stands in the failure's message. At the end nothing may live that came of the guard:
whatever carries its mark is killed, and, where the test has not killed the guard itself, told as a failure.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import yaml

from procguard.errors import ProcGuardError
from procguard.guard_finding import find_guard
from procguard.supervisor.control_client import ControlClient

REPOSITORY = Path(__file__).parent.parent
DEADLINE_S = 60.0
"""For what takes a fraction of a second on an idle machine."""
TICK_S = 0.02
MARK = "OWN_TEST_GUARD"
"""In the environment of the guard, and so of every process that comes of it."""

T = TypeVar("T")
Entry = dict[str, Any]


def worker(worker_id: str, command: str | Sequence[str] = "sleep 1000", **keys: Any) -> Entry:
    """An entry of the YAML's ``workers`` that fails fast and comes back fast."""
    words = command if isinstance(command, str) else list(command)
    quick = {"restart_delay": 0.05, "restart_delay_max": 0.1, "stop_timeout": 5}
    return {"worker_id": worker_id, "command": words, **quick, **keys}


def python(code: str) -> list[str]:
    """A command that runs this code in a bare interpreter, which starts in few milliseconds."""
    return [sys.executable, "-I", "-S", "-c", code]


class Guard:
    """One guard on one configuration; it can be started, killed and started again.

    Args:
        folder: for its file and all that it writes.
        sections: of the YAML, besides ``workers``.
        orderly: all workers are expected to be gone when the guard has been stopped.
    """

    def __init__(
        self, folder: Path, workers: Sequence[Entry], *, orderly: bool = True, **sections: Any
    ) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.config = folder / "guard.yaml"
        self.state_file = folder / "state.json"
        self.said_file = folder / "guard.stderr"
        self.process: subprocess.Popen[bytes] | None = None
        self.environ: dict[str, str] = {}
        self._orderly = orderly
        self._mark = secrets.token_hex(8)
        self._client: ControlClient | None = None
        self.write(workers, **sections)

    def write(self, workers: Sequence[Entry], **sections: Any) -> None:
        """Have the configuration file say this."""
        content = {"workers": list(workers), "state": {"state_file": str(self.state_file)}, **sections}
        self.config.write_text(yaml.safe_dump(content))

    # --- its life

    def start(self, *words: str, at: Sequence[str] = ()) -> None:
        """Start it; ``at`` stands before its command line, such as ``nohup``."""
        assert self.process is None or self.process.poll() is not None, "it runs"
        with self.said_file.open("ab") as said:
            self.process = subprocess.Popen(
                [*at, sys.executable, "-m", "procguard.main", "--config", str(self.config), *words],
                cwd=REPOSITORY,
                env={**os.environ, MARK: self._mark, **self.environ},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def lives(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, as the kernel or an operator at 3 a.m. does it."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """The exit code, once it has ended by itself."""
        assert self.process is not None
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the guard does not end\n{self.account()}") from None

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if self._client is not None:
            self._client.close()
        left = set()
        if self.process is not None:
            if self.lives and error is None and self._orderly:
                self.stop()
                left = self.processes()
            elif self.lives:
                self.process.kill()
            self.process.wait()
        for _ in range(100):  # what is killed may have started something a moment before
            living = self.processes()
            for pid in living:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not living:
                break
            time.sleep(TICK_S)
        assert not left, f"an orderly stop left {left}\n{self.account()}"

    # --- what it says

    def ask(self, verb: str, **args: Any) -> Any:
        """What it answers over its socket; raises ``ProcGuardError``."""
        if self._client is None:
            self._client = ControlClient(find_guard(str(self.config)).socket, DEADLINE_S)
        try:
            return self._client.ask(verb, **args)
        except ProcGuardError:
            self._client.close()
            self._client = None
            raise

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        """``procguard WORDS``, with this guard named."""
        return subprocess.run(
            [sys.executable, "-m", "procguard.main", *words, "--config", str(self.config)],
            cwd=REPOSITORY, env={**os.environ, **self.environ}, capture_output=True, text=True,
            timeout=DEADLINE_S, check=False,
        )  # fmt: skip

    def run_another(self) -> subprocess.CompletedProcess[str]:
        """A second guard on the same file, which is expected to end soon."""
        return subprocess.run(
            [sys.executable, "-m", "procguard.main", "--config", str(self.config)],
            cwd=REPOSITORY, env={**os.environ, MARK: self._mark, **self.environ}, capture_output=True,
            text=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip

    def cli_json(self, *words: str) -> Any:
        """What ``procguard WORDS --json`` prints."""
        done = self.cli(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def snapshot(self) -> dict[str, Any] | None:
        """All it shows; None when it cannot be asked."""
        with suppress(ProcGuardError):
            return dict(self.ask("status"))
        return None

    def workers(self) -> dict[str, dict[str, Any]]:
        """By worker; empty when it cannot be asked."""
        return {one["worker_id"]: one for one in (self.snapshot() or {"workers": []})["workers"]}

    def states(self) -> dict[str, str]:
        return {worker_id: one["state"] for worker_id, one in self.workers().items()}

    def pids(self) -> dict[str, int]:
        """Of those that have one."""
        return {worker_id: one["pid"] for worker_id, one in self.workers().items() if one["pid"]}

    def log(self, worker_id: str) -> Path:
        """Where its stdout goes."""
        return Path(self.ask("log_paths", id=worker_id)["stdout"])

    @property
    def own_folder(self) -> Path:
        """The guard's, beside its state file."""
        return self.state_file.with_name(f"{self.state_file.name}.d")

    def events(self, kind: str = "", worker_id: str | None = None) -> list[dict[str, Any]]:
        """What has happened, of this kind and to this worker; oldest first."""
        return [
            event
            for event in self.ask("events", after_seq=None, count=1000)
            if kind in ("", event["kind"]) and worker_id in (None, event["worker_id"])
        ]

    @property
    def said(self) -> str:
        """On stderr and stdout, so far."""
        return self.said_file.read_text(errors="replace") if self.said_file.exists() else ""

    def state(self) -> dict[str, Any]:
        """What stands in its state file."""
        return dict(json.loads(self.state_file.read_text()))

    # --- waiting

    def until(self, condition: Callable[[], T], what: str) -> T:
        """Return what the condition returns, as soon as that is true."""
        until = time.monotonic() + DEADLINE_S
        while True:
            if found := condition():
                return found
            assert time.monotonic() < until, f"not so after {DEADLINE_S:g} s: {what}\n{self.account()}"
            time.sleep(TICK_S)

    def until_running(self, *worker_ids: str) -> dict[str, int]:
        """The pids of these workers, or of all of them, once they run and no recovery is under way."""

        def running() -> dict[str, int] | None:
            snapshot = self.snapshot()
            if snapshot is None or snapshot["recovery"] is not None:
                return None
            workers = {
                w["worker_id"]: w
                for w in snapshot["workers"]
                if w["worker_id"] in worker_ids or not worker_ids
            }
            well = bool(workers) and all(w["state"] == "running" for w in workers.values())
            return {name: w["pid"] for name, w in workers.items()} if well else None

        return self.until(running, f"{', '.join(worker_ids) or 'all'} run")

    def until_recovered(self, chains_count: int = 1) -> None:
        """Return when so many recovery chains have ever been begun, and the last of them is over."""

        def over() -> bool:
            state = self.state()
            return state["chains_count"] >= chains_count and state["recovery"] is None

        self.until(over, f"{chains_count} recovery chains are over")

    def account(self) -> str:
        """What can be said of it, for whoever reads a failure."""
        status = json.dumps(self.snapshot(), indent=1) if self.lives else "it does not run"
        return f"--- status\n{status}\n--- {self.said_file}\n{self.said}"

    # --- what lives

    def processes(self) -> set[int]:
        """Living processes that came of it, itself among them."""
        return {pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_mine(pid)}

    def _is_mine(self, pid: int) -> bool:
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return f"{MARK}={self._mark}".encode() in variables


def lives(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def lines(path: Path) -> list[str]:
    """The whole lines of a file that somebody else writes; none if there is no such file yet."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return text.split("\n")[:-1]


def environ_of(pid: int) -> Mapping[str, str]:
    """The environment that a process was started with."""
    pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(pair.partition("=")[::2] for pair in pairs if pair)
