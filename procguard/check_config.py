"""``procguard check-config FILE``: what a guard would say of the file, without a guard.

The same reading as at its start, so that what passes here starts there: all problems at once, exit code 2.
What is not asked is whether a worker does its work.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from procguard.adapter_types import adapter_class
from procguard.config import ConfigLoader, GuardConfig
from procguard.errors import ConfigError
from procguard.validation import Problem

INVALID = 2


@click.command("check-config")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "json_wanted", is_flag=True, help="One JSON object.")
@click.option(
    "--elsewhere", is_flag=True, help="Do not look for programs and folders: the file is for another machine."
)
@click.pass_context
def check_config(ctx: click.Context, *, file: Path, json_wanted: bool, elsewhere: bool) -> None:
    """Say all that is wrong with a guard's YAML file. Exit code 2 if anything is."""
    config, problems = ConfigLoader(file, look_at_machine=not elsewhere).check()
    if config is not None and not elsewhere:
        problems = _adapter_problems(config, file)
    if json_wanted:
        click.echo(json.dumps(as_json(file, config, problems), indent=2))
    elif config is not None and not problems:
        click.echo(as_text(file, config))
    else:
        for problem in problems:
            click.echo(str(problem), err=True)
    if problems:
        ctx.exit(INVALID)


def as_text(file: Path, config: GuardConfig) -> str:
    """One line for a file in which nothing is wrong."""
    names = [worker.worker_id for worker in config.workers]
    count = f"{len(names)} worker{'' if len(names) == 1 else 's'}"
    listed = f" ({', '.join(names)})" if 1 <= len(names) <= 10 else ""
    return f"{file}: valid; {count}{listed}, adapter {config.communication.adapter_type}"


def as_json(file: Path, config: GuardConfig | None, problems: list[Problem]) -> dict[str, Any]:
    """``ok``, ``file``, ``problems`` (``place``, ``key``, ``text``), and ``config`` as it is understood, of
    ``env`` the names only."""
    valid = config is not None and not problems
    return {
        "ok": valid,
        "file": str(file),
        "problems": [problem._asdict() for problem in problems],
        "config": _shown(config) if config is not None and valid else None,
    }


def _shown(config: GuardConfig) -> dict[str, Any]:
    """The settings without the values of ``env``: those may be secrets, and logs are read by many."""
    shown = config.model_dump(mode="json")
    for worker in shown["workers"]:
        worker["env"] = sorted(worker["env"])
    return shown


def _adapter_problems(config: GuardConfig, file: Path) -> list[Problem]:
    try:
        adapter_class(config.communication)
    except ConfigError as error:
        return [Problem(str(file), "communication.adapter_type", str(error))]
    return []
