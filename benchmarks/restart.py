"""How fast a dead worker is noticed and replaced, what supervising costs, and how many can be had at once.

A worker's first line of code takes the time and writes it into a FIFO. Beside each kill of a worker that a
``ProcessManager`` holds, in the same round, one of the same program is killed that is held by a bare
``Popen`` and a bare pidfd: the floor. What is held in common (fork, exec, the interpreter's own start)
cancels out.

The restart is asked for by a thread that hears of the death, as it is in the guard: not in the callback
itself.
"""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from signal import SIGKILL

import click
import psutil

from benchmarks.report import Case, Report, Target, median, new_report
from procguard.supervisor.manager import ProcessManager, WorkerEnded, WorkerEvent

FIRST_LINE = """
import time; at = time.monotonic()
import os
pipe = os.open(os.environ["FIRST_LINE"], os.O_WRONLY)
os.write(pipe, b"%.9f\\n" % at)
os.close(pipe)
"""
PAUSE = "time.sleep(1000)"
CHILD_HOLDS_STDOUT = """
if os.fork() == 0:
    os.setsid()
    time.sleep(1000)
"""
PRINTS = """
import time
due = time.monotonic()
while True:
    print("\\n".join(["x" * 79] * 100), flush=True)
    due += 0.01
    time.sleep(max(0, due - time.monotonic()))
"""
"""10,000 lines a second, a hundred at a time."""
NEIGHBOUR = "neighbour"
SETTLE_S = 0.05
"""After a start, so that the interpreter is done with it before the kill."""
IDLE_COMMAND = ["sleep", "1000"]
IDLE_SETTLE_S = 2.0

NOTICED_TARGET_MS = 0.3
FIRST_LINE_TARGET_MS = 5
CPU_TARGET_S = 0.15
RSS_TARGET_MIB = 60
START_TARGET_S = 10
STOP_TARGET_S = 5


class FirstLines:
    """The FIFO: ``next`` waits for the next first line, and tells when it was (monotonic seconds)."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "first-lines"
        os.mkfifo(self.path)
        # Open at both ends, so that it never ends.
        self._file = open(os.open(self.path, os.O_RDWR), "rb", buffering=0)  # noqa: SIM115 - closed by close

    def next(self) -> float:
        return float(self._file.readline())

    def close(self) -> None:
        self._file.close()


class Bare:
    """One process by Popen and pidfd, and no more."""

    def __init__(self, program: str, lines: FirstLines) -> None:
        self._command = [sys.executable, "-I", "-S", "-c", program]
        self._environment = {**os.environ, "FIRST_LINE": str(lines.path)}
        self._lines = lines
        self._start()
        lines.next()

    def round(self) -> tuple[float, float]:
        """Milliseconds from a kill to its notice, and to the first line of the next process."""
        pidfd = os.pidfd_open(self._process.pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        killed_at = time.monotonic()
        os.kill(self._process.pid, SIGKILL)
        poll.poll()
        noticed_at = time.monotonic()
        self._process.wait()
        self._start()
        first_line_at = self._lines.next()
        os.close(pidfd)
        return (noticed_at - killed_at) * 1000, (first_line_at - killed_at) * 1000

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=self._environment,
            start_new_session=True,
        )


class Held:
    """One process by a ProcessManager, and a thread that has it started again."""

    def __init__(self, manager: ProcessManager, worker_id: str, program: str, lines: FirstLines) -> None:
        self._manager, self._worker_id, self._lines = manager, worker_id, lines
        self._noticed: queue.SimpleQueue[float] = queue.SimpleQueue()
        self._deaths: queue.SimpleQueue[bool] = queue.SimpleQueue()
        manager.register_worker_config(
            worker_id,
            {"command": [sys.executable, "-I", "-S", "-c", program], "env": {"FIRST_LINE": str(lines.path)}},
        )
        manager.subscribe(self._hear)
        self._restarter = threading.Thread(target=self._restart)
        self._restarter.start()
        manager.start_worker(worker_id)
        lines.next()

    def round(self) -> tuple[float, float]:
        """As ``Bare.round``."""
        pid = self._manager.get_worker_status(self._worker_id).pid
        assert pid is not None
        killed_at = time.monotonic()
        os.kill(pid, SIGKILL)
        first_line_at = self._lines.next()
        return (self._noticed.get() - killed_at) * 1000, (first_line_at - killed_at) * 1000

    def close(self) -> None:
        self._deaths.put(False)
        self._restarter.join()
        self._manager.stop_worker(self._worker_id, force=True)

    def _hear(self, event: WorkerEvent) -> None:
        if isinstance(event, WorkerEnded) and event.worker_id == self._worker_id:
            self._noticed.put(time.monotonic())
            self._deaths.put(True)

    def _restart(self) -> None:
        while self._deaths.get():
            self._manager.start_worker(self._worker_id)


@contextmanager
def scene(*, neighbour: bool) -> Iterator[tuple[ProcessManager, FirstLines]]:
    """A manager, perhaps with a worker that prints all the time, and the FIFO."""
    with tempfile.TemporaryDirectory() as folder, ProcessManager(Path(folder, "state")) as manager:
        if neighbour:
            manager.register_worker_config(
                NEIGHBOUR, {"command": [sys.executable, "-c", PRINTS], "stop_timeout": 1.0}
            )
            manager.start_worker(NEIGHBOUR)
        lines = FirstLines(Path(folder))
        try:
            yield manager, lines
        finally:
            lines.close()


def kills(report: Report, name: str, rounds: int, *, neighbour: bool = False, child: bool = False) -> None:
    """One situation: the floor and the manager's, in turn."""
    program = FIRST_LINE + (CHILD_HOLDS_STDOUT if child else "") + PAUSE
    floor: list[tuple[float, float]] = []
    ours: list[tuple[float, float]] = []
    with scene(neighbour=neighbour) as (manager, lines):
        bare = Bare(FIRST_LINE + PAUSE, lines)
        held = Held(manager, "w0", program, lines)
        for _ in range(rounds):
            time.sleep(SETTLE_S)
            floor.append(bare.round())
            time.sleep(SETTLE_S)
            ours.append(held.round())
        bare.close()
        held.close()
    members = 2 if neighbour else 1
    for what, index, target in [("noticed", 0, NOTICED_TARGET_MS), ("first line", 1, FIRST_LINE_TARGET_MS)]:
        below, above = [pair[index] for pair in floor], [pair[index] for pair in ours]
        report.cases.append(Case.of(f"floor: {what}, {name}", members, below))
        report.cases.append(Case.of(f"{what}, {name}", members, above))
        more = median(above) - median(below)
        report.targets.append(Target.at_most(f"{what}, {name}: p50 ms over the floor", target, more))


