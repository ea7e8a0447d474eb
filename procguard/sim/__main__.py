"""``python -m procguard.sim``: many schedules, and the line that replays one that fails."""

from __future__ import annotations

import json
import os
import resource
import sys
import time

import click

from procguard.sim.fleet import Result, run
from procguard.sim.many import Range, replay_line, run_seeds
from procguard.sim.schedule import mass_death, schedule_of

SHOWN_MAX = 20
"""Failing seeds that are printed; the rest is counted."""
SURVIVORS = 20


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--schedules", type=click.IntRange(1), default=1, show_default=True, help="How many.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the first; the others follow.")
@click.option("--members", type=Range(), default="2-64", show_default=True, help="How many members, from-to.")
@click.option(
    "--jobs", type=click.IntRange(1), default=os.cpu_count() or 1, help="Processes.  [default: one a core]"
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@click.option(
    "--mass-death",
    "dying",
    type=click.IntRange(1, 2000),
    help="Instead: so many of as many and 20 more die at once.",
)
@click.option("--trace", is_flag=True, help="Run the first schedule alone and tell all that happens in it.")
def main(
    *,
    schedules: int,
    seed: int,
    members: tuple[int, int],
    jobs: int,
    as_json: bool,
    dying: int | None,
    trace: bool,
) -> None:
    """Drive lighthouse and trainers through schedules of faults in virtual time, and check what they promise.

    The code under test is the real one; virtual are the clock, the network and the processes. The same seed
    gives the same run. Exit code 1 if any promise was broken.
    """
    if dying is not None:
        sys.exit(_die_at_once(dying, seed, as_json))
    if trace:
        result = run(schedule_of(seed, *members), click.echo)
        sys.exit(bool(result.violations))
    began_at = time.monotonic()
    failed: list[Result] = []
    totals = dict.fromkeys(("schedules", "members", "events", "commits"), 0)
    virtual_s = 0.0
    for result in run_seeds(range(seed, seed + schedules), members, min(jobs, schedules)):
        totals["schedules"] += 1
        totals["members"] += result.members
        totals["events"] += result.events
        totals["commits"] += result.commits
        virtual_s += result.virtual_s
        if result.violations:
            failed.append(result)
            if len(failed) <= SHOWN_MAX and not as_json:
                click.echo(f"seed {result.seed}: {result.violations[0]}")
                click.echo(f"  {replay_line(result.seed, members)}")
    seconds = time.monotonic() - began_at
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = round(used.ru_utime + used.ru_stime, 1)
    spent = {"virtual_s": round(virtual_s), "seconds": round(seconds, 1), "cpu_s": cpu_s}
    report = {**totals, **spent, "failed": len(failed)}
    if as_json:
        shown = [
            {
                "seed": result.seed,
                "violations": [str(violation) for violation in result.violations],
                "replay": replay_line(result.seed, members),
            }
            for result in failed[:SHOWN_MAX]
        ]
        click.echo(json.dumps({**report, "failures": shown}, indent=2))
    else:
        done = ", ".join(f"{count} {what}" for what, count in totals.items())
        hours = virtual_s / 3600
        click.echo(
            f"{done}, {hours:.1f} virtual hours in {seconds:.1f} s ({cpu_s} s of CPU): {len(failed)} failed"
        )
    sys.exit(bool(failed))


def _die_at_once(dying: int, seed: int, as_json: bool) -> bool:
    """Whether any promise was broken."""
    began_at = time.monotonic()
    result = run(mass_death(dying + SURVIVORS, dying, seed))
    report = {
        "died": dying,
        "survivors": SURVIVORS,
        "events": result.events,
        "seconds": round(time.monotonic() - began_at, 1),
        "violations": [str(violation) for violation in result.violations],
    }
    click.echo(json.dumps(report, indent=2) if as_json else ", ".join(f"{k} {v}" for k, v in report.items()))
    return bool(result.violations)


if __name__ == "__main__":
    main()
