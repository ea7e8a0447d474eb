"""``procguard demo``: the door. Checks what is there, plays one story, prints the report."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import click

from procguard.errors import UsageError

REPLICAS_MAX = 32
SEEDS = 10_000
NEEDED = {"numpy": "numpy", "sklearn": "scikit-learn", "rich": "rich"}
"""Modules of the extra, and what they are called where they are installed from."""


@click.command()
@click.option(
    "--replicas", type=click.IntRange(2, REPLICAS_MAX), default=4, show_default=True, help="How many train."
)
@click.option(
    "--kills", type=click.IntRange(min=0), default=1, show_default=True, help="How many are killed, in turn."
)
@click.option("--seed", type=click.IntRange(min=0), help="Of what happens to whom, and when.  [default: any]")
@click.option(
    "--no-proactive", is_flag=True, help="Without failure notices: each survivor finds out by itself."
)
@click.option("--json", "json_wanted", is_flag=True, help="Print nothing but one JSON object.")
def demo(*, replicas: int, kills: int, seed: int | None, no_proactive: bool, json_wanted: bool) -> None:
    """Kill and stop replicas of a small training job, and watch it go on.

    Starts a lighthouse and some replicas of examples/train_digits.py on this machine. One is killed with
    SIGKILL and its replacement heals; another is stopped with SIGSTOP, given up, continued, and heals too.
    Exit code 0 means that all survivors were told, none was restarted, and all ended with the same weights.
    """
    _check_extra()
    from procguard.demo.report import as_json, broken_promises
    from procguard.demo.run import Setting, play
    from procguard.demo.view import chosen_view, print_report

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing is left behind
    setting = Setting(replicas, kills, secrets.randbelow(SEEDS) if seed is None else seed, not no_proactive)
    folder = Path(tempfile.mkdtemp(prefix="procguard-demo-"))
    try:
        with chosen_view(silent=json_wanted) as view:
            result = play(setting, folder, view)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if json_wanted:
        click.echo(json.dumps(as_json(result)))
    else:
        print_report(result)
    if broken := broken_promises(result):
        say = [f"Broken: {promise}" for promise in broken]
        again = f"procguard demo --seed {setting.seed}"
        click.echo("\n".join([*say, f"Logs and journals are in {folder}; once more: {again}"]), err=True)
        sys.exit(1)
    shutil.rmtree(folder)


def _check_extra() -> None:
    missing = [name for module, name in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise UsageError(
            f"procguard demo needs {' and '.join(missing)}; install: python -m pip install 'procguard[demo]'"
        )
