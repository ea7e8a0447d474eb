"""``procguard status`` and ``procguard kill``: one word for the guard and for the lighthouse.

Which of the two is asked: a lighthouse that is named (``--lighthouse`` or ``PROCGUARD_LIGHTHOUSE``), or
else the guard that runs here, or else the lighthouse at localhost. ``--guard`` insists on the guard. The
first word of what is printed says who answered. docs/decisions/0012 says why it is so.

Imports neither side before it is chosen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import click

from procguard.env import LIGHTHOUSE_PORT, Variable
from procguard.errors import LighthouseUnreachable, ProcGuardError, UsageError
from procguard.guard_finding import START, Found, find_guard, guard_flags, named_guard, only_guard

LIGHTHOUSE = "PROCGUARD_LIGHTHOUSE"
RULE = f"""
Who is asked: a lighthouse, if you name one (--lighthouse or {LIGHTHOUSE}); otherwise the guard that
runs here; if none does, the lighthouse at localhost:{LIGHTHOUSE_PORT}. --guard, --config and --socket
name the guard.
"""
_NO_GUARD = f"no guard runs here for you, and no lighthouse is named. {START}. As for a lighthouse"


def guard_that_is_meant(
    for_guard: Mapping[str, object],
    for_lighthouse: Mapping[str, object],
    config: str | None,
    socket: str | None,
) -> Found | None:
    """The guard to ask, or None: a lighthouse is meant. The mappings hold each side's flags as given."""
    guard = [flag for flag, value in for_guard.items() if value]
    lighthouse = [flag for flag, value in for_lighthouse.items() if value]
    if guard and lighthouse:
        raise UsageError(f"{guard[0]} is about a guard and {lighthouse[0]} about a lighthouse; leave one out")
    if guard:
        return find_guard(config, socket)
    if lighthouse or _lighthouse_is_named():
        return None
    return named_guard(None, None) or only_guard()


def _lighthouse_is_named() -> bool:
    return Variable(LIGHTHOUSE, str).read(os.environ) is not None


def _guard_is_here_too() -> bool:
    """Whether somebody who got a lighthouse's answer may have wanted a guard's."""
    try:
        return (named_guard(None, None) or only_guard()) is not None
    except UsageError:  # several
        return True


guard_option = click.option("--guard", is_flag=True, help=f"The guard, though {LIGHTHOUSE} is set.")
lighthouse_option = click.option(
    "--lighthouse",
    metavar="ADDRESS",
    help=f"The lighthouse at host:port.  [default: {LIGHTHOUSE}, or localhost:{LIGHTHOUSE_PORT}]",
)
keys_option = click.option(
    "--keys",
    metavar="PATH",
    help="Of a lighthouse: key file, or directory of them, to ask with.  [default: PROCGUARD_KEYS]",
)
timeout_option = click.option(
    "--timeout", default="5", metavar="SECONDS", help="How long to wait for an answer.  [default: 5]"
)


@click.command(epilog=RULE)
@guard_option
@guard_flags
@lighthouse_option
@click.option("--job", default="", metavar="ID", help="Of a lighthouse: only this job.")
@keys_option
@click.option("--watch", is_flag=True, help="Live, until Ctrl-C.")
@click.option("--json", "json_wanted", is_flag=True, help="One JSON object; with --watch one a line.")
@timeout_option
def status(
    *,
    guard: bool,
    config: str | None,
    socket: str | None,
    lighthouse: str | None,
    job: str,
    keys: str | None,
    watch: bool,
    json_wanted: bool,
    timeout: str,
) -> None:
    """Show the workers of a guard, or members, quorum and last notices of a lighthouse."""
    of_lighthouse = {"--lighthouse": lighthouse, "--job": job, "--keys": keys}
    found = guard_that_is_meant(
        {"--guard": guard, "--config": config, "--socket": socket}, of_lighthouse, config, socket
    )
    if found:
        from procguard.guard_commands import show_status

        show_status(found, timeout, watch=watch, json_wanted=json_wanted)
        return
    from procguard.status import show

    try:
        show(lighthouse, job, keys, timeout, watch=watch, json_wanted=json_wanted)
    except LighthouseUnreachable as error:
        if lighthouse or _lighthouse_is_named():
            raise
        raise LighthouseUnreachable(f"{_NO_GUARD}: {error}") from None
    if not json_wanted and not lighthouse and _guard_is_here_too():
        click.echo("\nA guard runs here, too: procguard status --guard", err=True)


@click.command(epilog=RULE)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@guard_option
@guard_flags
@click.option(
    "--signal",
    "signal_name",
    metavar="NAME",
    help="Of a guard: the signal that the worker's processes get.  [default: KILL]",
)
@lighthouse_option
@click.option("--job", default="", metavar="ID", help="Of a lighthouse: where several have that replica.")
@keys_option
@click.option("--json", "json_wanted", is_flag=True, help="One JSON object.")
@timeout_option
def kill(
    *,
    names: tuple[str, ...],
    guard: bool,
    config: str | None,
    socket: str | None,
    signal_name: str | None,
    lighthouse: str | None,
    job: str,
    keys: str | None,
    json_wanted: bool,
    timeout: str,
) -> None:
    """Signal workers of a guard, or end the present life of a replica of a lighthouse.

    A killed worker has failed, and the guard recovers it; `procguard stop` is for one that is to stay down.

    A replica's process is not touched: the others go on without it, and it has to join again. That needs an
    operator's key.
    """
    found = guard_that_is_meant(
        {"--guard": guard, "--config": config, "--socket": socket, "--signal": signal_name},
        {"--lighthouse": lighthouse, "--job": job, "--keys": keys},
        config,
        socket,
    )
    if found:
        from procguard.guard_commands import kill_workers

        kill_workers(found, names, signal_name or "KILL", timeout, json_wanted=json_wanted)
        return
    from procguard.kill import end_replica

    if len(names) > 1:
        raise UsageError(f"a lighthouse ends one replica at a time, and {len(names)} are named")
    try:
        end_replica(names[0], job, lighthouse, keys, timeout, json_wanted=json_wanted)
    except ProcGuardError as error:
        if lighthouse or _lighthouse_is_named():
            raise
        raise type(error)(f"{_NO_GUARD}: {error}") from None
