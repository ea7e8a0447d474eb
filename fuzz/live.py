"""A running lighthouse under attack, while a real job trains beside it.

Everybody here is a real process: the lighthouse, the trainers with their listeners, and the attackers, who
reach the ports and know nothing else. First everything at once: hostile frames, strangers in the middle of a
handshake, connect storms, subscribers that never read. Then time: how soon the survivors of a kill are told,
with and without a flood of hostile frames, in turns, so that both meet the same machine; the subscribers and
strangers have left by then. The floor is told in the same turns: as many frames at a bare ROUTER beside the
lighthouse, which cost the machine and not the lighthouse.

What is asked of it: the lighthouse lives and keeps its size, the job beside it loses no step, nobody is told
of the end of one who lives, and a death is told as soon as in peace.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import click
import psutil

from benchmarks.detection import crash, measure
from benchmarks.fleet import DEADLINE_S, Fleet, Hand, Hands, Lighthouse, lighthouse_process
from benchmarks.report import Case, Report, Target, median, new_report, quantile
from procguard import status
from procguard.env import parse_address
from procguard.messages import Snapshot

MEBIBYTE = 1 << 20
JOB_ID = "default"
"""Also in the hostile frames: whoever can reach the port can be a member of it, if not of a known name."""
DETECTION_JOB_ID = "detection"
TRAINERS = 3
STEPS_PROVING_LIFE = 5
POLL_S = 0.05
RSS_POLL_S = 0.2
ROUNDS = 4
"""Of quiet and flood in turns."""
FLOOD_S_MAX = 300.0
RSS_GROWTH_MIB_MAX = 64
LATER_MS_MAX = 10
OWN_ERROR = "errors of the lighthouse itself"


class JobTrainer:
    """One trainer of the job beside, and what it said."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.steps = 0
        self.lost = 0
        self.told: list[str] = []
        self.weights: dict[int, float] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fuzz.trainer"],
            env={
                **os.environ,
                "PROCGUARD_LIGHTHOUSE": address,
                "PROCGUARD_JOB_ID": JOB_ID,
                "REPLICA_ID": name,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            if event["event"] == "told":
                self.told.append(event["replica_id"])
            elif event["committed"]:
                self.steps += event["size"] == TRAINERS
                self.weights[event["step"]] = event["weight"]
            else:
                self.lost += 1

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


class BesideJob:
    """The job that trains beside the attack; nothing is done to it."""

    def __init__(self, address: str) -> None:
        self.trainers = [JobTrainer(f"innocent-{n}", address) for n in range(TRAINERS)]
        self._lost_before = 0
        self.goes_on()
        self._lost_before = self.steps_lost

    def goes_on(self) -> None:
        """Return when all of it has trained some more. Raises ``TimeoutError``."""
        wanted = [trainer.steps + STEPS_PROVING_LIFE for trainer in self.trainers]
        give_up_at = time.monotonic() + DEADLINE_S
        while any(t.steps < steps for t, steps in zip(self.trainers, wanted, strict=True)):
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"the job beside took no {STEPS_PROVING_LIFE} steps in {DEADLINE_S} s")
            time.sleep(POLL_S)

    @property
    def steps(self) -> int:
        return min(trainer.steps for trainer in self.trainers)

    @property
    def steps_lost(self) -> int:
        """Not committed, by any of them, since all train together; or of different weights."""
        unequal = 0
        for step in set.intersection(*[set(trainer.weights) for trainer in self.trainers]):
            unequal += len({trainer.weights[step] for trainer in self.trainers}) > 1
        dead = sum(not trainer.lives for trainer in self.trainers)
        return sum(trainer.lost for trainer in self.trainers) - self._lost_before + unequal + dead

    @property
    def false_notices(self) -> int:
        names = {trainer.name for trainer in self.trainers}
        return sum(name in names for trainer in self.trainers for name in trainer.told)

    def close(self) -> None:
        for trainer in self.trainers:
            trainer.end()


