"""``python -m procguard.sim.scale``: a hundred thousand members before the real core, some of them dying."""

from __future__ import annotations

import json
import resource
import sys
import time
from random import Random

import click

from procguard.sim.crowd import DEFAULTS, Crowd


def crowded(members: int, seconds: float, dying: float, seed: int) -> tuple[Crowd, int]:
    """So many beat for so long, and that share of them dies meanwhile: the crowd, and how many died."""
    crowd = Crowd(members, DEFAULTS)
    random = Random(f"scale {seed}")
    ticks = round(seconds / DEFAULTS.heartbeat_interval_s)
    doomed = random.sample(range(members), round(dying * members))
    deaths: dict[int, list[int]] = {}
    for number in doomed:
        deaths.setdefault(random.randrange(ticks), []).append(number)
    for tick in range(ticks):
        for number in deaths.get(tick, ()):
            crowd.die(number)
        crowd.tick()
    return crowd, len(doomed)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--members", type=click.IntRange(1), default=100_000, show_default=True)
@click.option("--seconds", type=float, default=60.0, show_default=True, help="Virtual ones.")
@click.option(
    "--dying", type=click.FloatRange(0.0, 1.0), default=0.01, show_default=True, help="Share of them."
)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def main(members: int, seconds: float, dying: float, seed: int, as_json: bool) -> None:
    """What it costs. Exit code 1 unless exactly those who died were told of, each once."""
    began_at = time.monotonic()
    crowd, died = crowded(members, seconds, dying, seed)
    told = len({notice.replica_id for notice in crowd.notices})
    report = {
        "members": members,
        "virtual_s": seconds,
        "events": crowd.events,
        "died": died,
        "notices": len(crowd.notices),
        "seconds": round(time.monotonic() - began_at, 1),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    click.echo(
        json.dumps(report) if as_json else ", ".join(f"{value} {key}" for key, value in report.items())
    )
    sys.exit(not told == len(crowd.notices) == died)


if __name__ == "__main__":
    main()
