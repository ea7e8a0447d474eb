"""What heartbeats cost a lighthouse: how many it can take, and what it needs for those of a large job.

The lighthouse is a real process; the load comes from other processes, over connections of real members
(``crowd``). At saturation every queue is full and what is measured is work alone. Then beats arrive as they
do in life: of each member ten a second, evenly spread. Beside each stands the floor, a bare loop that takes
the same frames from a ROUTER and throws them away. With ``--keys`` the flood comes once more over encrypted
connections, and connections themselves are counted, with keys and without.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click
import psutil

from benchmarks import floors
from benchmarks.fleet import Hands, lighthouse_process
from benchmarks.report import Case, Report, Target, median, new_report
from procguard.adapters.zmq_key_files import make_directory

FLOOD_MEMBERS = 20
"""Connections that the flood comes over."""
SMALL_SHARE = 10
"""The small job's members are so many times fewer."""
WARM_UP_S = 1.0
WINDOW_S = 2.0
CPU_TICK_S = 0.01
"""What the kernel counts CPU time in; a sample is long beside it."""
MEBIBYTE = 1 << 20


class Drained(NamedTuple):
    """Rounds of a flood."""

    per_s: list[float]
    """Beats a second of the clock; other processes on the machine slow it down."""
    cpu_s_per_100k: list[float]


def cpu_s(process: psutil.Process) -> float:
    """Time on a CPU so far, of all threads."""
    times = process.cpu_times()
    return float(times.user + times.system)


