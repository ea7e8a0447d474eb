"""What a lighthouse of many members costs, and how soon a death is told among them.

The members are a ``crowd``: of each a connection that beats at 10 Hz and one that hears notices. Some are
sampled: a process of its own (``--sample``) lets one after the other die and notes when the rest were told.
Half of the sampled ones join before the crowd and half after it, because the order in which ZeroMQ serves
subscribers has to do with that.

Death in two ways: by obituary, as a listener sends it, where what grows with the members is the telling; and
by a lost connection, where the grace comes on top.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

import click
import zmq

from benchmarks.crowd import CrowdMember, SmoothBeats, crowd_context, join, say
from benchmarks.fleet import Hands, lighthouse_process
from benchmarks.ingest import MEBIBYTE, WARM_UP_S, WINDOW_S, cpu_percent
from benchmarks.report import Case, Report, Target, new_report, quantile
from procguard.codec import decode
from procguard.messages import Ack, Cause, CauseKind, NoticeBatch, Obituary, Process

FEW, MANY = 100, 2000
SIZES = (10, FEW, 1000, MANY)
SAMPLED = 10
"""Members whose times are taken."""
BETWEEN_S = 0.11
"""From one death to the next: no multiple of the beacon's interval, so that it is met at every point."""
POLL_MS = 1
DEADLINE_S = 30.0
WAYS = {"obituary": 1, "lost connection": 5}
"""Of so many deaths one is tried: a lost connection takes as long as the grace."""


class Sample:
    """The members whose deaths and times are taken."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._context = crowd_context()
        self._members: list[CrowdMember] = []
        self._beats = SmoothBeats(self._members)

    def grow(self, count: int) -> None:
        """Let so many more join."""
        already = len(self._members)
        more = [
            CrowdMember(self._context, self._address, f"s{n:05d}") for n in range(already, already + count)
        ]
        join(more, listening=True)
        self._members += more
        self._beats = SmoothBeats(self._members)

    def live(self, until: Callable[[], bool]) -> None:
        self._beats.go_on(until)

    def deaths_ms(self, way: str, count: int) -> list[float]:
        """One after the other dies and is replaced; from its death to each other's notice of it."""
        times = []
        for n in range(count):
            self._rest(BETWEEN_S)
            victim = self._members[n % len(self._members)]
            victim.beat = b""
            died_at = time.monotonic()
            if way == "obituary":
                self._bury(victim)
            else:
                victim.fall_silent()
            times += [(at - died_at) * 1000 for at in self._told(victim)]
            self._replace(victim, acknowledged=way == "obituary")
        return times

    def _rest(self, pause_s: float) -> None:
        over_at = time.monotonic() + pause_s
        self.live(until=lambda: time.monotonic() >= over_at)

    def _bury(self, victim: CrowdMember) -> None:
        cause = Cause(kind=CauseKind.PROCESS_EXIT, signal=9)
        nobody = Process(host="", boot_id="", pid=0, start_time=0)
        victim.send(Obituary(job_id="default", token=victim.token, process=nobody, cause=cause))

    def _told(self, victim: CrowdMember) -> list[float]:
        """When each of the others heard of its death."""
        poller = zmq.Poller()
        waiting = {m.sub for m in self._members if m is not victim and m.sub is not None}
        for sub in waiting:
            poller.register(sub, zmq.POLLIN)
        told: list[float] = []
        deadline = time.monotonic() + DEADLINE_S
        while waiting:
            for sub, _ in poller.poll(POLL_MS):
                frame = sub.recv()
                at = time.monotonic()
                if sub in waiting and names(frame, victim):
                    waiting.discard(sub)
                    told.append(at)
            self._beats.send_due()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(waiting)} members did not hear of {victim.replica_id}'s death")
        return told

    def _replace(self, victim: CrowdMember, acknowledged: bool) -> None:
        if acknowledged:
            answer = victim.answer()
            assert isinstance(answer, Ack), answer
        victim.renew()
        join([victim], listening=True)


def names(frame: bytes, victim: CrowdMember) -> bool:
    """Whether a published frame tells of this member's death."""
    message = decode(frame.partition(b"\0")[2])
    assert victim.welcome is not None
    life = (victim.replica_id, victim.welcome.incarnation)
    return isinstance(message, NoticeBatch) and any(
        (n.replica_id, n.incarnation) == life for n in message.notices
    )


def sample(address: str) -> None:
    """The process of the sampled members: does what each line says, and beats meanwhile."""
    lines: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=read_into, args=(lines,), daemon=True).start()
    sampled = Sample(address)
    while True:
        sampled.live(until=lambda: not lines.empty())
        order = json.loads(lines.get())
        if "grow" in order:
            sampled.grow(order["grow"])
            say(grown=order["grow"])
        else:
            say(times=sampled.deaths_ms(order["way"], order["count"]))


def read_into(lines: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)


def measure(report: Report, size: int, windows: tuple[int, float], deaths: int) -> dict[str, float]:
    """One size of job; p99 of each way to die, in milliseconds.

    Args:
        windows: how many samples of the CPU, and the seconds of each.
    """
    sampled = min(SAMPLED, size)
    p99_ms = {}
    with lighthouse_process() as lighthouse, Hands() as hired:
        sample = hired.hire("benchmarks.scale", "--sample", lighthouse.address)
        sample.order(grow=sampled // 2)
        if size > sampled:
            others = str(size - sampled)
            hired.hire("benchmarks.crowd", lighthouse.address, "m", others, "--listening").hear()
        sample.order(grow=sampled - sampled // 2)
        time.sleep(WARM_UP_S)
        percent = list(cpu_percent(lighthouse.process, *windows))
        report.cases.append(Case.of("10 Hz, smoothly", size, percent, unit="% of a core"))
        for way, share in WAYS.items():
            times = sample.order(way=way, count=max(1, deaths // share))["times"]
            report.cases.append(Case.of(f"{way} to notice", size, times))
            p99_ms[way] = quantile(times, 0.99)
        rss = lighthouse.process.memory_info().rss / MEBIBYTE
        report.cases.append(Case.of("10 Hz, smoothly", size, [rss], unit="MiB RSS"))
        lighthouse.expect_alive(size)
    return p99_ms


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@click.option("--members", multiple=True, type=int, help=f"Sizes.  [default: {', '.join(map(str, SIZES))}]")
@click.option("--windows", default=5, show_default=True, help="Samples of the CPU.")
@click.option("--window", "window_s", default=WINDOW_S, show_default=True, help="Seconds of a sample.")
@click.option("--deaths", default=100, show_default=True, help="By obituary; by lost connection fewer.")
@click.option("--sample", "address", hidden=True)
def main(
    *,
    as_json: bool,
    members: tuple[int, ...],
    windows: int,
    window_s: float,
    deaths: int,
    address: str | None,
) -> None:
    """What many members cost, and how soon they are told."""
    if address:
        sample(address)
        return
    report = new_report("scale")
    p99_ms = {size: measure(report, size, (windows, window_s), deaths) for size in members or SIZES}
    if FEW in p99_ms and MANY in p99_ms:
        for way in WAYS:
            name = f"{way} to notice, p99 at {MANY} members over {FEW}"
            report.targets.append(Target.at_most(name, 2, p99_ms[MANY][way] / p99_ms[FEW][way]))
    report.show(as_json)


if __name__ == "__main__":
    main()
