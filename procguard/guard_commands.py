"""The verbs of a running guard: ``start stop restart logs tasks events``, and its part of ``status`` and
``kill``.

Each asks over the guard's socket and prints the answer for people, or as JSON. All are idempotent: what
is so already is a success. Exit code 0: it is so; 1: the guard could not, or does not answer; 2: the
question must change.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from procguard.env import parse_seconds
from procguard.errors import GuardError, GuardUnreachable, UsageError
from procguard.guard_finding import Found, find_guard, guard_flags
from procguard.guard_logs import Following, WholeLines
from procguard.guard_view import Line, Mood, as_text, event_line, picture, task_rows
from procguard.plain_text import table
from procguard.supervisor.control_client import ControlClient
from procguard.supervisor.control_verbs import signal_named

CHANGE_TIMEOUT_S = 300.0
"""For what may take as long as workers take to stop."""
LOOK_S = 0.2
"""Between two looks at what is followed."""
LOOKS_PER_ASKING = 10
"""So often is the guard asked again where a worker's output is."""
EVENTS_PER_LOOK_MAX = 1_000

_COLOURS: dict[Mood, dict[str, Any]] = {
    Mood.PLAIN: {},
    Mood.GOOD: {"fg": "green"},
    Mood.BAD: {"fg": "red", "bold": True},
    Mood.BUSY: {"fg": "yellow"},
    Mood.DIM: {"dim": True},
    Mood.STRONG: {"bold": True},
}

C = TypeVar("C", bound=Callable[..., Any])

# --- what several have


def _timeout_flag(default_s: float) -> Callable[[C], C]:
    return click.option(
        "--timeout",
        default=f"{default_s:g}",
        metavar="SECONDS",
        help=f"How long to wait for an answer.  [default: {default_s:g}]",
    )


_json_flag = click.option("--json", "json_wanted", is_flag=True, help="As JSON.")
_names = click.argument("names", metavar="WORKER...", nargs=-1)
_all_flag = click.option("--all", "everybody", is_flag=True, help="All workers of the guard.")


def _client(found: Found, timeout: str) -> ControlClient:
    try:
        timeout_s = parse_seconds(timeout).total_seconds()
    except UsageError as error:
        raise UsageError(f"--timeout: {error}") from None
    return ControlClient(found.socket, timeout_s)


def _print_json(value: object, one_line: bool = False) -> None:
    click.echo(json.dumps(value, indent=None if one_line else 2))


# --- what changes something


def _chosen(verb: str, names: Sequence[str], everybody: bool) -> list[str] | None:
    """The workers by name, or None for all. Nothing is never all."""
    if everybody and names:
        raise UsageError(f"--all and {names[0]} both say which workers; leave one out")
    if not everybody and not names:
        raise UsageError(
            f"which workers? Say `procguard {verb} WORKER...`, or --all; `procguard status` lists them"
        )
    return None if everybody else list(names)


def _report(outcome: Mapping[str, bool], done: str, not_done: str, json_wanted: bool) -> None:
    """One line a worker; exit code 1 if one of them is not as it was to be."""
    if json_wanted:
        _print_json(outcome)
    else:
        for name, well in outcome.items():
            click.echo(f"{name}: {done}" if well else f"{name}: {not_done}", err=not well)
        if not outcome:
            click.echo("This guard has no workers")
    if not all(outcome.values()):
        raise SystemExit(1)


def _change(verb: str, done: str, not_done: str, given: dict[str, Any], **how: object) -> None:
    """Ask for it and tell how it went; ``given`` is what ``_changes_workers`` takes from the command line."""
    ids = _chosen(verb, given["names"], given["everybody"])
    with _client(find_guard(given["config"], given["socket"]), given["timeout"]) as client:
        outcome = client.ask(verb, ids=ids, **how)
    _report(outcome, done, not_done, given["json_wanted"])


