"""How a guard looks in a terminal: who is up since when, who is down and why, what comes next.

Lines of painted pieces, made from a snapshot for a given width, height and moment; who prints them, with
colours or without, is not known here. A line for each worker where the terminal is wide enough; where it
is not, columns go, those that matter least first, and the reason gets lines of its own. Where there are
more workers than lines, those that are in trouble are shown.

The snapshot may come from a guard of another version, so what is missing in it is left out; and names,
reasons and the like were chosen by others, so nothing of it reaches the terminal unescaped.
"""

from __future__ import annotations

import enum
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from procguard.lighthouse.log_lines import printable
from procguard.plain_text import amount, span

Worker = Mapping[str, Any]
Snapshot = Mapping[str, Any]

NARROWEST = 40
"""Columns of a terminal; one that is narrower breaks our lines by itself."""
GAP = "  "
INDENT = "      "


class Mood(enum.Enum):
    """What a piece of text means to the eye."""

    PLAIN = enum.auto()
    GOOD = enum.auto()
    BAD = enum.auto()
    BUSY = enum.auto()
    DIM = enum.auto()
    STRONG = enum.auto()


class Piece(NamedTuple):
    text: str
    mood: Mood = Mood.PLAIN


Line = tuple[Piece, ...]

_STATE_MOODS = {
    "running": Mood.GOOD,
    **dict.fromkeys(("starting", "stopping", "waiting"), Mood.BUSY),
    **dict.fromkeys(("stopped", "finished"), Mood.DIM),
}
_WELL = {"healthy", "starting", "stopped", "unknown", ""}
"""Healths that need no word beside the state."""
_UP = {"running", "starting", "stopping"}
_ORDER = {Mood.BAD: 0, Mood.BUSY: 1, Mood.GOOD: 2, Mood.DIM: 3}
_STATE_WORDS = {"exhausted": "gave up", "gave_up": "gave up"}


class _Column(NamedTuple):
    title: str
    right: bool
    dropped: int
    """The highest goes first when the terminal is narrow; 0 stays."""


_COLUMNS = (
    _Column("WORKER", False, 0),
    _Column("STATE", False, 0),
    _Column("FOR", True, 0),
    _Column("PID", True, 1),
    _Column("RESTARTS", True, 2),
    _Column("TASKS", True, 3),
    _Column("CPU", True, 5),
    _Column("MEMORY", True, 4),
)


def picture(
    snapshot: Snapshot, now: float, width: int | None = None, height: int | None = None
) -> list[Line]:
    """All of it.

    Args:
        now: Unix seconds.
        width: of the terminal in columns; None: as wide as it gets.
        height: in lines; None: as many as it takes.
    """
    width = None if width is None else max(width, NARROWEST)
    workers: list[Worker] = list(snapshot.get("workers", ()))
    above = [*_heading(snapshot.get("guard", {}), workers, now, width), *_recovery(snapshot, now, width)]
    if not workers:
        return [*above, (), (Piece("No workers: the configuration names none, or they are remote"),)]
    room = None if height is None else max(3, height - len(above) - 1)
    return [*above, (), *_table(workers, now, width, room)]


def as_text(lines: Sequence[Line]) -> str:
    """Without colours."""
    return "\n".join("".join(piece.text for piece in line).rstrip() for line in lines)


# --- above the table


def _heading(
    guard: Mapping[str, Any], workers: Sequence[Worker], now: float, width: int | None
) -> list[Line]:
    state = str(guard.get("state", "running"))
    mood = {"running": Mood.STRONG, "gave_up": Mood.BAD}.get(state, Mood.BUSY)
    said = _STATE_WORDS.get(state, state)
    if guard.get("reason"):
        said += f": {guard['reason']}"
    if guard.get("exit_code") not in (None, 0):
        said += f" (exit code {guard['exit_code']})"
    up = f", up for {span(max(0.0, now - guard['started_at']))}" if guard.get("started_at") else ""
    lines = _wrapped(
        f"Guard {guard.get('pid', '?')}: {said}{up}", width, mood if state != "running" else Mood.STRONG
    )
    if guard.get("config"):
        lines += _wrapped(f"  {guard['config']}", width, Mood.DIM)
    if workers:
        counts = Counter(_state_of(worker) for worker in workers)
        listed = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        lines += _wrapped(f"  {len(workers)} worker{'s' * (len(workers) > 1)}: {listed}", width, Mood.PLAIN)
    return lines


