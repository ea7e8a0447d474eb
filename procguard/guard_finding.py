"""Which guard a verb means: by flag, by variable, or the only one that runs for this user.

``--socket PATH`` goes over ``--config FILE``'s guard, and both over ``PROCGUARD_GUARD_SOCKET``; where
nothing is named, the register of running guards (``supervisor.guard_register``) is asked. Several are
never chosen from: they are listed, with what to write.

A guard that runs is found by its configuration *file*, not by what is in it now: somebody who has just broken
the file can still ask the guard that runs with the old one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import click

from procguard.env import GUARD_SOCKET, guard_folders, parse_path
from procguard.errors import ConfigError, GuardUnreachable, UsageError
from procguard.supervisor.control_client import user_name
from procguard.supervisor.control_socket import listener_pid, socket_places
from procguard.supervisor.guard_register import Entry, running

CONFIG_BYTES_MAX = 1 << 20
STATE_FILE_DEFAULT = "procguard_state.json"
GUARDS_SHOWN_MAX = 20
START = "Start one with `procguard --config FILE`"


class Found(NamedTuple):
    """A guard's socket, and how we know of it; nobody has spoken to it yet."""

    socket: Path
    origin: str


def find_guard(config: str | None = None, socket: str | None = None) -> Found:
    """The guard that is meant.

    Raises:
        UsageError: flags that do not go together, or several guards and none named.
        GuardUnreachable: none runs.
    """
    found = named_guard(config, socket) or only_guard()
    if found:
        return found
    raise GuardUnreachable(
        f"no guard runs here for you ({_user()}). {START}; one that runs where this cannot see it (another "
        "/tmp, another user) is named with --socket PATH or --config FILE"
    )


def named_guard(config: str | None, socket: str | None) -> Found | None:
    """The one that a flag or the variable names, or None if none does."""
    if config and socket:
        raise UsageError("--config and --socket both name a guard; leave one out")
    if socket:
        return Found(parse_path(socket), "--socket")
    if config:
        return _of_config(parse_path(config))
    variable = GUARD_SOCKET.read(os.environ)
    return Found(variable, GUARD_SOCKET.name) if isinstance(variable, Path) else None


def only_guard() -> Found | None:
    """The one that runs for this user, or None. ``UsageError``: there are several."""
    guards = running(guard_folders())
    if len(guards) > 1:
        raise UsageError(
            f"{len(guards)} guards run here for you ({_user()}); name one of them:\n{_listed(guards)}"
        )
    return Found(Path(guards[0].socket), "the guard that runs here") if guards else None


def _listed(guards: Sequence[Entry]) -> str:
    lines = []
    for guard in guards[:GUARDS_SHOWN_MAX]:
        since = datetime.fromtimestamp(guard.started_at).strftime("%Y-%m-%d %H:%M:%S")
        flag = f"--config {guard.config}" if guard.config else f"--socket {guard.socket}"
        lines.append(f"  {flag}   (pid {guard.pid}, since {since})")
    if len(guards) > GUARDS_SHOWN_MAX:
        lines.append(f"  and {len(guards) - GUARDS_SHOWN_MAX} more")
    return "\n".join(lines)


def _of_config(config: Path) -> Found:
    whole = os.path.realpath(config)
    origin = f"--config {config}"
    if guard := next((guard for guard in running(guard_folders()) if guard.config == whole), None):
        return Found(Path(guard.socket), origin)
    places = socket_places(_state_file_in(config), guard_folders())
    for place in places:
        if _somebody_listens(place):
            return Found(place, origin)
    looked = f" (looked at {places[0]})" if places else ""
    raise GuardUnreachable(
        f"no guard runs with {config}{looked}. Start it with `procguard --config {config}`"
    )


def _somebody_listens(place: Path) -> bool:
    try:
        return listener_pid(place) is not None
    except PermissionError:
        return True  # whoever asks will be told whose it is


def _state_file_in(config: Path) -> Path:
    """``state.state_file`` of the file, whatever else is wrong with it."""
    from procguard.config import ConfigLoader  # here, so that a verb without --config does not load it

    try:
        return ConfigLoader(config).state_file()
    except ConfigError as error:
        raise UsageError(f"--config: {error}") from None


def _user() -> str:
    return user_name(os.geteuid())


def guard_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """The two flags by which every verb can be told its guard."""
    socket = click.option(
        "--socket", metavar="PATH", help=f"The guard behind this socket.  [default: {GUARD_SOCKET.name}]"
    )
    config = click.option(
        "--config", metavar="FILE", help="The guard of this YAML file.  [default: the only one that runs]"
    )
    return config(socket(command))
