"""How fast a replica heals, and what it takes: a state of numpy arrays or torch tensors over loopback HTTP.

Source and fetcher are processes of their own, as they are in a job. Each tells the most memory that it has
ever held (``VmHWM``), less what it held before there was a state; so the ratio to the state is 1.0 for a side
that copies nothing. The floor is the same bytes over a bare TCP connection, received into one buffer. With
``--tensors`` the state is of torch tensors, and where torchft is installed its HTTPTransport, as its Manager
sets it up, heals from the same state in turns with ours.
"""

from __future__ import annotations

import importlib.util
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
MEMORY_SHARE = 1.3
"""Of the state: the most memory that either side may take for it."""
NUMPY, TENSORS, TORCHFT = "numpy", "tensors", "torchft"


def state_of(size_bytes: int, tensors: bool = False) -> dict[str, Any]:
    """A model's weights and its optimizer's, of random numbers: nothing compresses, no page is shared."""
    each = max(1, size_bytes // LAYERS // FLOAT_BYTES)
    if tensors:
        import torch

        generator = torch.Generator().manual_seed(7)
        return {
            "step": STEP,
            "weights": {f"layer{n}": torch.rand(each, generator=generator) for n in range(LAYERS)},
        }
    rng = np.random.default_rng(7)
    layers = {f"layer{n}": rng.random(each, dtype=np.float32) for n in range(LAYERS)}
    return {"step": STEP, "weights": layers}


def transport_of(kind: str) -> Any:
    """Ours, or torchft's as its Manager makes it."""
    if kind == TORCHFT:
        from torchft.checkpointing.http_transport import HTTPTransport as TorchftTransport

        return TorchftTransport(TIMEOUT, num_chunks=0)
    return HTTPTransport(TIMEOUT, host="127.0.0.1")


def warm_up(kind: str) -> None:
    """Load what the kind needs: that memory is nobody's state."""
    state = state_of(MEBIBYTE, tensors=kind != NUMPY)
    checksum(state)


def memory_bytes(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` (the greatest so far) of this process."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) * 1024


def serve(size_bytes: int, kind: str) -> None:
    """The source: publishes its state in each round, and tells of its memory at the end."""
    warm_up(kind)
    transport = transport_of(kind)
    empty = memory_bytes("VmRSS")
    state = state_of(size_bytes, tensors=kind != NUMPY)
    say(bytes=sum(layer.nbytes for layer in state["weights"].values()), sum=checksum(state))
    for _ in sys.stdin:
        metadata = transport.metadata()
        transport.send_checkpoint([1], STEP, state, TIMEOUT)
        say(metadata=metadata)
    transport.shutdown()
    say(peak_bytes=memory_bytes("VmHWM") - empty)


def fetch(kind: str) -> None:
    """The healing replica: fetches what each line names, and forgets it again."""
    warm_up(kind)
    transport = transport_of(kind)
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
    layers = [np.asarray(layer) for layer in state["weights"].values()]
    return float(sum(layer[::SUM_EVERY].sum(dtype=np.float64) for layer in layers))


class Pair:
    """A source and a replica that heals from it, with one kind of state and transport."""

    def __init__(self, hired: Hands, kind: str, size_bytes: int) -> None:
        self.kind = kind
        self._source = hired.hire("benchmarks.heal", "--serve", str(size_bytes), "--kind", kind)
        self._served = self._source.hear()
        self._hired = hired
        self._times: list[float] = []
        self._fetchers_peak_bytes = 0

    def heal(self) -> None:
        """Once more, by a process that has just started, as one that heals: its memory is new to it."""
        fetcher = self._hired.hire("benchmarks.heal", "--fetch", "--kind", self.kind)
        healed = fetcher.order(metadata=self._source.order()["metadata"])
        if healed["sum"] != self._served["sum"]:
            raise RuntimeError("what was fetched is not what was served")
        self._times.append(healed["took_s"])
        self._fetchers_peak_bytes = max(self._fetchers_peak_bytes, fetcher.over()["peak_bytes"])

    def report(self, report: Report) -> float:
        """Put its cases into the report; its median rate in GB/s."""
        state_bytes, suffix = self._served["bytes"], "" if self.kind == NUMPY else f", {self.kind}"
        rates = rates_gb_per_s(state_bytes, self._times)
        note = f"{state_bytes / MEBIBYTE:.0f} MiB"
        report.cases.append(Case.of(f"heal{suffix}", SIDES, rates, note, "GB/s"))
        peaks = {"source": self._source.over()["peak_bytes"], "fetcher": self._fetchers_peak_bytes}
        for name, peak in peaks.items():
            memory = f"most memory, {name}{suffix}"
            report.cases.append(Case.of(memory, SIDES, [peak / MEBIBYTE], unit="MiB RSS"))
            if self.kind != TORCHFT:
                over = f"most memory over the state, {name}{suffix}"
                report.targets.append(Target.at_most(over, MEMORY_SHARE, peak / state_bytes))
        return median(rates)


def heal(report: Report, size_bytes: int, rounds: int, kinds: Sequence[str]) -> None:
    """Let a replica of each kind heal so many times, in turns, and report it."""
    with Hands() as hired:
        pairs = [Pair(hired, kind, size_bytes) for kind in kinds]
        for _ in range(rounds):
            for pair in pairs:
                pair.heal()
        medians = {pair.kind: pair.report(report) for pair in pairs}
    if NUMPY in medians:
        report.targets.append(Target.at_least("heal GB/s, p50", 1, medians[NUMPY]))
    if TORCHFT in medians:
        over = medians[TENSORS] / medians[TORCHFT]
        report.targets.append(Target.at_least("heal GB/s over torchft's, p50", 1, over))


def kinds_wanted(tensors: bool) -> list[str]:
    """torchft's for comparison, if it is there."""
    if not tensors:
        return [NUMPY]
    return [TENSORS, TORCHFT] if importlib.util.find_spec("torchft") else [TENSORS]


def rates_gb_per_s(size_bytes: int, times_s: Sequence[float]) -> list[float]:
    return [size_bytes / GIGABYTE / took_s for took_s in times_s]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@click.option("--mib", default=1024, show_default=True, help="Size of the state.")
@click.option("--rounds", default=5, show_default=True, help="Times that it is fetched.")
@click.option("--tensors", is_flag=True, help="A state of torch tensors; beside torchft, if there is one.")
@click.option("--serve", "served_bytes", type=int, hidden=True)
@click.option("--fetch", "fetches", is_flag=True, hidden=True)
@click.option("--kind", type=click.Choice([NUMPY, TENSORS, TORCHFT]), default=NUMPY, hidden=True)
def main(
    *, as_json: bool, mib: int, rounds: int, tensors: bool, served_bytes: int | None, fetches: bool, kind: str
) -> None:
    """How fast a replica heals, and what memory that takes."""
    if served_bytes is not None:
        serve(served_bytes, kind)
    elif fetches:
        fetch(kind)
    else:
        report = new_report("heal")
        floor = rates_gb_per_s(mib * MEBIBYTE, floors.tcp_transfers_s(mib * MEBIBYTE, rounds))
        report.cases.append(Case.of("floor: bare TCP", SIDES, floor, f"{mib} MiB", "GB/s"))
        heal(report, mib * MEBIBYTE, rounds, kinds_wanted(tensors))
        report.show(as_json)


if __name__ == "__main__":
    main()