def _recovery(snapshot: Snapshot, now: float, width: int | None) -> list[Line]:
    """Where the chain is, while there is one."""
    chain = snapshot.get("recovery")
    if not chain:
        return []
    who = ", ".join(map(str, chain.get("failed", ()))) or "the workers"
    text = f"  Recovering {who}"
    if chain.get("attempt"):
        most = f" of {chain['max_attempts']}" if chain.get("max_attempts") else ""
        text += f", attempt {chain['attempt']}{most}"
    if chain.get("started_at"):
        text += f", for {span(max(0.0, now - chain['started_at']))}"
    if steps := [_step(step) for step in chain.get("steps", ())]:
        text += f": {' > '.join(steps)}"
    if chain.get("text"):
        text += f" ({chain['text']})"
    return _wrapped(text, width, Mood.BUSY)


def _step(step: Mapping[str, Any]) -> str:
    marks = {"done": "{} done", "doing": "{} ..."}
    return marks.get(str(step.get("state")), "{}").format(step.get("step", "?"))


# --- the table


def _table(workers: Sequence[Worker], now: float, width: int | None, room: int | None) -> list[Line]:
    cells = {id(worker): _cells(worker, now) for worker in workers}
    columns = _columns_that_fit(list(cells.values()), width)
    widths = {i: max(len(_COLUMNS[i].title), *(len(row[i]) for row in cells.values())) for i in columns}
    if width:
        widths[0] = min(widths[0], max(8, width - sum(w + len(GAP) for i, w in widths.items() if i)))
    head = (Piece(_row([c.title for c in _COLUMNS], widths) + GAP + "WHY, AND WHAT NEXT", Mood.DIM),)
    table_width = sum(widths.values()) + len(GAP) * (len(widths) - 1)
    if width and table_width + len(GAP) + len("WHY, AND WHAT NEXT") > width:
        head = (Piece(_row([c.title for c in _COLUMNS], widths), Mood.DIM),)
    blocks = []
    for worker in workers:
        row, mood = cells[id(worker)], mood_of(worker)
        blocks.append(
            (mood, _state_of(worker), _block(row, widths, mood, why(worker, now), table_width, width))
        )
    return [head, *_those_that_fit(blocks, None if room is None else room - 1)]


def _block(
    row: Sequence[str],
    widths: Mapping[int, int],
    mood: Mood,
    reason: str,
    table_width: int,
    width: int | None,
) -> list[Line]:
    """One worker: its row, and the reason beside it or beneath."""
    text = _row(row, widths)
    name, state = text[: widths[0] + len(GAP)], text[widths[0] + len(GAP) :][: widths[1]]
    rest = text[len(name) + len(state) :]
    line: Line = (Piece(name, Mood.STRONG), Piece(state, mood), Piece(rest))
    if not reason:
        return [line]
    if width is None or table_width + len(GAP) + len(reason) <= width:
        return [(*line, Piece(GAP + reason, mood if mood is not Mood.GOOD else Mood.PLAIN))]
    beneath = textwrap.wrap(reason, width, initial_indent=INDENT, subsequent_indent=INDENT)
    return [line, *((Piece(part, mood if mood is not Mood.GOOD else Mood.PLAIN),) for part in beneath)]


def _those_that_fit(blocks: Sequence[tuple[Mood, str, list[Line]]], room: int | None) -> Iterator[Line]:
    """All, or those in trouble first and a line on the rest."""
    if room is None or sum(len(lines) for _, _, lines in blocks) <= room:
        yield from (line for _, _, lines in blocks for line in lines)
        return
    waiting = sorted(blocks, key=lambda block: _ORDER.get(block[0], 0))  # stable: in each mood as they were
    left = room - 1
    while waiting and len(waiting[0][2]) <= left:
        lines = waiting.pop(0)[2]
        left -= len(lines)
        yield from lines
    counts = Counter(state for _, state, _ in waiting)
    listed = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    yield (Piece(f"... and {len(waiting)} more: {listed}", Mood.DIM),)


def _cells(worker: Worker, now: float) -> list[str]:
    restarts, most = worker.get("restarts"), worker.get("max_restarts")
    of = "" if restarts is None else str(restarts) if most is None else f"{restarts} of {most}"
    cpu, rss = worker.get("cpu_percent"), worker.get("rss_bytes")
    up = worker.get("state") in _UP
    return [
        printable(str(worker.get("worker_id", "?"))),
        printable(_state_of(worker)),
        _for_how_long(worker, now),
        str(worker.get("pid") or "") if up else "",
        of,
        str(len(worker.get("tasks") or ())),
        f"{cpu:.0f} %" if cpu is not None and up else "",
        amount(rss) if rss is not None and up else "",
    ]


