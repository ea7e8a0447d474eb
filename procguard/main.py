"""The ``procguard`` command: a door for each subcommand, opened only when it is used.

``procguard status`` is asked in a hurry, on machines that have no numpy; so neither it nor ``--help`` imports
what another subcommand needs. The table below therefore holds each one's line in the help, too.

A ``ProcGuardError`` of any subcommand is one message on stderr: exit code 2 if the user must change what was
asked for, 1 otherwise.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any, NamedTuple

import click

from procguard.errors import ProcGuardError, UsageError


class Door(NamedTuple):
    """Where a subcommand is found, and what it does in a few words."""

    module: str
    command: str
    summary: str


_GUARD = "procguard.guard_commands"
DOORS = {
    "check-config": Door(
        "procguard.check_config", "check_config", "Say all that is wrong with a guard's YAML file."
    ),
    "demo": Door(
        "procguard.demo.command", "demo", "Kill replicas of a small training job and watch it go on."
    ),
    "events": Door(_GUARD, "events", "Show what happened at a running guard; -f follows."),
    "keys": Door("procguard.keys", "keys", "Make, list and revoke keys of lighthouse and members."),
    "kill": Door("procguard.one_word", "kill", "Signal a guard's worker; or end the life of a replica."),
    "logs": Door(_GUARD, "logs", "Show what a worker wrote; -f follows."),
    "restart": Door(_GUARD, "restart", "Stop and start workers of a running guard."),
    "start": Door(_GUARD, "start", "Start workers of a running guard."),
    "status": Door(
        "procguard.one_word", "status", "Show a guard's workers; or members and quorum of a lighthouse."
    ),
    "stop": Door(_GUARD, "stop", "Stop workers of a running guard; they stay down."),
    "tasks": Door(_GUARD, "tasks", "Show which worker has which tasks."),
}


class _Misuse(click.ClickException):
    exit_code = 2


class _Doors(click.Group):
    """A group whose subcommands are imported one by one, on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(DOORS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        door = DOORS.get(cmd_name)
        if door is None:
            return None
        command = getattr(import_module(door.module), door.command)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, door.summary) for name, door in DOORS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ProcGuardError as error:
            refusal = _Misuse if isinstance(error, UsageError) else click.ClickException
            raise refusal(str(error)) from None


@click.group(
    cls=_Doors, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="procguard")
@click.option("--config", metavar="FILE", help="Run the guard that this YAML file describes.")
@click.pass_context
def main(ctx: click.Context, config: str | None) -> None:
    """Keep distributed training alive.

    `procguard --config FILE` runs a guard; the commands ask one that runs, or a lighthouse.
    """
    if ctx.invoked_subcommand is None:
        if config is None:
            click.echo(ctx.get_help())
            return
        _hold_standard_streams()
        from procguard.supervisor.guard import ProcGuard

        ctx.exit(ProcGuard(config).run())
    elif config is not None:
        name = ctx.invoked_subcommand
        raise UsageError(f"--config stands before {name}; write `procguard {name} --config {config}`")


def _hold_standard_streams() -> None:
    """Have something at descriptors 0, 1 and 2. Where they are closed (``2>&-``) the next file that is opened
    becomes stderr, and what the guard says of itself would be written into its own state."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one


if __name__ == "__main__":
    main(prog_name="procguard")