def _changes_workers(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which workers, of which guard, and how the outcome is told."""
    for option in (_timeout_flag(CHANGE_TIMEOUT_S), _json_flag, guard_flags, _all_flag, _names):
        command = option(command)
    return command


@click.command()
@_changes_workers
def start(**given: Any) -> None:
    """Start workers, also those that have given up. One that runs goes on as it is."""
    _change("start", "runs", "does not run; `procguard status` says why", given)


@click.command()
@_changes_workers
@click.option("--force", is_flag=True, help="With SIGKILL at once, without the worker's stop_timeout.")
def stop(*, force: bool, **given: Any) -> None:
    """Stop workers and all that they have started. They stay down until they are started."""
    not_done = "not all of it has ended; `procguard status` says why"
    _change("stop", "stopped", not_done, given, force=force)


@click.command()
@_changes_workers
def restart(**given: Any) -> None:
    """Stop workers and start them again. That does not count as one of their max_restarts."""
    _change("restart", "runs anew", "does not run; `procguard status` says why", given)


def kill_workers(
    found: Found, names: Sequence[str], signal_name: str, timeout: str, *, json_wanted: bool
) -> None:
    """``procguard kill`` of a guard."""
    try:
        name = signal_named(signal_name).name
    except UsageError as error:
        raise UsageError(f"--signal: {error}") from None
    try:
        with _client(found, timeout) as client:
            outcome = client.ask("kill", ids=list(names), signal=name)
    except UsageError as error:
        if "no worker" not in str(error):
            raise
        raise UsageError(f"{error} (If a replica is meant, name its lighthouse with --lighthouse)") from None
    _report(outcome, f"got {name}", "does not run: nobody got the signal", json_wanted)


# --- what only looks


def show_status(found: Found, timeout: str, *, watch: bool, json_wanted: bool) -> None:
    """``procguard status`` of a guard."""
    with _client(found, timeout) as client:
        if watch:
            from procguard.guard_watch import watch_guard

            watch_guard(client, json_wanted=json_wanted)
            return
        snapshot = client.ask("status")
    if json_wanted:
        _print_json(snapshot)
    else:
        click.echo(painted(picture(snapshot, time.time(), width_of_terminal())))


def width_of_terminal() -> int | None:
    """Columns of stdout, or None where it is no terminal."""
    if not sys.stdout.isatty():
        return None
    import shutil

    return shutil.get_terminal_size().columns


def painted(lines: Sequence[Line]) -> str:
    """With colours; click takes them off where stdout is no terminal."""
    if not sys.stdout.isatty():
        return as_text(lines)
    return "\n".join("".join(click.style(p.text, **_COLOURS[p.mood]) for p in line) for line in lines)


@click.command()
@guard_flags
@_json_flag
@_timeout_flag(5)
def tasks(*, config: str | None, socket: str | None, json_wanted: bool, timeout: str) -> None:
    """Show which worker has which tasks, and which wait for one."""
    with _client(find_guard(config, socket), timeout) as client:
        assigned = client.ask("tasks")
    if json_wanted:
        _print_json(assigned)
        return
    rows = task_rows(assigned)
    click.echo("\n".join(table([("TASK", "WORKER"), *rows])) if rows else "No tasks")


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C, also over a restart of the guard.")
@click.option("-n", "--lines", "count", default=20, type=click.IntRange(0, 1000), show_default=True)
@guard_flags
@click.option("--json", "json_wanted", is_flag=True, help="One JSON object a line.")
@_timeout_flag(5)
def events(
    *, follow: bool, count: int, config: str | None, socket: str | None, json_wanted: bool, timeout: str
) -> None:
    """Show what happened last: starts, deaths, recoveries, commands."""

    def show(happened: Sequence[Mapping[str, Any]]) -> None:
        for event in happened:
            if json_wanted:
                _print_json(event, one_line=True)
            else:
                click.echo(event_line(event))

    with _client(find_guard(config, socket), timeout) as client:
        happened = client.ask("events", after_seq=None, count=count)
        show(happened)
        if follow:
            with suppress(KeyboardInterrupt):
                for more in news_of(
                    client, _last_seq(client) if not happened else happened[-1]["seq"], time.sleep
                ):
                    show(more)


def _last_seq(client: ControlClient) -> int:
    """Of the latest event, or 0."""
    latest = client.ask("events", after_seq=None, count=1)
    return int(latest[-1]["seq"]) if latest else 0


def news_of(
    client: ControlClient, after_seq: int, pause: Callable[[float], None]
) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Events as they come, without end. Of one that is away stderr hears once; another one counts anew."""
    guard_pid, away = client.guard_pid, False
    while True:
        try:
            happened = client.ask("events", after_seq=after_seq, count=EVENTS_PER_LOOK_MAX)
        except GuardError as error:
            if not away:
                click.echo(f"{error}; still asking", err=True)
            away = True
        else:
            if away:
                click.echo(f"The guard answers again (pid {client.guard_pid})", err=True)
            away = False
            if client.guard_pid != guard_pid:  # another guard counts anew: all that it has is news
                guard_pid, after_seq = client.guard_pid, 0
                continue
            if happened:
                after_seq = int(happened[-1]["seq"])
                yield happened
        pause(LOOK_S)


# --- logs


@click.command()
@click.argument("name", metavar="WORKER")
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C, over rotations and restarts.")
@click.option(
    "-n", "--lines", "count", default=50, type=click.IntRange(0), show_default=True, help="Of each stream."
)
@click.option("--stdout", "stream", flag_value="stdout", help="Only what it wrote to stdout.")
@click.option("--stderr", "stream", flag_value="stderr", help="Only what it wrote to stderr.")
@guard_flags
@click.option("--json", "json_wanted", is_flag=True, help="One JSON object a line.")
@_timeout_flag(5)
def logs(
    name: str,
    *,
    follow: bool,
    count: int,
    stream: str | None,
    config: str | None,
    socket: str | None,
    json_wanted: bool,
    timeout: str,
) -> None:
    """Show the last that a worker wrote, to stdout and to stderr."""
    with _client(find_guard(config, socket), timeout) as client:
        paths = log_paths(client, name, stream)
        printer = LogPrinter(name, json_wanted=json_wanted, several=len(paths) > 1)
        following = {which: Following(path) for which, path in paths.items()}
        for which, file in following.items():
            printer.add(which, file.tail(count))
            if not follow:
                printer.end(which)
                file.close()
        if follow:
            with suppress(KeyboardInterrupt):
                follow_logs(client, name, stream, following, printer, time.sleep)


def log_paths(client: ControlClient, name: str, stream: str | None) -> dict[str, Path]:
    """The worker's files by stream; one that holds both stands there once. Only one if it is asked for."""
    answer = client.ask("log_paths", id=name)
    paths = {which: Path(path) for which, path in answer.items() if path and stream in (None, which)}
    if len(set(paths.values())) < len(paths):
        paths = {"output": next(iter(paths.values()))}
    if not paths:
        raise GuardError(f"the guard keeps no {stream or 'output'} of {name}")
    return paths


def follow_logs(
    client: ControlClient,
    name: str,
    stream: str | None,
    following: dict[str, Following],
    printer: LogPrinter,
    pause: Callable[[float], None],
) -> None:
    """Print what is added, without end. The guard may go and come back, and name other files then."""
    away = False
    looks = 0
    try:
        while True:
            for which, file in following.items():
                printer.add(which, file.read())
            looks += 1
            if looks % LOOKS_PER_ASKING == 0:
                try:
                    paths = log_paths(client, name, stream)
                    away = False
                except GuardUnreachable as error:
                    paths = {}
                    if not away:
                        click.echo(f"{error}; still following {name}'s files", err=True)
                    away = True
                for which, path in paths.items():
                    if which not in following or following[which].path != path:
                        if which in following:
                            following[which].close()
                        following[which] = Following(path)
            pause(LOOK_S)
    finally:
        for file in following.values():
            file.close()


class LogPrinter:
    """Writes what workers wrote, byte for byte; two streams share a terminal as whole lines with headings."""

    def __init__(self, name: str, *, json_wanted: bool, several: bool) -> None:
        self._name = name
        self._json_wanted = json_wanted
        self._several = several
        self._under = ""
        self._lines: dict[str, WholeLines] = {}
        self._out = sys.stdout.buffer

    def add(self, stream: str, content: bytes) -> None:
        """What comes next in this stream."""
        if not content:
            return
        if not self._json_wanted and not self._several:
            self._out.write(content)
            self._out.flush()
            return
        lines = self._lines.setdefault(stream, WholeLines()).add(content)
        self._write(stream, lines)

    def end(self, stream: str) -> None:
        """A last line that has not ended is printed, too."""
        if stream in self._lines and (rest := self._lines[stream].rest()):
            self._write(stream, [rest])

    def _write(self, stream: str, lines: Sequence[bytes]) -> None:
        if not lines:
            return
        if self._json_wanted:
            said = [
                {"worker_id": self._name, "stream": stream, "line": line.decode(errors="backslashreplace")}
                for line in lines
            ]
            self._out.write("".join(json.dumps(one) + "\n" for one in said).encode())
        else:
            if stream != self._under:
                blank = "\n" if self._under else ""
                self._out.write(f"{blank}==> {self._name} {stream} <==\n".encode())
                self._under = stream
            self._out.write(b"".join(line + b"\n" for line in lines))
        self._out.flush()
