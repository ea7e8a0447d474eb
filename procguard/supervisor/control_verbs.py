"""The verbs of a running guard: what each may be told, and which of the guard's methods does it.

Whoever asks may be another version, or a person at ``socat``: each argument's type and bound is checked here,
an unknown worker is answered with the nearest names *before* anything is done to those that are known, and
what is asked twice comes out as if asked once. Pure: the guard behind ``Commands`` does the work.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from procguard.errors import UsageError
from procguard.supervisor.control_words import Request

NAMES_SHOWN_MAX = 20
EVENTS_COUNT_MAX = 1_000
SEQ_MAX = 1 << 62

READING = ("status", "log_paths", "tasks", "events")
CHANGING = ("start", "stop", "restart", "kill")
"""May take as long as a worker takes to stop."""
VERBS = (*READING, *CHANGING)


class Commands(Protocol):
    """The guard, as one who commands it sees it. Called from several threads at once.

    Every method may raise ``UsageError`` (the question must change) or another ``ProcGuardError``. Commands
    are idempotent: a worker that runs is started with success, one that does not is stopped with success.
    """

    def snapshot(self) -> Mapping[str, Any]:
        """All there is to see; times are Unix seconds.

        ``{"guard": {"pid", "started_at", "config", "state": "running|recovering|stopping|gave_up", "reason",
        "exit_code"}, "workers": [{"worker_id", "state", "health", "reasons": [text], "pid", "started_at",
        "restarts", "max_restarts", "restart_window_s", "next_start_at", "last_exit": {"kind", "text", "at"}
        or null, "tasks": [id], "rss_bytes", "cpu_percent", "adopted"}], "recovery": null or {"failed":
        [worker id], "attempt", "max_attempts", "started_at", "steps": [{"step", "state":
        "done|doing|to_do"}], "text"}}``; what is not known may be left out.
        """
        ...

    def start(self, ids: Sequence[str]) -> Mapping[str, bool]:
        """For each worker whether it runs now."""
        ...

    def stop(self, ids: Sequence[str], force: bool) -> Mapping[str, bool]:
        """For each worker whether nothing of it lives any longer."""
        ...

    def restart(self, ids: Sequence[str]) -> Mapping[str, bool]:
        """For each worker whether it runs now, and not as the process that it was."""
        ...

    def kill(self, ids: Sequence[str], signal: signal.Signals) -> Mapping[str, bool]:
        """For each worker whether there was a process to signal."""
        ...

    def log_paths(self, worker_id: str) -> Mapping[str, str]:
        """Absolute paths by stream (``stdout``, ``stderr``), the same one twice where both go to one file."""
        ...

    def tasks(self) -> Mapping[str, Any]:
        """``{"workers": {worker id: [task id]}, "queue": [task id]}``; the queue is nobody's."""
        ...

    def events(self, after_seq: int | None, count_max: int) -> Sequence[Mapping[str, Any]]:
        """The first events after ``after_seq``, or, where that is None, the last there are; oldest first.

        ``{"seq", "at", "worker_id" or null, "kind", "text"}``; ``seq`` grows with each event of this guard.
        """
        ...


def perform(commands: Commands, request: Request) -> Any:
    """Do what is asked; the result is what ``json`` can write.

    Raises:
        UsageError: there is no such verb, argument or worker.
        ProcGuardError: the guard could not.
    """
    args = _Arguments(request)
    if request.verb == "status":
        args.end()
        return commands.snapshot()
    if request.verb == "tasks":
        args.end()
        return commands.tasks()
    if request.verb == "events":
        after = args.number("after_seq", None, SEQ_MAX)
        count = args.number("count", 100, EVENTS_COUNT_MAX)
        args.end()
        return list(commands.events(after, count or 0))
    if request.verb == "log_paths":
        worker_id = args.text("id")
        args.end()
        return dict(commands.log_paths(_known([worker_id], commands)[0]))
    if request.verb in CHANGING:
        return dict(_change(commands, request.verb, args))
    raise UsageError(f"this guard does not know {request.verb[:40]!r}; it knows {', '.join(VERBS)}")


def _change(commands: Commands, verb: str, args: _Arguments) -> Mapping[str, bool]:
    ids = args.ids()
    force = args.flag("force") if verb == "stop" else False
    number = signal_named(args.text("signal", "SIGKILL")) if verb == "kill" else signal.SIGKILL
    args.end()
    chosen = _known(ids, commands)
    if verb == "start":
        return commands.start(chosen)
    if verb == "stop":
        return commands.stop(chosen, force)
    if verb == "restart":
        return commands.restart(chosen)
    return commands.kill(chosen, number)


def signal_named(text: str) -> signal.Signals:
    """``KILL``, ``SIGKILL``, ``kill`` or ``9``. ``UsageError``: no signal of this system."""
    name = text.strip().upper()
    try:
        return (
            signal.Signals(int(name))
            if name.isdecimal()
            else signal.Signals["SIG" + name.removeprefix("SIG")]
        )
    except (KeyError, ValueError):
        raise UsageError(f"{text[:40]!r} is no signal; write one such as SIGTERM, TERM or 15") from None


def _known(ids: Sequence[str] | None, commands: Commands) -> list[str]:
    """Those that are meant, each once, in order; None means all."""
    there = [str(worker["worker_id"]) for worker in commands.snapshot()["workers"]]
    if ids is None:
        return there
    if unknown := [name for name in ids if name not in set(there)]:
        raise UsageError("; ".join(_unknown(name, there) for name in unknown[:NAMES_SHOWN_MAX]))
    return list(dict.fromkeys(ids))


def _unknown(name: str, there: Sequence[str]) -> str:
    if not there:
        return f"no worker {name[:80]!r}: this guard has none"
    if near := difflib.get_close_matches(name, there, 3, 0.5):
        return f"no worker {name[:80]!r}; did you mean {' or '.join(near)}?"
    more = f" and {len(there) - NAMES_SHOWN_MAX} more" if len(there) > NAMES_SHOWN_MAX else ""
    return f"no worker {name[:80]!r}; there is {', '.join(there[:NAMES_SHOWN_MAX])}{more}"


class _Arguments:
    """Takes each argument once, checked; at the end nothing may be left."""

    def __init__(self, request: Request) -> None:
        self._verb = request.verb
        self._left = dict(request.args)

    def ids(self) -> list[str] | None:
        """The workers that are named; None for ``null``, which means all."""
        value = self._left.pop("ids", ())
        if value is None:
            return None
        if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
            raise self._wrong("ids", "a list of worker ids, or null for all")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._left.pop(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, "a text")
        return value

    def flag(self, name: str) -> bool:
        value = self._left.pop(name, False)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def number(self, name: str, default: int | None, maximum: int) -> int | None:
        """A whole number from 0 on; more than the maximum is the maximum."""
        value = self._left.pop(name, default)
        if value is None and default is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._wrong(name, "a whole number of 0 or more")
        return min(value, maximum)

    def end(self) -> None:
        if self._left:
            raise UsageError(f"{self._verb}: there is no argument {sorted(self._left)[0][:40]!r}")

    def _wrong(self, name: str, wanted: str) -> UsageError:
        return UsageError(f"{self._verb}: {name} must be {wanted}")