class Size:
    """How large the lighthouse became, looked at all the time."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._over = threading.Event()
        self.first_mib = self.most_mib = self.last_mib = self._mib()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _mib(self) -> float:
        return float(self._process.memory_info().rss / MEBIBYTE)

    def _look(self) -> None:
        while not self._over.wait(RSS_POLL_S):
            self.last_mib = self._mib()
            self.most_mib = max(self.most_mib, self.last_mib)

    def close(self) -> None:
        self._over.set()
        self._thread.join()


class Attack:
    """A lighthouse, the job beside, and those who attack."""

    def __init__(self, lighthouse: Lighthouse, hired: Hands, job: BesideJob, seed: int) -> None:
        self.lighthouse = lighthouse
        self.job = job
        self.sent = 0
        self.done: Counter[str] = Counter()
        flags = (lighthouse.address, str(notice_port(lighthouse)), f"--seed={seed}")
        self._frames = hired.hire("fuzz.attacker", *flags)
        port = hired.hire("fuzz.sink").hear()["port"]
        self._elsewhere = hired.hire("fuzz.attacker", f"127.0.0.1:{port}", str(port), f"--seed={seed}")
        self._noise = hired.hire("fuzz.attacker", *flags)

    def everything(self, frames: int, strangers: int, storm: int, subscribers: int) -> None:
        """All ways at once, until each has come to its end."""
        self.done["subscribers that never read"] = subscribers
        self._noise.order(do="subscribers", count=subscribers, job_id=JOB_ID)
        order(self._frames, do="frames", count=frames)
        for _ in range(ROUNDS):
            self._noise.order(do="strangers", count=strangers // ROUNDS)
            self._noise.order(do="storm", count=storm // ROUNDS)
        self.done["strangers"] += strangers
        self.done["connections dropped at once"] += storm
        self.sent += self._frames.hear()["sent"]
        self.job.goes_on()
        self._noise.order(do="leave")

    def prepare(self) -> None:
        for hand in (self._frames, self._elsewhere):
            hand.order(do="prepare")

    @contextmanager
    def flood(self, rate: int, *, elsewhere: bool = False) -> Iterator[list[dict[str, Any]]]:
        """While it lasts, hostile frames arrive at this rate, at the lighthouse or at the bare ROUTER. What
        was sent stands in the list at the end."""
        told: list[dict[str, Any]] = []
        hand = self._elsewhere if elsewhere else self._frames
        order(hand, do="flood", rate=rate, seconds=FLOOD_S_MAX)
        try:
            yield told
        finally:
            hand.say("{}")  # any line ends it
            told.append(hand.hear())
            if not elsewhere:
                self.sent += told[0]["sent"]

    def snapshot(self) -> Snapshot:
        target = status.Target(parse_address(self.lighthouse.address), "started here")
        return status.ask(target, JOB_ID, DEADLINE_S)


def order(hand: Hand, **what: Any) -> None:
    """Tell it, and do not wait until it is done."""
    hand.say(json.dumps(what))


def notice_port(lighthouse: Lighthouse) -> int:
    ports = {c.laddr.port for c in lighthouse.process.net_connections("tcp") if c.status == "LISTEN"}
    (other,) = ports - {parse_address(lighthouse.address).port}
    return int(other)


def report_times(report: Report, attack: Attack, kills: int, members: int, rate: int) -> None:
    """Kills in quiet and under the flood, in turns."""
    quiet: list[float] = []
    beside: list[float] = []
    flooded: list[float] = []
    rates_beside: list[float] = []
    rates: list[float] = []
    lost = 0
    rounds = min(ROUNDS, kills)
    attack.prepare()
    with ExitStack() as stack:
        fleet = Fleet(attack.lighthouse.address, members)
        stack.callback(fleet.close)
        for _ in range(rounds):
            quiet += measure(fleet, crash, -(-kills // rounds))[0]
            with attack.flood(rate, elsewhere=True) as told:
                beside += measure(fleet, crash, -(-kills // rounds))[0]
            rates_beside.append(told[0]["sent"] / told[0]["seconds"])
            with attack.flood(rate) as told:
                flooded += measure(fleet, crash, -(-kills // rounds))[0]
            rates.append(told[0]["sent"] / told[0]["seconds"])
            lost += told[0]["lost"]
        false_notices = fleet.false_notices
    report.cases.append(Case.of("crash, quiet", members, quiet))
    report.cases.append(Case.of("floor: crash, the flood at a bare ROUTER", members, beside))
    report.cases.append(Case.of("crash, under the flood", members, flooded))
    report.cases.append(Case.of("floor: the flood at a bare ROUTER", members, rates_beside, "", "frames/s"))
    note = f"{rate} a second wanted; {lost} were not taken by a full connection"
    report.cases.append(Case.of("the flood", members, rates, note, "frames/s"))
    later = quantile(flooded, 0.99) - quantile(quiet, 0.99)
    report.targets.append(Target.at_most("p99 under the flood, later than in quiet, ms", LATER_MS_MAX, later))
    floor = quantile(flooded, 0.99) - quantile(beside, 0.99)
    report.targets.append(Target.at_most("p99 the same, later than at the floor, ms", LATER_MS_MAX, floor))
    report.targets.append(Target.at_most("p50 the same", LATER_MS_MAX, median(flooded) - median(quiet)))
    report.targets.append(Target.at_least("frames/s of the flood", rate * 0.9, median(rates)))
    report.targets.append(Target.at_most("notices for measured members that were alive", 0, false_notices))


def report_harm(report: Report, attack: Attack, size: Size, frames: int) -> None:
    counters = dict(attack.snapshot().counters)
    report.cases.append(
        Case.of("lighthouse", TRAINERS, [size.first_mib, size.last_mib, size.most_mib], "", "MiB RSS")
    )
    said = ", ".join(f"{name}: {value}" for name, value in (attack.done | Counter(counters)).items())
    report.cases.append(Case.of("steps of the job beside", TRAINERS, [attack.job.steps], said, "steps"))
    targets = report.targets
    targets.append(Target.at_least("hostile frames", frames, attack.sent))
    targets.append(Target.at_most("errors of the lighthouse itself", 0, counters.get(OWN_ERROR, 0)))
    targets.append(Target.at_most("RSS growth, MiB", RSS_GROWTH_MIB_MAX, size.most_mib - size.first_mib))
    targets.append(Target.at_most("steps that the job beside lost", 0, attack.job.steps_lost))
    targets.append(Target.at_most("notices for it, though it lived", 0, attack.job.false_notices))


@click.command()
@click.option("--frames", default=1_000_000, show_default=True, help="Hostile frames, all different.")
@click.option("--strangers", default=2_000, show_default=True, help="Connections that end in a handshake.")
@click.option("--storm", default=10_000, show_default=True, help="Connections that are dropped at once.")
@click.option("--subscribers", default=1_000, show_default=True, help="That never read.")
@click.option(
    "--kills", default=40, show_default=True, help="In quiet, and as many under the flood; 0: none."
)
@click.option("--members", default=4, show_default=True, help="Among whom kills are told.")
@click.option("--rate", default=50_000, show_default=True, help="Frames a second of the flood.")
@click.option("--seed", default=1, show_default=True, help="Of all that is hostile.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
def main(
    *,
    frames: int,
    strangers: int,
    storm: int,
    subscribers: int,
    kills: int,
    members: int,
    rate: int,
    seed: int,
    as_json: bool,
) -> None:
    """Attack a lighthouse; exit code 1 if a target is missed."""
    os.environ["PROCGUARD_JOB_ID"] = DETECTION_JOB_ID
    report = new_report("fuzz.live")
    with ExitStack() as stack:
        lighthouse = stack.enter_context(lighthouse_process())
        hired = stack.enter_context(Hands())
        job = BesideJob(lighthouse.address)
        stack.callback(job.close)
        attack = Attack(lighthouse, hired, job, seed)
        size = Size(lighthouse.process)
        stack.callback(size.close)
        started = time.monotonic()
        attack.everything(frames, strangers, storm, subscribers)
        seconds = [time.monotonic() - started]
        report.cases.append(Case.of("everything at once", TRAINERS, seconds, "", "s"))
        if kills:
            report_times(report, attack, kills, members, rate)
        job.goes_on()
        report_harm(report, attack, size, frames)
    report.show(as_json)
    raise SystemExit(not all(target.met for target in report.targets))


if __name__ == "__main__":
    main()
