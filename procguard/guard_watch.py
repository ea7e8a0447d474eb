"""``procguard status --watch`` of a guard: a picture that stays on the screen, or a snapshot for each change.

On a terminal it is drawn on the alternate screen, so that Ctrl-C leaves the shell as it was. Without one, or
with ``--json``, the picture is printed each time when more has changed than ages and amounts. A guard that
is away is said, with since when, and asked again: it may be starting anew.

rich is imported here alone, and only when it is used.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, Protocol

import click

from procguard.errors import GuardError
from procguard.guard_view import Mood, as_text, picture, what_changed
from procguard.supervisor.control_client import ControlClient

INTERVAL_S = 0.5
STYLES = {
    Mood.PLAIN: "",
    Mood.GOOD: "green",
    Mood.BAD: "bold red",
    Mood.BUSY: "yellow",
    Mood.DIM: "dim",
    Mood.STRONG: "bold",
}


class Screen(Protocol):
    """Where snapshots are shown."""

    def show(self, snapshot: Any, now: float) -> None:
        """A new one; ``now`` in Unix seconds."""
        ...

    def away(self, error: str, now: float) -> None:
        """There is none: the guard does not answer."""
        ...


def watch_guard(client: ControlClient, *, json_wanted: bool) -> None:
    """Until Ctrl-C."""
    with suppress(KeyboardInterrupt):
        if json_wanted or not sys.stdout.isatty():
            watch(client, Printed(json_wanted), time.sleep)
        else:
            with _terminated_like_interrupted(), live_screen() as screen:
                watch(client, screen, time.sleep)


def watch(
    client: ControlClient,
    screen: Screen,
    pause: Callable[[float], None],
    clock: Callable[[], float] = time.time,
) -> None:
    """Ask and show, again and again; ends only by what ``pause`` raises.

    Raises:
        GuardError: not even the first question was answered.
    """
    answered = False
    while True:
        try:
            snapshot = client.ask("status")
        except GuardError as error:
            if not answered:
                raise
            screen.away(str(error), clock())
        else:
            answered = True
            screen.show(snapshot, clock())
        pause(INTERVAL_S)


class Printed:
    """A picture, or with ``--json`` a line, for each change; on stderr that the guard is away."""

    def __init__(self, json_wanted: bool) -> None:
        self._json_wanted = json_wanted
        self._shown: object = None
        self._away = False

    def show(self, snapshot: Any, now: float) -> None:
        self._away = False
        changed = what_changed(snapshot)
        if changed == self._shown:
            return
        if self._json_wanted:
            click.echo(json.dumps(snapshot))
        else:
            blank = "\n" if self._shown is not None else ""
            click.echo(f"{blank}{_time_of_day(now)}\n{as_text(picture(snapshot, now))}")
        self._shown = changed

    def away(self, error: str, now: float) -> None:
        if not self._away:
            click.echo(f"{_time_of_day(now)} {error}; still asking", err=True)
        self._away = True


@contextmanager
def live_screen(console: Any = None) -> Iterator[Screen]:
    """The alternate screen of the terminal, for as long as it lasts."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = console or Console(highlight=False)

    class Picture:
        """The last snapshot as it looks now."""

        def __init__(self, live: Live) -> None:
            self._live = live
            self._snapshot: Any = None
            self._silent_since: float | None = None

        def show(self, snapshot: Any, now: float) -> None:
            self._snapshot, self._silent_since = snapshot, None
            self._draw(now, f"{_time_of_day(now)}   Ctrl-C leaves")

        def away(self, error: str, now: float) -> None:
            self._silent_since = self._silent_since or now
            since = _time_of_day(self._silent_since)
            self._draw(
                self._silent_since, f"NO ANSWER since {since}, the last picture is above. {error}", Mood.BAD
            )

        def _draw(self, now: float, below: str, mood: Mood = Mood.DIM) -> None:
            width, height = console.size
            text = Text(overflow="fold")
            below_lines = 1 + len(below) // max(width, 1)
            for line in picture(self._snapshot, now, width, max(1, height - 1 - below_lines)):
                for piece in line:
                    text.append(piece.text, STYLES[piece.mood])
                text.append("\n")
            text.append("\n" + below, STYLES[mood])
            self._live.update(text, refresh=True)

    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield Picture(live)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """While it lasts SIGTERM, too, gives the terminal back."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _time_of_day(now: float) -> str:
    return datetime.fromtimestamp(now).strftime("%H:%M:%S")
