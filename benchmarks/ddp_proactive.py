"""The proactive example, run as its README says: how soon the survivor trains on when replica 0 ends.

Two replicas under torchrun, with proactive recovery and without, for each way to end. Times count from the
moment at which replica 0 is about to end, in the middle of a step, with the survivor in its all-reduce or on
the way to it: ``told`` until the survivor's ``on_failure``, ``resumed`` until its next committed step, whose
own length, some milliseconds more than ``STEP_TIME_MS``, is in it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import psutil

from benchmarks.fleet import DEADLINE_S, lighthouse
from benchmarks.report import Case, Report, Target, new_report

EXAMPLE = "examples/ddp_proactive/train_ddp_proactive.py"
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

Event = dict[str, Any]


class Replica:
    """One replica group under torchrun."""

    def __init__(
        self, group: int, folder: Path, address: str, proactive: bool, options: Sequence[str]
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
            [sys.executable, "-m", *torchrun, "--", EXAMPLE, f"--journal={self.journal}", *options],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "PROCGUARD_PROACTIVE_RECOVERY": str(int(proactive)),
                "REPLICA_GROUP_ID": str(group),
                "NUM_REPLICA_GROUPS": str(REPLICAS),
                "PROCGUARD_LIGHTHOUSE": f"http://{address}",
            },
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def events(self, kind: str) -> list[Event]:
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [event for line in lines if (event := json.loads(line))["event"] == kind]

    def wait(self) -> None:
        """Raises ``RuntimeError`` with what it said unless it ended well."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(DEADLINE_S)
        if self._process.returncode != 0:
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


def run(how: str, proactive: bool, timeout_s: float) -> tuple[float | None, float]:
    """Milliseconds until the survivor was told (None: it was not), and until it trained on."""
    options = [f"--how={how}", f"--steps={STEPS}", f"--step-time-ms={STEP_TIME_MS}", f"--timeout={timeout_s}"]
    options.append(f"--progress-timeout={PROGRESS_TIMEOUT_S}")
    with tempfile.TemporaryDirectory() as name, lighthouse() as address:
        replicas = [Replica(group, Path(name), address, proactive, options) for group in range(REPLICAS)]
        try:
            victim, survivor = replicas
            survivor.wait()
            return _times(victim, survivor)
        finally:
            for replica in replicas:
                replica.end()


def _times(victim: Replica, survivor: Replica) -> tuple[float | None, float]:
    (ending,) = victim.events("ending")
    steps = [event for event in survivor.events("step") if event["committed"] and event["at"] > ending["at"]]
    told = [(event["at"] - ending["at"]) * 1000 for event in survivor.events("told")]
    return (told[0] if told else None), (steps[0]["at"] - ending["at"]) * 1000


def measure(report: Report, how: str, proactive: bool, rounds: int, timeout_s: float) -> None:
    """Run it so many times, and report it."""
    times = [run(how, proactive, timeout_s) for _ in range(rounds)]
    told = [ms for ms, _ in times if ms is not None]
    resumed = [ms for _, ms in times]
    name = f"{how}, {'proactive' if proactive else 'waiting'}"
    if told:
        report.cases.append(Case.of(f"{name}: told", REPLICAS, told))
    report.cases.append(Case.of(f"{name}: resumed", REPLICAS, resumed, "" if told else "nobody was told"))
    if not proactive:
        return
    if how == "kill":
        report.targets.append(Target.at_most("kill: told, max ms", TOLD_MS, max(told)))
    elif how == "stop":
        stopped_ms = HEARTBEAT_TIMEOUT_MS + SLACK_MS
        report.targets.append(Target.at_most("stop: resumed, max ms", stopped_ms, max(resumed)))
    elif how == "wedge":
        wedged_ms = PROGRESS_TIMEOUT_S * 1000 + SLACK_MS
        report.targets.append(Target.at_most("wedge: resumed, max ms", wedged_ms, max(resumed)))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@click.option("--rounds", default=5, show_default=True, help="Times that each case is run.")
@click.option("--how", "hows", type=click.Choice(HOWS), multiple=True, help="Only this one; may be repeated.")
@click.option("--timeout", default=10.0, show_default=True, help="Seconds a collective may take.")
def main(*, as_json: bool, rounds: int, hows: Sequence[str], timeout: float) -> None:
    """How soon the survivor trains on, for each way in which replica 0 can end."""
    report = new_report("ddp_proactive")
    for how in hows or HOWS:
        for proactive in (True, False):
            measure(report, how, proactive, rounds, timeout)
    report.show(as_json)


if __name__ == "__main__":
    main()
