"""The proactive example, run as its README says: how soon the survivor trains on when replica 0 ends.

Two replicas under torchrun, with proactive recovery and without, for each way to end. Times count from the
moment at which replica 0 is about to end, in the middle of a step, with the survivor in its all-reduce or on
the way to it: ``told`` until the survivor's ``on_failure``, ``resumed`` until its next committed step, whose
own length, some milliseconds more than ``STEP_TIME_MS``, is in it.

Where torchft is installed, its own Manager and Gloo group go through the same, on its own lighthouse and on
ProcGuard's, with the same timeout of a collective.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import click
import psutil

from benchmarks.fleet import lighthouse
from benchmarks.report import Case, Report, Target, new_report

REPOSITORY = Path(__file__).parent.parent
HOWS = ("leave", "kill", "stop", "wedge")
REPLICAS = 2
STEPS = 12
STEP_TIME_MS = 50
HEARTBEAT_TIMEOUT_MS = 1000
PROGRESS_TIMEOUT_S = 2.0
"""The bound that the trainers declare for a step without progress."""
SLACK_MS = 500
TOLD_MS = 10
START_S = 30.0
"""For two trainers to import torch and to come to the step at which one ends."""
PATIENCE_S = 30.0
"""Who has not trained on by then is taken never to."""

Event = dict[str, Any]


@contextmanager
def torchft_lighthouse() -> Iterator[str]:
    """The address of one of torchft's own."""
    command = [sys.executable, "-m", "benchmarks.torchft_peer", "--serve"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        yield next(found[1] for line in process.stdout if (found := re.search(r"http://(\S+)", line)))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Contender(NamedTuple):
    """Who trains, on what, and whether notices are heard."""

    name: str
    program: tuple[str, ...]
    lighthouse: Callable[[], AbstractContextManager[str]]
    proactive: bool
    hows: Sequence[str]
    options: tuple[str, ...] = ()


OURS = ("examples/ddp_proactive/train_ddp_proactive.py",)
PEER = ("benchmarks/torchft_peer.py",)
ENDS_WITHOUT_A_WORD = ("kill", "stop", "wedge")
BOUND = (f"--progress-timeout={PROGRESS_TIMEOUT_S}",)
CONTENDERS = (
    Contender("proactive", OURS, lighthouse, True, HOWS, BOUND),
    Contender("waiting", OURS, lighthouse, False, HOWS, BOUND),
)
TORCHFT = (
    Contender(
        "torchft on ProcGuard",
        ("-m", "procguard.adapters.torchft", *PEER),
        lighthouse,
        True,
        ("kill", "stop"),
    ),
    Contender("torchft", PEER, torchft_lighthouse, False, ENDS_WITHOUT_A_WORD),
)


class Replica:
    """One replica group under torchrun."""

    def __init__(
        self, group: int, folder: Path, address: str, contender: Contender, options: Sequence[str]
    ) -> None:
        self.journal = folder / f"{group}.jsonl"
        self._log = (folder / f"{group}.log").open("w+")
        torchrun = [
            "torch.distributed.run",
            f"--master_port={_free_port()}",
            "--nnodes=1",
            "--nproc_per_node=1",
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-m", *torchrun, *contender.program, f"--journal={self.journal}", *options],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "PROCGUARD_PROACTIVE_RECOVERY": str(int(contender.proactive)),
                "REPLICA_GROUP_ID": str(group),
                "NUM_REPLICA_GROUPS": str(REPLICAS),
                "PROCGUARD_LIGHTHOUSE": f"http://{address}",
                "TORCHFT_LIGHTHOUSE": f"http://{address}",
            },
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def events(self, kind: str) -> list[Event]:
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [event for line in lines if (event := json.loads(line))["event"] == kind]

    def wait(self) -> None:
        """Until it has ended, or does not train on. Raises ``RuntimeError`` with what it said when it ended
        badly."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(START_S + PATIENCE_S)
        if self._process.returncode not in (0, None):
            self._log.seek(0)
            raise RuntimeError(f"a survivor ended with {self._process.returncode}:\n{self._log.read()}")

    def end(self) -> None:
        """Whatever was done to it, let nothing of it remain."""
        with suppress(psutil.NoSuchProcess):
            torchrun = psutil.Process(self._process.pid)
            for process in [*torchrun.children(recursive=True), torchrun]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait()
        self._log.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def run(how: str, contender: Contender, timeout_s: float) -> tuple[float | None, float | None]:
    """Milliseconds until the survivor was told (None: it was not), and until it trained on (None: it did
    not)."""
    options = [f"--how={how}", f"--steps={STEPS}", f"--step-time-ms={STEP_TIME_MS}", f"--timeout={timeout_s}"]
    options += contender.options
    with tempfile.TemporaryDirectory() as name, contender.lighthouse() as address:
        replicas = [Replica(group, Path(name), address, contender, options) for group in range(REPLICAS)]
        try:
            victim, survivor = replicas
            survivor.wait()
            return _times(victim, survivor)
        finally:
            for replica in replicas:
                replica.end()


def _times(victim: Replica, survivor: Replica) -> tuple[float | None, float | None]:
    (ending,) = victim.events("ending")
    steps = [event for event in survivor.events("step") if event["committed"] and event["at"] > ending["at"]]
    told = [(event["at"] - ending["at"]) * 1000 for event in survivor.events("told")]
    return (told[0] if told else None), ((steps[0]["at"] - ending["at"]) * 1000 if steps else None)


def measure(report: Report, how: str, contender: Contender, rounds: int, timeout_s: float) -> None:
    """Run it so many times, and report it."""
    times = [run(how, contender, timeout_s) for _ in range(rounds)]
    told = [ms for ms, _ in times if ms is not None]
    name = f"{how}, {contender.name}"
    if told:
        report.cases.append(Case.of(f"{name}: told", REPLICAS, told))
    resumed = [ms if ms is not None else PATIENCE_S * 1000 for _, ms in times]
    note = "" if told or contender.program != OURS else "nobody was told"
    if never := sum(ms is None for _, ms in times):
        note = f"{never} of {rounds} not within {PATIENCE_S:g} s"
    report.cases.append(Case.of(f"{name}: resumed", REPLICAS, resumed, note))
    if contender.name == "proactive":
        report.targets += targets_of(how, told, resumed)


def targets_of(how: str, told: Sequence[float], resumed: Sequence[float]) -> list[Target]:
    """What is wanted with proactive recovery."""
    if how == "kill":
        return [Target.at_most("kill: told, max ms", TOLD_MS, max(told))]
    if how == "stop":
        return [Target.at_most("stop: resumed, max ms", HEARTBEAT_TIMEOUT_MS + SLACK_MS, max(resumed))]
    if how == "wedge":
        return [Target.at_most("wedge: resumed, max ms", PROGRESS_TIMEOUT_S * 1000 + SLACK_MS, max(resumed))]
    return []


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@click.option("--rounds", default=5, show_default=True, help="Times that each case is run.")
@click.option("--how", "hows", type=click.Choice(HOWS), multiple=True, help="Only this one; may be repeated.")
@click.option("--timeout", default=10.0, show_default=True, help="Seconds a collective may take.")
def main(*, as_json: bool, rounds: int, hows: Sequence[str], timeout: float) -> None:
    """How soon the survivor trains on, for each way in which replica 0 can end."""
    report = new_report("ddp_proactive")
    contenders = CONTENDERS + (TORCHFT if importlib.util.find_spec("torchft") else ())
    for how in hows or HOWS:
        for contender in contenders:
            if how in contender.hows:
                measure(report, how, contender, rounds, timeout)
    report.show(as_json)


if __name__ == "__main__":
    main()
