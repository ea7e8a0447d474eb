"""torchft's own Manager and ProcessGroupGloo, unchanged: the train loop that ProcGuard's is measured beside.

A script as torchft's users write it. Run by ``python -m procguard.adapters.torchft`` it trains on a ProcGuard
lighthouse; by itself on torchft's, which ``--serve`` runs with what its command line has for defaults. It
writes the events that the proactive example writes: ``ending`` and ``step``.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from datetime import timedelta
from typing import BinaryIO

import click
import torch
from torchft import Manager, ProcessGroupGloo
from torchft.coordination import LighthouseServer

ENDING_GROUP = "0"
AT_STEP = 3
GROUPS = 2
ELEMENTS = 1 << 16
MIN_REPLICAS = 1
JOIN_TIMEOUT_MS, QUORUM_TICK_MS, HEARTBEAT_TIMEOUT_MS = 60_000, 100, 5_000
"""The defaults of ``torchft_lighthouse``."""


def serve() -> None:
    """Run torchft's lighthouse; its address on standard output."""
    server = LighthouseServer(
        "127.0.0.1:0", MIN_REPLICAS, JOIN_TIMEOUT_MS, QUORUM_TICK_MS, HEARTBEAT_TIMEOUT_MS
    )
    click.echo(server.address())
    threading.Event().wait()


def end(how: str) -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        threading.Event().wait()


def train(how: str, steps: int, step_time_s: float, timeout_s: float, journal: BinaryIO) -> None:
    """Average a gradient each step; the first group ends in the middle of one."""
    group = os.environ["REPLICA_GROUP_ID"]
    patience = timedelta(seconds=timeout_s)
    weights = torch.zeros(ELEMENTS)

    def write(event: str, **facts: object) -> None:
        journal.write(json.dumps({"at": time.monotonic(), "event": event, **facts}).encode() + b"\n")
        journal.flush()

    manager = Manager(
        pg=ProcessGroupGloo(timeout=patience),
        min_replica_size=MIN_REPLICAS,
        load_state_dict=lambda state: weights.copy_(state["weights"]),
        state_dict=lambda: {"weights": weights},
        replica_id=group,
        timeout=patience,
    )
    while manager.current_step() < steps:
        manager.start_quorum()
        time.sleep(step_time_s)
        manager.wait_quorum()
        if (
            group == ENDING_GROUP
            and manager.current_step() >= AT_STEP
            and manager.num_participants() == GROUPS
        ):
            write("ending", step=manager.current_step(), how=how)
            end(how)
        gradient = torch.ones(ELEMENTS)
        manager.allreduce(gradient).wait()
        committed = manager.should_commit()
        if committed:
            weights -= gradient
        write("step", step=manager.current_step(), committed=committed)
    manager.shutdown()


@click.command()
@click.option("--serve", "serves", is_flag=True, help="Be the lighthouse.")
@click.option("--how", type=click.Choice(["kill", "stop", "wedge"]), default="kill")
@click.option("--steps", default=12)
@click.option("--step-time-ms", default=50)
@click.option("--timeout", default=10.0)
@click.option("--journal", type=click.File("ab"), default=os.devnull)
def main(*, serves: bool, how: str, steps: int, step_time_ms: int, timeout: float, journal: BinaryIO) -> None:
    """One replica group of one rank, or their lighthouse."""
    torch.set_num_threads(1)
    if serves:
        serve()
    else:
        train(how, steps, step_time_ms / 1000, timeout, journal)


if __name__ == "__main__":
    main()