def idle(count: int, window_s: float) -> dict[str, float]:
    """CPU seconds a minute and MiB of this process while it holds so many workers that do nothing."""
    with ProcessManager() as manager:
        start_many(manager, count)
        time.sleep(IDLE_SETTLE_S)
        begin_s, begin = time.process_time(), time.monotonic()
        time.sleep(window_s)
        used_s = (time.process_time() - begin_s) * 60 / (time.monotonic() - begin)
        return {"cpu_s": used_s, "rss_mib": psutil.Process().memory_info().rss / 2**20}


def crowd(count: int) -> dict[str, float]:
    """Seconds to start and to stop so many workers."""
    with ProcessManager() as manager:
        begin = time.monotonic()
        start_many(manager, count)
        started = time.monotonic()
        stopped = manager.stop_all_workers()
        assert all(stopped.values()), stopped
        return {"start_s": started - begin, "stop_s": time.monotonic() - started}


def start_many(manager: ProcessManager, count: int) -> None:
    for number in range(count):
        manager.register_worker_config(f"w{number}", {"command": IDLE_COMMAND})
        manager.start_worker(f"w{number}")


def apart(*flags: str) -> Mapping[str, float]:
    """Run this benchmark with hidden flags, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.restart", *flags]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, float] = json.loads(ran.stdout)
    return answer


def idleness(report: Report, workers: int, window_s: float) -> None:
    measured = apart("--idle-apart", str(workers), str(window_s))
    report.cases.append(Case.of("idle", workers, [measured["cpu_s"]], unit="CPU s/minute"))
    report.cases.append(Case.of("idle", workers, [measured["rss_mib"]], unit="MiB RSS"))
    report.targets.append(Target.at_most(f"idle, {workers}: CPU s a minute", CPU_TARGET_S, measured["cpu_s"]))
    report.targets.append(Target.at_most(f"idle, {workers}: MiB RSS", RSS_TARGET_MIB, measured["rss_mib"]))


def crowds(report: Report, workers: int, rounds: int) -> None:
    measured = [apart("--crowd-apart", str(workers)) for _ in range(rounds)]
    for what, target in [("start", START_TARGET_S), ("stop", STOP_TARGET_S)]:
        times = [one[f"{what}_s"] for one in measured]
        report.cases.append(Case.of(f"{what} all", workers, times, unit="s"))
        report.targets.append(Target.at_most(f"{what} {workers}, max s", target, max(times)))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@click.option("--kills", "rounds", default=100, show_default=True, help="Kills of each case.")
@click.option("--idle", "idle_count", default=50, show_default=True, help="Workers that do nothing.")
@click.option("--window", default=60.0, show_default=True, help="Seconds for which they do nothing.")
@click.option("--crowd", "crowd_count", default=500, show_default=True, help="Workers at once.")
@click.option("--crowds", "crowd_rounds", default=3, show_default=True, help="How often.")
@click.option("--idle-apart", nargs=2, type=(int, float), hidden=True)
@click.option("--crowd-apart", type=int, hidden=True)
def main(
    *,
    as_json: bool,
    rounds: int,
    idle_count: int,
    window: float,
    crowd_count: int,
    crowd_rounds: int,
    idle_apart: tuple[int, float] | None,
    crowd_apart: int | None,
) -> None:
    """Notice, restart, idle cost, and many workers at once."""
    if idle_apart:
        click.echo(json.dumps(idle(*idle_apart)))
        return
    if crowd_apart:
        click.echo(json.dumps(crowd(crowd_apart)))
        return
    report = new_report("restart")
    kills(report, "alone", rounds)
    kills(report, "neighbour prints 10,000 lines/s", rounds, neighbour=True)
    kills(report, "its child's child holds stdout", rounds, child=True)
    idleness(report, idle_count, window)
    crowds(report, crowd_count, crowd_rounds)
    report.show(as_json)


if __name__ == "__main__":
    main()