def drain(address: str, process: psutil.Process, rounds: int, beats: int, *keys: str) -> Drained:
    """Flood whoever listens there."""
    each = max(1, beats // FLOOD_MEMBERS)
    result = Drained([], [])
    with Hands() as hired:
        crowd = hired.hire("benchmarks.crowd", address, "f", str(FLOOD_MEMBERS), "--flood", str(each), *keys)
        crowd.hear()
        for _ in range(rounds):
            before = cpu_s(process)
            told = crowd.order()
            used = max(cpu_s(process) - before, CPU_TICK_S)
            count = each * FLOOD_MEMBERS
            result.per_s.append(count / (told["ended_at"] - told["started_at"]))
            result.cpu_s_per_100k.append(used * 100_000 / count)
    return result


class Knocked(NamedTuple):
    """Rounds of connections."""

    per_s: list[float]
    cpu_ms: list[float]
    """Of the lighthouse, for one connection."""


def knock(address: str, process: psutil.Process, rounds: int, count: int, *keys: str) -> Knocked:
    """Connect so many times at once to whoever listens there, and be answered."""
    result = Knocked([], [])
    with Hands() as hired:
        crowd = hired.hire("benchmarks.crowd", address, "k", str(count), "--knocking", *keys)
        crowd.hear()
        for _ in range(rounds):
            before = cpu_s(process)
            told = crowd.order()
            result.per_s.append(count / (told["ended_at"] - told["started_at"]))
            result.cpu_ms.append(max(cpu_s(process) - before, CPU_TICK_S) * 1000 / count)
    return result


class Windows(NamedTuple):
    """How a smooth load is looked at."""

    samples: int
    length_s: float
    seasoned: bool
    """After libzmq's queues have grown to their full size."""


class Load(NamedTuple):
    """What beats that arrive smoothly cost."""

    cpu_percent: list[float]
    rss_mib: float
    latest_ms: float
    """How late the load's most belated beat was."""


def carry(
    address: str,
    process: psutil.Process,
    members: int,
    windows: Windows,
    check: Callable[[int], object] = lambda members: None,
) -> Load:
    """Let so many members beat at 10 Hz, and look at the process; ``check`` raises if it has lost any."""
    season = ["--seasoned"] if windows.seasoned else []
    with Hands() as hired:
        crowd = hired.hire("benchmarks.crowd", address, "m", str(members), *season)
        crowd.hear()
        time.sleep(WARM_UP_S)
        percent = list(cpu_percent(process, windows.samples, windows.length_s))
        rss = process.memory_info().rss / MEBIBYTE
        check(members)
        return Load(percent, rss, crowd.over()["latest_ms"])


def cpu_percent(process: psutil.Process, windows: int, window_s: float) -> Iterator[float]:
    """Of one core, in each of so many windows."""
    for _ in range(windows):
        before, since = cpu_s(process), time.monotonic()
        time.sleep(window_s)
        yield 100 * (cpu_s(process) - before) / (time.monotonic() - since)


@contextmanager
def on_one_core(process: psutil.Process) -> Iterator[None]:
    """Confine a process with all its threads to one core, and ours and our children to the others."""
    ours = os.sched_getaffinity(0)
    mine, *others = sorted(ours)
    for thread in process.threads():
        os.sched_setaffinity(thread.id, {mine})
    os.sched_setaffinity(0, others or {mine})
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


def report_drain(report: Report, name: str, drained: Drained, note: str = "") -> None:
    report.cases.append(Case.of(name, FLOOD_MEMBERS, drained.per_s, note, "beats/s"))
    report.cases.append(Case.of(name, FLOOD_MEMBERS, drained.cpu_s_per_100k, note, "CPU s/100k beats"))


def report_saturation(report: Report, rounds: int, beats: int) -> None:
    with floors.bare_drain() as (address, pid), on_one_core(process := psutil.Process(pid)):
        report_drain(report, "floor: bare ROUTER drain", drain(address, process, rounds, beats))
    with lighthouse_process() as lighthouse, on_one_core(lighthouse.process):
        drained = drain(lighthouse.address, lighthouse.process, rounds, beats)
    report_drain(report, "saturation", drained, "one core for all its threads")
    per_cpu_s = 100_000 / median(drained.cpu_s_per_100k)
    report.targets.append(Target.at_least("beats taken in for a second of CPU", 200_000, per_cpu_s))


def report_keys(report: Report, rounds: int, beats: int, knocks: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "keys"
        make_directory(directory, ["all"], [])
        member = f"--keys={directory / 'members' / 'all.key'}"
        with lighthouse_process(f"--keys={directory}") as locked, on_one_core(locked.process):
            drained = drain(locked.address, locked.process, rounds, beats, member)
            with_keys = knock(locked.address, locked.process, rounds, knocks, member)
    report_drain(report, "saturation with CURVE", drained, "one core for all its threads")
    with lighthouse_process() as plain, on_one_core(plain.process):
        without = knock(plain.address, plain.process, rounds, knocks)
    for name, knocked in (("connections", without), ("connections with CURVE", with_keys)):
        report.cases.append(Case.of(name, knocks, knocked.per_s, "all at once", "connections/s"))
        report.cases.append(Case.of(name, knocks, knocked.cpu_ms, "of the lighthouse", "CPU ms each"))


def report_load(report: Report, members: int, windows: Windows) -> Load:
    """The lighthouse's load, beside that of a bare loop under the same members."""
    with floors.bare_drain() as (address, pid):
        add_load(report, "floor: bare ROUTER", members, carry(address, psutil.Process(pid), members, windows))
    with lighthouse_process() as lighthouse:
        load = carry(lighthouse.address, lighthouse.process, members, windows, lighthouse.expect_alive)
    add_load(report, "10 Hz, smoothly", members, load)
    return load


def add_load(report: Report, name: str, members: int, load: Load) -> None:
    note = f"latest beat sent {load.latest_ms:.0f} ms late"
    report.cases.append(Case.of(name, members, load.cpu_percent, note, "% of a core"))
    report.cases.append(Case.of(name, members, [load.rss_mib], unit="MiB RSS"))


def report_loads(report: Report, sizes: Sequence[tuple[int, float]], windows: Windows) -> None:
    for members, bound in sizes:
        load = report_load(report, members, windows)
        name = f"{members} members at 10 Hz, % of a core"
        report.targets.append(Target.at_most(name, bound, median(load.cpu_percent)))
    report.targets.append(Target.at_most(f"RSS at {members} members, MiB", 60, load.rss_mib))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@click.option("--rounds", default=5, show_default=True, help="Rounds at saturation.")
@click.option("--beats", default=400_000, show_default=True, help="Beats in each of them.")
@click.option("--windows", default=5, show_default=True, help="Samples of each smooth load.")
@click.option("--window", "window_s", default=WINDOW_S, show_default=True, help="Seconds of a sample.")
@click.option("--seasoned/--fresh", default=True, help="Measure memory once it grows no more; 10 s each.")
@click.option("--members", default=1000, show_default=True, help="Of the large smooth load.")
@click.option("--keys", is_flag=True, help="Measure saturation and connections with CURVE too.")
@click.option("--knocks", default=500, show_default=True, help="Connections made at once, with --keys.")
def main(
    *,
    as_json: bool,
    rounds: int,
    beats: int,
    windows: int,
    window_s: float,
    seasoned: bool,
    members: int,
    keys: bool,
    knocks: int,
) -> None:
    """What heartbeats cost the lighthouse."""
    report = new_report("ingest")
    report_saturation(report, rounds, beats)
    if keys:
        report_keys(report, rounds, beats, knocks)
    sizes = [(max(1, members // SMALL_SHARE), 5), (members, 20)]
    report_loads(report, sizes, Windows(windows, window_s, seasoned))
    report.show(as_json)


if __name__ == "__main__":
    main()
