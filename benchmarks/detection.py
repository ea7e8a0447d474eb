"""How soon the survivors know: from the call of ``kill`` to each survivor's ``on_failure``.

Every member is a real process with its real listener process, blocked in a collective (or spinning in
Python). A victim is ended, all survivors' times are taken, a replacement joins, and so on. The floors are
measured in the same run: a bare robust mutex waking its waiter, and one bare ZeroMQ hop.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack

import click
import psutil

from benchmarks import floors
from benchmarks.fleet import Fleet, lighthouse
from benchmarks.report import Case, Report, Target, median, new_report, quantile

HEARTBEAT_TIMEOUT_MS = 1000.0
BIG_MIB = 2048
SETTLE_S = 0.5
"""Between the quorum and the blow: the listeners have taken over, the members rest in their collective."""

Hurt = Callable[[Fleet, str], float]


def crash(fleet: Fleet, victim: str) -> float:
    at = time.monotonic()
    os.kill(fleet.trainers[victim].pid, signal.SIGKILL)
    return at


def stop(fleet: Fleet, victim: str) -> float:
    at = time.monotonic()
    os.kill(fleet.trainers[victim].pid, signal.SIGSTOP)
    return at


def silence(fleet: Fleet, victim: str) -> float:
    """As of a lost host: trainer and listener both, the listener first, lest it tell of the trainer."""
    listeners = [child.pid for child in psutil.Process(fleet.trainers[victim].pid).children()]
    at = time.monotonic()
    for pid in [*listeners, fleet.trainers[victim].pid]:
        os.kill(pid, signal.SIGSTOP)
    return at


def leave(fleet: Fleet, victim: str) -> float:
    """The victim itself says when it called ``shutdown``."""
    fleet.trainers[victim].say("leave")
    return 0.0


def measure(
    fleet: Fleet, hurt: Hurt, count: int, *, victim_memory_mib: int = 0
) -> tuple[list[float], list[float]]:
    """Times of each survivor, and of the last survivor of each round, in milliseconds."""
    each: list[float] = []
    last: list[float] = []
    memory = ["--memory-mib", str(victim_memory_mib)] if victim_memory_mib else None
    for _ in range(count):
        victim = fleet.fill(memory)
        time.sleep(SETTLE_S)
        fleet.hurt.add(victim)
        at = hurt(fleet, victim)
        told = fleet.told(victim)
        at = at or fleet.left_at
        times = [(when - at) * 1000 for when in told.values()]
        each += times
        last.append(max(times))
        end(fleet, victim)
    return each, last


def end(fleet: Fleet, victim: str) -> None:
    """Whatever was done to it, let nothing of the victim remain."""
    process = psutil.Process(fleet.trainers[victim].pid)
    children = process.children() if process.is_running() else []
    for child in children:
        child.send_signal(signal.SIGCONT)
    fleet.remove(victim)


class Bench:
    """Runs cases and keeps what comes of them."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.false_notices = 0

    def run(
        self, name: str, size: int, hurt: Hurt, count: int, *flags: str, victim_memory_mib: int = 0
    ) -> tuple[list[float], list[float]]:
        with lighthouse() as address, ExitStack() as stack:
            fleet = Fleet(address, size, flags)
            stack.callback(fleet.close)
            each, last = measure(fleet, hurt, count, victim_memory_mib=victim_memory_mib)
            self.false_notices += fleet.false_notices
        note = f"last survivor: p50 {median(last):.2f}, p99 {quantile(last, 0.99):.2f}"
        self.report.cases.append(Case.of(name, size, each, note))
        return each, last

    def expect(self, name: str, target: float, measured: float) -> None:
        self.report.targets.append(Target.at_most(name, target, measured))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@click.option("--members", default=4, show_default=True, help="Members of the small cases.")
@click.option("--many", default=64, show_default=True, help="Members of the large case; 0: skip it.")
@click.option("--kills", default=60, show_default=True, help="Kills of the small crash case; others fewer.")
def main(*, as_json: bool, members: int, many: int, kills: int) -> None:
    """Time from a member's death to each survivor's on_failure."""
    bench = Bench(new_report("detection"))
    report = bench.report
    report.cases.append(Case.of("floor: robust mutex wake", 2, floors.mutex_wakes_ms(kills)))
    report.cases.append(Case.of("floor: one ZMQ hop", 2, floors.zmq_hops_ms(20 * kills)))
    few = max(3, kills // 6)

    small, _ = bench.run("crash", members, crash, kills)
    big, _ = bench.run("crash, 2 GiB", members, crash, max(3, kills // 3), victim_memory_mib=BIG_MIB)
    bench.run("crash-spinning", members, crash, max(3, kills // 3), "--spin")
    stopped, _ = bench.run("stop", members, stop, few)
    silent, _ = bench.run("silent", members, silence, few)
    left, _ = bench.run("leave", members, leave, max(3, kills // 2))
    bench.expect("crash p50 ms", 1.5, median(small))
    bench.expect("crash p99 ms", 10, quantile(small, 0.99))
    bench.expect("crash p50, 2 GiB over empty", 2, median(big) / median(small))
    bench.expect("stop, max ms", HEARTBEAT_TIMEOUT_MS + 300, max(stopped))
    bench.expect("silent, max ms", HEARTBEAT_TIMEOUT_MS + 100, max(silent))
    bench.expect("leave p99 ms", 10, quantile(left, 0.99))
    if many:
        _, last = bench.run("crash", many, crash, max(3, kills // 3))
        bench.expect(f"crash among {many}, last survivor p99 ms", 25, quantile(last, 0.99))
    bench.expect("notices for members that were alive", 0, bench.false_notices)
    report.show(as_json)


if __name__ == "__main__":
    main()