def _columns_that_fit(rows: Sequence[Sequence[str]], width: int | None) -> list[int]:
    """Without those that say nothing of anybody, and without as many others as must be."""
    columns = [i for i, column in enumerate(_COLUMNS) if not column.dropped or _says_something(rows, i)]
    widths = {i: max(len(_COLUMNS[i].title), *(len(row[i]) for row in rows)) for i in columns}
    while width and sum(widths.values()) + len(GAP) * (len(widths) - 1) > width:
        most = max(widths, key=lambda i: _COLUMNS[i].dropped)
        if not _COLUMNS[most].dropped:
            break
        del widths[most]
    return list(widths)


def _says_something(rows: Sequence[Sequence[str]], column: int) -> bool:
    return any(row[column] not in ("", "0") for row in rows)


def _row(cells: Sequence[str], widths: Mapping[int, int]) -> str:
    shown = []
    for i, width in widths.items():
        cell = cells[i] if len(cells[i]) <= width else cells[i][: width - 1] + "…"
        shown.append(cell.rjust(width) if _COLUMNS[i].right else cell.ljust(width))
    return GAP.join(shown)


# --- one worker


def mood_of(worker: Worker) -> Mood:
    """A glance at it. Unknown states are trouble: this version does not know better."""
    mood = _STATE_MOODS.get(str(worker.get("state")), Mood.BAD)
    return Mood.BAD if mood is Mood.GOOD and _unwell(worker) else mood


def _unwell(worker: Worker) -> str:
    health = str(worker.get("health") or "").lower()
    return "" if health in _WELL else health


def _state_of(worker: Worker) -> str:
    state = str(worker.get("state", "?"))
    unwell = _unwell(worker) if state == "running" else ""
    return unwell or _STATE_WORDS.get(state, state)


def _for_how_long(worker: Worker, now: float) -> str:
    """It has been up, or down, for."""
    since = (
        worker.get("started_at") if worker.get("state") in _UP else (worker.get("last_exit") or {}).get("at")
    )
    return span(max(0.0, now - since)) if since else ""


def why(worker: Worker, now: float) -> str:
    """In words: what is wrong with it, how it ended, what comes next."""
    state = worker.get("state")
    said = [str(reason) for reason in worker.get("reasons") or ()]
    last = worker.get("last_exit") or {}
    if state in _UP:
        if worker.get("adopted"):
            said.append("adopted from an earlier guard")
        if last.get("text") and last.get("at") and worker.get("restarts"):
            said.append(f"before that: {last['text']}, {span(max(0.0, now - last['at']))} ago")
    elif last.get("text"):
        said.insert(0, str(last["text"]))
    if state == "waiting" and worker.get("next_start_at"):
        left_s = worker["next_start_at"] - now
        said.append(f"starts in {left_s:.1f} s" if left_s > 0 else "starts now")
    elif state == "exhausted" and not any("gave up" in text for text in said):
        within = f" in {worker['restart_window_s']:g} s" if worker.get("restart_window_s") else ""
        most = worker.get("max_restarts")
        said.append(f"gave up after {most} restarts{within}" if most else "gave up")
    elif state == "failed":
        said.append("nothing is due; `procguard start` brings it back")
    return printable("; ".join(dict.fromkeys(said)))


# --- smaller pictures


def what_changed(snapshot: Snapshot) -> object:
    """Equal for two snapshots that differ in nothing but amounts and ages."""
    passing = {"rss_bytes", "cpu_percent"}
    workers = [
        {k: v for k, v in worker.items() if k not in passing} for worker in snapshot.get("workers", ())
    ]
    return {"guard": snapshot.get("guard"), "workers": workers, "recovery": snapshot.get("recovery")}


def task_rows(tasks: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Task and worker, worker by worker; last those that wait for one."""
    assigned = [(str(task), worker) for worker, ids in tasks.get("workers", {}).items() for task in ids]
    waiting = [(str(task), "(nobody yet: in the queue)") for task in tasks.get("queue", ())]
    return [(printable(task), printable(str(worker))) for task, worker in (*assigned, *waiting)]


def event_line(event: Mapping[str, Any]) -> str:
    """``2026-11-20 09:56:03.512  w1  killed by SIGKILL`` in local time."""
    at = event.get("at")
    when = datetime.fromtimestamp(at).isoformat(" ", "milliseconds") if at is not None else "?"
    who = event.get("worker_id") or "-"
    return printable(f"{when}  {who}  {event.get('text') or event.get('kind') or ''}").rstrip()


def _wrapped(text: str, width: int | None, mood: Mood) -> list[Line]:
    clean = printable(text)
    if width is None or len(clean) <= width:
        return [(Piece(clean, mood),)]
    indent = " " * (len(clean) - len(clean.lstrip()))
    parts = textwrap.wrap(clean.strip(), width, initial_indent=indent, subsequent_indent=indent + "  ")
    return [(Piece(part, mood),) for part in parts]
