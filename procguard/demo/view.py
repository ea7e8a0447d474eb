"""How a run looks: a live picture on a terminal, plain lines elsewhere, nothing for ``--json``."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from procguard.adapters.zmq import ZmqMemberTransport
from procguard.codec import decode, encode
from procguard.demo.chronicle import Chronicle, Milestone
from procguard.demo.report import Result, headings, outcome, rows, timeline
from procguard.env import parse_address
from procguard.messages import JobView, MemberState, MemberView, Snapshot, SnapshotRequest

PLAIN_WIDTH = 120
"""Of the table where there is no terminal."""
REDRAW_S = 0.15
LINES_AROUND_TIMELINE = 9
"""What the picture needs besides its members and its timeline."""
LINES_MIN = 5
ANSWERS_MAX = 10
MEMBER_COLUMNS = {"Replica": 7, "State": 7, "Step": 7, "Phase": 10, "Incarnation": 11, "Pid": 10, "Why": None}
"""Of fixed widths, so that the picture stands still."""
STYLES = {
    MemberState.ALIVE: "green",
    MemberState.SUSPECT: "yellow",
    MemberState.FAILED: "bold red",
    MemberState.LEFT: "dim",
}


class SilentView:
    """Shows nothing. A view is a context manager around its run."""

    def watch(self, address: str) -> None:
        """The lighthouse listens at this address."""

    def show(self, chronicle: Chronicle, waiting_for: str) -> None:
        """What has happened so far; called at every tick of the run."""

    def __enter__(self) -> SilentView:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class LineView(SilentView):
    """Says each thing when it has happened."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began_at = time.monotonic()
        self._said_count = 0

    def show(self, chronicle: Chronicle, waiting_for: str) -> None:
        news = chronicle.milestones[self._said_count :]
        self._said_count += len(news)
        for line in timeline(news, self._began_at):
            say(self._console, line)


class LiveView(LineView):
    """Members and quorum as the lighthouse sees them, and the timeline, which alone stays at the end."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._window: Window | None = None
        self._redraw_at = 0.0
        self._milestones: Sequence[Milestone] = ()

    def watch(self, address: str) -> None:
        self._window = Window(address)

    def show(self, chronicle: Chronicle, waiting_for: str) -> None:
        self._milestones = chronicle.milestones
        now = time.monotonic()
        if now < self._redraw_at:
            return
        self._redraw_at = now + REDRAW_S
        job = self._window.job() if self._window else None
        self._live.update(self._picture(job, f"{now - self._began_at:7.3f} s  ... until {waiting_for}"))
        self._live.refresh()

    def _picture(self, job: JobView | None, present: str) -> RenderableType:
        members = job.members if job else ()
        lines_max = self._console.height - LINES_AROUND_TIMELINE - len(members)
        said = timeline(self._milestones, self._began_at)
        lines = [*said[-max(LINES_MIN, lines_max) :], present]
        timeline_text = Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
        return Group(_members_table(members), _quorum_line(job), Panel(timeline_text, title="Timeline"))

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()
        if self._window:
            self._window.close()
        for line in timeline(self._milestones, self._began_at):
            say(self._console, line)


class Window:
    """Looks into the lighthouse without ever waiting for it: each look asks, and shows the last answer."""

    def __init__(self, address: str) -> None:
        where = parse_address(address)
        self._transport = ZmqMemberTransport(where.host, where.port)
        self._snapshot: Snapshot | None = None

    def job(self) -> JobView | None:
        """The demo's job as it was a moment ago."""
        for frame in self._transport.receive(ANSWERS_MAX):
            answer = decode(frame)
            if isinstance(answer, Snapshot):
                self._snapshot = answer
        self._transport.send(encode(SnapshotRequest("")))
        return self._snapshot.jobs[0] if self._snapshot and self._snapshot.jobs else None

    def close(self) -> None:
        self._transport.close()


def chosen_view(*, silent: bool) -> SilentView:
    """The view that fits to where the output goes."""
    if silent:
        return SilentView()
    console = Console()
    return LiveView(console) if console.is_terminal else LineView(console)


def print_report(result: Result) -> None:
    """The table and the figures below it."""
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    recovery = "on" if result.proactive else "off"
    table = Table(
        *headings(result), title=f"Seed {result.seed}, proactive recovery {recovery}", show_lines=True
    )
    for row in rows(result):
        table.add_row(*row)
    console.print()
    console.print(table)
    say(console, outcome(result))


def say(console: Console, line: str) -> None:
    """Print a line as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _members_table(members: tuple[MemberView, ...]) -> Table:
    table = Table(expand=True)
    for heading, width in MEMBER_COLUMNS.items():
        table.add_column(heading, width=width, ratio=None if width else 1, no_wrap=True)
    for member in members:
        style = STYLES[member.state]
        table.add_row(
            member.replica_id,
            Text(member.state.name.lower(), style),
            str(member.step),
            "/".join([rank.phase.name.lower() for rank in member.ranks]),
            str(member.incarnation.number),
            "/".join([str(rank.process.pid) for rank in member.ranks]),
            Text(str(member.cause) if member.cause else "", style),
        )
    return table


def _quorum_line(job: JobView | None) -> Text:
    if job is None or job.quorum is None:
        return Text(" No quorum yet", "yellow")
    number, members = job.quorum.quorum_id.number, ", ".join(job.quorum.replica_ids)
    return Text(f" Quorum {number}: replicas {members}, {job.quorum.age_s:.1f} s old")
