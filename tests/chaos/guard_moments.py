"""A guard killed in the middle of a recovery, at a moment that a seed says, and started again.

    python -m tests.chaos.guard_moments --moments 50
    python -m tests.chaos.guard_moments --seed 17 --chain-s 0.51 --no-stop-all --reassign

All steps of the chain are slow here, so that a moment can fall into each of them: workers take their time to
end, and the adapter takes its time over each start and until all are ready. Every worker takes a lock on each
of its tasks and keeps it as long as it lives, so the kernel itself tells if two living workers ever have one
task. At the end every task is on exactly one living worker, and an orderly stop leaves nothing.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click

from procguard.adapters import MockCommunicationAdapter
from tests.guards import Guard, environ_of, lines, python, worker

TASKS = {"a": ["t0", "t1"], "b": ["t2"], "c": ["t3", "t4"]}
STOP_S = 0.15
START_S = 0.05
READY_S = 0.1
BEYOND = 1.1
"""Moments are drawn over so many times the length of a chain: some fall after its end."""

WORKS = """
import fcntl, json, os, signal, sys, time
def end(number, frame):
    time.sleep(float(sys.argv[2]))
    os._exit(0)
signal.signal(signal.SIGTERM, end)
os.chdir(sys.argv[1])
tasks = json.loads(os.environ["PROCGUARD_TASKS"])
alone = True
for task in tasks:
    lock = os.open(task, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        alone = False
with open("diary", "a") as diary:
    diary.write(json.dumps([os.environ["NAME"], os.getpid(), time.time(), tasks, alone]) + "\\n")
time.sleep(1000)
"""


class SlowAdapter(MockCommunicationAdapter):
    """Takes its time over each start, and until the workers are ready."""

    def environment(self, worker_id: str) -> dict[str, str]:
        time.sleep(START_S)
        return super().environment(worker_id)

    def wait_ready(self, worker_ids: Sequence[str], timeout_s: float) -> bool:
        time.sleep(READY_S)
        return True


class Rules(NamedTuple):
    """What the chain does."""

    stop_all: bool
    reassign: bool

    def __str__(self) -> str:
        return f"--{'' if self.stop_all else 'no-'}stop-all --{'' if self.reassign else 'no-'}reassign"


ALL_RULES = [Rules(stop_all, reassign) for stop_all in (True, False) for reassign in (True, False)]


class Plot(NamedTuple):
    """What happens, all of it from the seed; seconds."""

    victims: tuple[str, ...]
    delays_s: tuple[float, ...]
    """Between the workers' deaths and the guard's; and between each start of a guard and its death."""


def plot_of(seed: int, chain_s: float, moments: int = 50) -> Plot:
    """Moments of successive seeds are spread over the chain; some guards are killed twice or three times."""
    chance = random.Random(seed)
    victims = chance.sample(sorted(TASKS), chance.choice((1, 1, 2)))
    first = (seed % moments + chance.random()) / moments * chain_s * BEYOND
    more = [chance.uniform(0, 2 * chain_s) for _ in range(chance.choice((0, 0, 1, 2)))]
    return Plot(tuple(victims), (first, *more))


def the_guard(folder: Path, rules: Rules) -> Guard:
    workers = [
        worker(
            name,
            [*python(WORKS), str(folder), str(STOP_S)],
            tasks=tasks,
            env={"NAME": name},
            max_restarts=100,
        )
        for name, tasks in TASKS.items()
    ]
    recovery = {"stop_all_on_failure": rules.stop_all, "task_reassignment": rules.reassign}
    adapter = {"adapter_type": "tests.chaos.guard_moments:SlowAdapter", "adapter_config": {}}
    return Guard(folder, workers, recovery=recovery, communication=adapter)


def chain_length(folder: Path, rules: Rules) -> float:
    """Seconds from a death to the end of the recovery, here and now."""
    with the_guard(folder, rules) as guard:
        guard.start()
        pids = guard.until_running(*TASKS)
        guard.until(lambda: len(lines(folder / "diary")) == len(TASKS), "all work")
        os.kill(pids["a"], signal.SIGKILL)
        began = time.monotonic()
        guard.until_recovered()
        return time.monotonic() - began


def strike(folder: Path, rules: Rules, plot: Plot) -> None:
    """Play it; raises ``AssertionError``."""
    with the_guard(folder, rules) as guard:
        guard.start()
        pids = guard.until_running(*TASKS)
        guard.until(lambda: len(lines(folder / "diary")) == len(TASKS), "all work")
        for victim in plot.victims:
            os.kill(pids[victim], signal.SIGKILL)
        for delay_s in plot.delays_s:
            time.sleep(delay_s)
            guard.kill()
            guard.start()
        guard.until(lambda: _each_task_is_somebodys(guard), "every task is on one living worker")
        strangers = guard.processes() - {guard.pid, *guard.pids().values()}
        assert not strangers, f"{strangers} live besides those that the guard knows\n{guard.account()}"
        assert guard.stop() == 0, guard.account()
        diary = [json.loads(line) for line in lines(folder / "diary")]
        assert all(alone for *_, alone in diary), _told(diary, guard)


def _each_task_is_somebodys(guard: Guard) -> bool:
    """And the guard says the same."""
    snapshot = guard.snapshot()
    if snapshot is None or snapshot["recovery"] is not None:
        return False
    living = {w["worker_id"]: w["pid"] for w in snapshot["workers"] if w["state"] == "running"}
    try:
        held = {name: json.loads(environ_of(pid)["PROCGUARD_TASKS"]) for name, pid in living.items()}
    except (OSError, KeyError):  # it has just ended, or is in the middle of its exec
        return False
    said = {w["worker_id"]: w["tasks"] for w in snapshot["workers"]}
    everything = Counter(task for tasks in TASKS.values() for task in tasks)
    known = all(sorted(said[name]) == sorted(held.get(name, [])) for name in said)
    return known and Counter(task for tasks in held.values() for task in tasks) == everything


def _told(diary: list[list[object]], guard: Guard) -> str:
    entries = "\n".join(map(str, diary))
    return f"two living workers had one task (name, pid, at, tasks, alone):\n{entries}\n{guard.account()}"


def command_of(seed: int, chain_s: float, rules: Rules) -> str:
    """What replays it."""
    return f"python -m tests.chaos.guard_moments --seed {seed} --chain-s {chain_s:.4f} {rules}"


def play(folder: Path, rules: Rules, seed: int, chain_s: float) -> None:
    """One moment; raises ``AssertionError`` that says how to play it again."""
    plot = plot_of(seed, chain_s)
    try:
        strike(folder, rules, plot)
    except AssertionError as error:
        raise AssertionError(f"{command_of(seed, chain_s, rules)}\n{plot}\n{error}") from None


@click.command()
@click.option("--moments", default=1, show_default=True, help="Seeds from --seed on.")
@click.option("--seed", default=0, show_default=True)
@click.option("--chain-s", type=float, help="Length of a chain; measured if left out.")
@click.option("--stop-all/--no-stop-all", default=None)
@click.option("--reassign/--no-reassign", default=None)
def main(
    moments: int, seed: int, chain_s: float | None, stop_all: bool | None, reassign: bool | None
) -> None:
    """Kill a guard in the middle of recoveries, and see that no task is lost or doubled."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # leave no guard behind
    failed = 0
    for rules in ALL_RULES:
        if stop_all not in (None, rules.stop_all) or reassign not in (None, rules.reassign):
            continue
        with tempfile.TemporaryDirectory(prefix="pg-") as folder:
            length_s = chain_s or chain_length(Path(folder), rules)
        click.echo(f"{rules}: a chain takes {length_s:.3f} s")
        for each in range(seed, seed + moments):
            with tempfile.TemporaryDirectory(prefix="pg-") as folder:
                try:
                    play(Path(folder), rules, each, length_s)
                except AssertionError as error:
                    failed += 1
                    click.echo(str(error))
    click.echo(f"{failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
