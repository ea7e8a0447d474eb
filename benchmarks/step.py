"""What fault tolerance costs a step: ``start_quorum + wait_quorum + should_commit``, with nothing between."""

from __future__ import annotations

import subprocess
import sys
import time

import click

from benchmarks.fleet import lighthouse
from benchmarks.member import EndlessGroup
from benchmarks.report import Case, Target, median, new_report
from procguard.client import Manager

WARM_UP = 100


def steps_ms(count: int, address: str, replica_id: str, replicas: int, proactive: bool) -> list[float]:
    """Times of ``count`` steps of one replica, taken once all replicas take part."""
    manager = Manager(
        EndlessGroup(),
        lambda state: None,
        dict,
        min_replica_size=replicas,
        lighthouse_addr=address,
        replica_id=replica_id,
        init_sync=False,
        proactive_recovery=proactive,
    )
    times = []
    for n in range(WARM_UP + count):
        start = time.perf_counter()
        manager.start_quorum()
        manager.wait_quorum()
        manager.should_commit()
        if n >= WARM_UP:
            times.append((time.perf_counter() - start) * 1000)
    manager.shutdown()
    return times


def together_ms(count: int, address: str, replicas: int, *, proactive: bool) -> list[float]:
    """The same, of one replica among several, each a process."""
    names = [f"r{n}" for n in range(replicas)]
    others = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.step", "--one", name, address, str(replicas), str(count)]
        )
        for name in names[1:]
    ]
    times = steps_ms(count, address, names[0], replicas, proactive)
    for other in others:
        other.wait()
    return times


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@click.option("--steps", default=2000, show_default=True, help="Steps of each case.")
@click.option("--one", nargs=4, type=(str, str, int, int), hidden=True)
def main(*, as_json: bool, steps: int, one: tuple[str, str, int, int] | None) -> None:
    """Time of a step's coordination."""
    if one:
        name, address, replicas, count = one
        steps_ms(count, address, name, replicas, True)
        return
    report = new_report("step")
    for replicas, proactive in [(1, True), (1, False), (2, True)]:
        with lighthouse() as address:
            times = together_ms(steps, address, replicas, proactive=proactive)
        name = "step" if proactive else "step, proactive recovery off"
        report.cases.append(Case.of(name, replicas, times))
        if proactive:
            report.targets.append(Target.at_most(f"step p50 ms, {replicas} members", 0.7, median(times)))
    report.show(as_json)


if __name__ == "__main__":
    main()
