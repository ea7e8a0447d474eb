"""How long a quorum takes: from the moment at which the last member asks until all are answered.

Each member is a process with the client that a trainer has, and nothing else: no listener, no training. They
follow a timetable, the last one half a round after the others, and keep their times to themselves until all
rounds are over, so that telling them does not compete with what is measured. The clock is the machine's
monotonic one, which all processes share.

Nobody beats here: the lighthouse is told to be patient instead, so that a round is a round and nothing else.
"""

from __future__ import annotations

import gc
import json
import secrets
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import click
import zmq

from benchmarks import floors
from benchmarks.fleet import Hands, lighthouse
from benchmarks.report import Case, Target, median, new_report
from procguard.adapters.zmq import ZmqMemberTransport
from procguard.client.lighthouse_client import LighthouseClient
from procguard.messages import Hello, Incarnation, Participant, Process, Rank

TARGETS_MS = {2: 0.35, 8: 0.6, 32: 1.6, 64: 4.0}
PATIENCE_S = 60.0
WARM_UP = 10
"""Rounds before those that count: the first quorum, first turns of the code."""
ROUND_S_MIN = 0.02
ROUND_S_PER_MEMBER = 0.002
"""All have asked, been answered and come to rest well before the next round, also on two cores."""
START_S = 1.0
"""Between the timetable and its first round."""
LAST = "m000"
BYTES_PER_MEMBER = 155
"""Of an answer, which holds every member's request."""


class Listening(ZmqMemberTransport):
    """Notes when the lighthouse's last word arrived, before anybody reads it."""

    arrived_at = 0.0

    def receive(self, count_max: int) -> list[bytes]:
        frames = super().receive(count_max)
        if frames:
            self.arrived_at = time.monotonic()
        return frames


class Times(NamedTuple):
    """Of one member in one round, on the machine's monotonic clock."""

    asked_at: float
    arrived_at: float
    """The answer was there."""
    had_at: float
    """It was read, checked and returned."""


class Member:
    """One that asks, as a trainer does."""

    def __init__(self, address: str, name: str) -> None:
        host, _, port = address.rpartition(":")
        hello = Hello(
            job_id="default",
            replica_id=name,
            token=secrets.token_bytes(16),
            process=Process(host="quorum", boot_id="", pid=1, start_time=0),
        )
        self._transport = Listening(host, int(port))
        self._client = LighthouseClient(self._transport, hello, address, on_reborn=lambda welcome: None)
        self._client.join(PATIENCE_S)
        self._name = name
        self._round = 0

    def ask(self) -> Times:
        """Take part in the next quorum."""
        self._round += 1
        asks = Participant(
            replica_id=self._name,
            incarnation=Incarnation(0, 0),  # the client knows
            round=self._round,
            step=self._round,
            committed_in=0,
            world_size=1,
            address="127.0.0.1",
            shrink_only=False,
            commit_failures=0,
            data=b"",
            ranks=(Rank("127.0.0.1:40000", f"http://127.0.0.1:40001/checkpoint/{'x' * 43}"),),
        )
        asked_at = time.monotonic()
        self._client.quorum(asks, PATIENCE_S)
        return Times(asked_at, self._transport.arrived_at, time.monotonic())


class BareMember:
    """The floor: sends some bytes and waits for some, of about the lengths that a quorum takes."""

    def __init__(self, address: str) -> None:
        self._dealer: zmq.Socket[bytes] = zmq.Context().socket(zmq.DEALER)
        self._dealer.connect(f"tcp://{address}")

    def ask(self) -> Times:
        asked_at = time.monotonic()
        self._dealer.send(bytes(BYTES_PER_MEMBER))
        self._dealer.recv()
        arrived_at = time.monotonic()
        return Times(asked_at, arrived_at, arrived_at)


def take_part(address: str, name: str, bare: bool) -> None:
    """A member process: joins, hears the timetable, keeps to it, tells its times."""
    member = BareMember(address) if bare else Member(address, name)
    gc.freeze()
    print(json.dumps({"ready": name}), flush=True)
    table = json.loads(sys.stdin.readline())
    late_s = table["round_s"] / 2 if name == LAST else 0.0
    times = []
    for n in range(table["rounds"]):
        due = table["start"] + n * table["round_s"] + late_s
        time.sleep(max(0.0, due - time.monotonic()))
        times.append(member.ask())
    print(json.dumps({"times": times}), flush=True)


Round = Sequence[Times]
"""Of each member."""


def rounds(address: str, size: int, count: int, *, bare: bool = False) -> list[Round]:
    """Those that count, one after the other."""
    flags = ["--bare"] if bare else []
    names = [f"m{n:03d}" for n in range(size)]
    with Hands() as hired:
        members = [hired.hire("benchmarks.quorum", "--one", name, address, *flags) for name in names]
        for member in members:
            member.hear()
        round_s = max(ROUND_S_MIN, ROUND_S_PER_MEMBER * size)
        table = {"start": time.monotonic() + START_S, "round_s": round_s, "rounds": WARM_UP + count}
        for member in members:
            member.say(json.dumps(table))
        noted = [[Times(*times) for times in member.hear()["times"]] for member in members]
    return [[times[n] for times in noted] for n in range(WARM_UP, WARM_UP + count)]


def measure(size: int, count: int) -> tuple[list[Round], list[Round]]:
    """Rounds of so many members, and the floor under them."""
    with floors.bare_rounds(size, size * BYTES_PER_MEMBER) as address:
        floor = rounds(address, size, count, bare=True)
    patience = ["--thread-heartbeat-timeout-ms", "86400000", "--min-replicas", str(size)]
    with lighthouse(*patience) as address:
        return rounds(address, size, count), floor


def until_arrived_ms(times: Round) -> float:
    """From the last ask of a round to the arrival of its last answer."""
    return (max(t.arrived_at for t in times) - max(t.asked_at for t in times)) * 1000


def until_had_ms(times: Round) -> float:
    """From the last ask of a round until the last member had its quorum."""
    return (max(t.had_at for t in times) - max(t.asked_at for t in times)) * 1000


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@click.option("--rounds", "count", default=200, show_default=True, help="Rounds of each case.")
@click.option("--members", multiple=True, type=int, help="Sizes.  [default: 2, 8, 32, 64]")
@click.option("--one", nargs=2, type=(str, str), hidden=True)
@click.option("--bare", is_flag=True, hidden=True)
def main(
    *, as_json: bool, count: int, members: tuple[int, ...], one: tuple[str, str] | None, bare: bool
) -> None:
    """Time from the last ask to the last answer."""
    if one:
        name, address = one
        take_part(address, name, bare)
        return
    report = new_report("quorum")
    for size in members or TARGETS_MS:
        measured, floor = measure(size, count)
        report.cases.append(Case.of("floor: bare ROUTER and DEALER", size, [*map(until_had_ms, floor)]))
        arrived = [until_arrived_ms(times) for times in measured]
        report.cases.append(Case.of("last ask to last answer", size, arrived))
        had = [until_had_ms(times) for times in measured]
        report.cases.append(Case.of("last ask until all have read it", size, had))
        if size in TARGETS_MS:
            target = Target.at_most(f"quorum p50 ms, {size} members", TARGETS_MS[size], median(arrived))
            report.targets.append(target)
    report.show(as_json)


if __name__ == "__main__":
    main()
