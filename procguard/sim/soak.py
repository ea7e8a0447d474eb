"""``python -m procguard.sim.soak``: how often a member that lives is failed, in many replica-hours."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from random import Random

import click

from procguard.sim.crowd import DEFAULTS, Crowd, Luck, soaked

MEMBERS = 500


def soak(seed: int, hours: float, timeout_ms: int, loss: float, pause_every_s: float) -> tuple[int, float]:
    """So many replica-hours in one process: failures of members that live, and the longest silence."""
    settings = DEFAULTS._replace(heartbeat_timeout_s=timeout_ms / 1000)
    crowd = Crowd(MEMBERS, settings)
    luck = Luck(Random(f"soak {seed}"), loss, pause_every_s, settings.heartbeat_interval_s)
    ticks = round(hours * 3600 / MEMBERS / settings.heartbeat_interval_s)
    return sum(soaked(crowd, luck, ticks)), luck.longest_s


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--hours", type=click.FloatRange(0.1), default=6000.0, show_default=True, help="Replica-hours.")
@click.option(
    "--loss", type=click.FloatRange(0.0, 0.5), default=0.01, show_default=True, help="Packets lost."
)
@click.option(
    "--pause-every", type=float, default=60.0, show_default=True, help="Seconds between 300 ms pauses."
)
@click.option("--timeout-ms", type=int, default=1000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option(
    "--jobs", type=click.IntRange(1), default=os.cpu_count() or 1, help="Processes.  [default: one a core]"
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def main(
    hours: float, loss: float, pause_every: float, timeout_ms: int, seed: int, jobs: int, as_json: bool
) -> None:
    """Let healthy members beat over a bad network, in virtual time, before the real core.

    Each lost packet is sent again after 200 ms, doubling, with what follows in its connection waiting behind
    it, as TCP does at worst: without the fast retransmission that later beats would trigger. Exit code 1 if
    any is failed.
    """
    began_at = time.monotonic()
    share = hours / jobs
    work = [(seed * 1000 + number, share, timeout_ms, loss, pause_every) for number in range(jobs)]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        results = pool.starmap(_soak_elsewhere, work)
    false = sum(failures for failures, _ in results)
    report = {
        "replica_hours": hours,
        "heartbeat_timeout_ms": timeout_ms,
        "false_failures": false,
        "longest_silence_s": round(max(longest for _, longest in results), 2),
        "seconds": round(time.monotonic() - began_at, 1),
    }
    click.echo(
        json.dumps(report) if as_json else ", ".join(f"{value} {key}" for key, value in report.items())
    )
    sys.exit(bool(false))


def _soak_elsewhere(
    seed: int, hours: float, timeout_ms: int, loss: float, pause_every_s: float
) -> tuple[int, float]:
    """``soak`` in a worker process."""
    return soak(seed, hours, timeout_ms, loss, pause_every_s)


if __name__ == "__main__":
    main()
