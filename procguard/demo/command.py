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
from typing import TYPE_CHECKING

import click

from procguard.errors import UsageError

if TYPE_CHECKING:
    from procguard.demo.report import Result
    from procguard.demo.run import Setting

REPLICAS_MAX = 32
RANKS_MAX = 8
SEEDS = 10_000
NEEDED = {"numpy": "numpy", "sklearn": "scikit-learn", "rich": "rich"}
"""Modules of the extra, and what they are called where they are installed from."""


@click.command()
@click.option(
    "--replicas",
    type=click.IntRange(2, REPLICAS_MAX),
    help="How many train.  [default: 4, or 3 of several ranks]",
)
@click.option(
    "--ranks",
    type=click.IntRange(1, RANKS_MAX),
    default=1,
    show_default=True,
    help="Processes in each replica, a group that lives and dies as one.",
)
@click.option(
    "--kills",
    type=click.IntRange(min=0),
    help="How many are killed, in turn.  [default: 1, or 2 of several ranks]",
)
@click.option("--seed", type=click.IntRange(min=0), help="Of what happens to whom, and when.  [default: any]")
@click.option(
    "--no-proactive", is_flag=True, help="Without failure notices: each survivor finds out by itself."
)
@click.option("--compare", is_flag=True, help="Both ways, one after the other, with the same seed.")
@click.option("--json", "json_wanted", is_flag=True, help="Print nothing but one JSON object.")
def demo(
    *,
    replicas: int | None,
    ranks: int,
    kills: int | None,
    seed: int | None,
    no_proactive: bool,
    compare: bool,
    json_wanted: bool,
) -> None:
    """Kill and stop replicas of a small training job, and watch it go on.

    Starts a lighthouse and some replicas of examples/train_digits.py on this machine. One is killed with
    SIGKILL and its replacement heals; another is stopped with SIGSTOP, given up, continued, and heals too.
    With --ranks 2 a rank that is not 0 is killed, then a rank 0; each time its group is started anew.
    Exit code 0 means that all survivors were told, none was restarted, and all ended with the same weights.
    """
    _check_extra()
    from procguard.demo.report import as_json, broken_promises, closing_sentence, comparison
    from procguard.demo.run import Setting

    if compare and no_proactive:
        raise UsageError("--compare runs with and without failure notices; leave out --no-proactive")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing is left behind
    setting = Setting(
        replicas=replicas or (4 if ranks == 1 else 3),
        kills=kills if kills is not None else (1 if ranks == 1 else 2),
        seed=secrets.randbelow(SEEDS) if seed is None else seed,
        proactive=not no_proactive,
        ranks=ranks,
    )
    result = _played(setting, silent=json_wanted)
    other = _played(setting._replace(proactive=False), silent=json_wanted) if compare else None
    if json_wanted:
        facts = as_json(result)
        click.echo(json.dumps({**facts, "without_proactive": as_json(other)} if other else facts))
    if broken_promises(result) or (other and broken_promises(other)):
        sys.exit(1)
    if not json_wanted:
        click.echo(closing_sentence(result))
        if other:
            click.echo(comparison(result, other))


def _played(setting: Setting, *, silent: bool) -> Result:
    """Play a story and show it; its folder is kept if a promise was broken."""
    from procguard.demo.report import broken_promises
    from procguard.demo.run import play
    from procguard.demo.view import chosen_view, print_report

    folder = _new_folder()
    try:
        with chosen_view(silent=silent) as view:
            result = play(setting, folder, view)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if not silent:
        print_report(result)
    broken = broken_promises(result)
    if not broken:
        shutil.rmtree(folder)
        return result
    lines = [f"Broken: {promise}" for promise in broken]
    click.echo("\n".join([*lines, f"Logs and journals are in {folder} (seed {setting.seed})"]), err=True)
    return result


def _new_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="procguard-demo-"))
    except OSError as error:
        raise UsageError(f"no folder for logs: {error}; name a writable one in TMPDIR") from None


def _check_extra() -> None:
    missing = [name for module, name in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise UsageError(
            f"procguard demo needs {' and '.join(missing)}; install: python -m pip install 'procguard[demo]'"
        )
