"""How often one who lives is called dead, on a machine with four times as much to do as it has cores for.

Real members with their listeners, a real lighthouse, and busy processes beside them. Nothing is done to any
member, so every failure is a false one. They are shaken out of their collectives again and again, so that
quorums are asked for and formed in the crowd too. A run in virtual time, over a bad network and for longer,
belongs to the simulator; here the scheduler is the real one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import click

from benchmarks.fleet import DEADLINE_S, Fleet, Lighthouse, lighthouse_process
from benchmarks.report import Case, Report, Target, new_report
from procguard import status
from procguard.env import parse_address
from procguard.messages import Incarnation, MemberState

REST_S = 0.5
"""In a collective, between two quorums."""
SECONDS_PER_HOUR = 3600
FAILED = "members that failed"


@contextmanager
def crowd(per_core: int) -> Iterator[int]:
    """So many busy processes for each core; how many."""
    count = per_core * len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        for _ in range(count):
            busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(busy.kill)
        yield count


def incarnations(lighthouse: Lighthouse) -> tuple[dict[str, Incarnation], int]:
    """Of those alive, and how many the lighthouse has ever called dead."""
    target = status.Target(parse_address(lighthouse.address), "started here")
    snapshot = status.ask(target, "", DEADLINE_S)
    members = [member for job in snapshot.jobs for member in job.members]
    alive = {m.replica_id: m.incarnation for m in members if m.state is MemberState.ALIVE}
    return alive, dict(snapshot.counters).get(FAILED, 0)


def soak(report: Report, members: int, seconds: float, per_core: int) -> None:
    with ExitStack() as stack:
        lighthouse = stack.enter_context(lighthouse_process())
        fleet = Fleet(lighthouse.address, members)
        stack.callback(fleet.close)
        fleet.fill()
        before, failed_before = incarnations(lighthouse)
        busy = stack.enter_context(crowd(per_core))
        started = time.monotonic()
        quorums_ms: list[float] = []
        while (elapsed_s := time.monotonic() - started) < seconds:
            asked_at = time.monotonic()
            fleet.regroup()
            quorums_ms.append((time.monotonic() - asked_at) * 1000)
            time.sleep(REST_S)
        after, failed = incarnations(lighthouse)
    hours = members * elapsed_s / SECONDS_PER_HOUR
    note = f"beside {busy} busy processes, {per_core} a core"
    report.cases.append(Case.of("soak", members, [hours], note, "replica-hours"))
    report.cases.append(Case.of("quorum of all, in the crowd", members, quorums_ms))
    survivors = sum(after.get(name) == life for name, life in before.items())
    report.targets.append(Target.at_most("false failures, by the lighthouse", 0, failed - failed_before))
    report.targets.append(Target.at_most("false failures, as members were told", 0, fleet.false_notices))
    report.targets.append(Target.at_least("members in their first life at the end", members, survivors))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@click.option("--seconds", default=60.0, show_default=True, help="How long.")
@click.option("--members", default=16, show_default=True, help="Real ones, with their listeners.")
@click.option("--per-core", default=4, show_default=True, help="Busy processes for each core.")
def main(*, as_json: bool, seconds: float, members: int, per_core: int) -> None:
    """Members in a crowd: failures of those who live, and in how many replica-hours."""
    report = new_report("soak")
    soak(report, members, seconds, per_core)
    report.show(as_json)
    raise SystemExit(not all(target.met for target in report.targets))


if __name__ == "__main__":
    main()
