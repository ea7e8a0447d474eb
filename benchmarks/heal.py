"""How fast a replica heals, and what it takes: a state of numpy arrays over loopback HTTP.

Source and fetcher are processes of their own, as they are in a job. Each tells the most memory that it has
ever held (``VmHWM``), less what it held before there was a state; so the ratio to the state is 1.0 for a side
that copies nothing. The floor is the same bytes over a bare TCP connection, received into one buffer.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import click
import numpy as np

from benchmarks import floors
from benchmarks.crowd import say
from benchmarks.fleet import Hands
from benchmarks.report import Case, Report, Target, median, new_report
from procguard.client.checkpoint import HTTPTransport

GIGABYTE = 10**9
MEBIBYTE = 1 << 20
LAYERS = 64
STEP = 7
TIMEOUT = timedelta(seconds=60)
SIDES = 2
"""A quorum of one that serves and one that heals."""
SUM_EVERY = 1 << 10
FLOAT_BYTES = 4


def state_of(size_bytes: int) -> dict[str, Any]:
    """A model's weights and its optimizer's, of random numbers: nothing compresses, no page is shared."""
    rng = np.random.default_rng(7)
    each = max(1, size_bytes // LAYERS // FLOAT_BYTES)
    layers = {f"layer{n}": rng.random(each, dtype=np.float32) for n in range(LAYERS)}
    return {"step": STEP, "weights": layers}


def memory_bytes(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` (the greatest so far) of this process."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) * 1024


def serve(size_bytes: int) -> None:
    """The source: publishes its state in each round, and tells of its memory at the end."""
    empty = memory_bytes("VmRSS")
    state = state_of(size_bytes)
    transport = HTTPTransport(TIMEOUT, host="127.0.0.1")
    say(bytes=sum(layer.nbytes for layer in state["weights"].values()), sum=checksum(state))
    for _ in sys.stdin:
        metadata = transport.metadata()
        transport.send_checkpoint([1], STEP, state, TIMEOUT)
        say(metadata=metadata)
    transport.shutdown()
    say(peak_bytes=memory_bytes("VmHWM") - empty)


def fetch() -> None:
    """The healing replica: fetches what each line names, and forgets it again."""
    transport = HTTPTransport(TIMEOUT, host="127.0.0.1")
    empty = memory_bytes("VmRSS")
    for line in sys.stdin:
        started_at = time.monotonic()
        state = transport.recv_checkpoint(0, json.loads(line)["metadata"], STEP, TIMEOUT)
        took_s = time.monotonic() - started_at
        say(took_s=took_s, sum=checksum(state))
        del state
    transport.shutdown()
    say(peak_bytes=memory_bytes("VmHWM") - empty)


def checksum(state: dict[str, Any]) -> float:
    """That what was fetched is what was served; checked here as well, lest a fast nothing be praised."""
    return float(sum(layer[::SUM_EVERY].sum(dtype=np.float64) for layer in state["weights"].values()))


def heal(report: Report, size_bytes: int, rounds: int) -> None:
    """Let a replica heal so many times, and report it."""
    with Hands() as hired:
        source = hired.hire("benchmarks.heal", "--serve", str(size_bytes))
        served = source.hear()
        fetcher = hired.hire("benchmarks.heal", "--fetch")
        times = []
        for _ in range(rounds):
            healed = fetcher.order(metadata=source.order()["metadata"])
            if healed["sum"] != served["sum"]:
                raise RuntimeError("what was fetched is not what was served")
            times.append(healed["took_s"])
        peaks = {"source": source.over()["peak_bytes"], "fetcher": fetcher.over()["peak_bytes"]}
    rates = rates_gb_per_s(served["bytes"], times)
    report.cases.append(Case.of("heal", SIDES, rates, f"{served['bytes'] / MEBIBYTE:.0f} MiB", "GB/s"))
    report.targets.append(Target.at_least("heal GB/s, p50", 1, median(rates)))
    for side, peak in peaks.items():
        report.cases.append(Case.of(f"most memory, {side}", SIDES, [peak / MEBIBYTE], unit="MiB RSS"))
        report.targets.append(
            Target.at_most(f"most memory over the state, {side}", 1.5, peak / served["bytes"])
        )


def rates_gb_per_s(size_bytes: int, times_s: Sequence[float]) -> list[float]:
    return [size_bytes / GIGABYTE / took_s for took_s in times_s]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@click.option("--mib", default=1024, show_default=True, help="Size of the state.")
@click.option("--rounds", default=5, show_default=True, help="Times that it is fetched.")
@click.option("--serve", "served_bytes", type=int, hidden=True)
@click.option("--fetch", "fetches", is_flag=True, hidden=True)
def main(*, as_json: bool, mib: int, rounds: int, served_bytes: int | None, fetches: bool) -> None:
    """How fast a replica heals, and what memory that takes."""
    if served_bytes is not None:
        serve(served_bytes)
    elif fetches:
        fetch()
    else:
        report = new_report("heal")
        floor = rates_gb_per_s(mib * MEBIBYTE, floors.tcp_transfers_s(mib * MEBIBYTE, rounds))
        report.cases.append(Case.of("floor: bare TCP", SIDES, floor, f"{mib} MiB", "GB/s"))
        heal(report, mib * MEBIBYTE, rounds)
        report.show(as_json)


if __name__ == "__main__":
    main()
