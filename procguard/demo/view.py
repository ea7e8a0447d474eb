"""How a run looks while it goes on: a live picture on a terminal, plain lines elsewhere, nothing for ``--json``."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from procguard.adapters.zmq import ZmqMemberTransport
from procguard.codec import decode, encode
from procguard.demo.chronicle import Chronicle
from procguard.demo.report import timeline
from procguard.env import parse_address
from procguard.messages import JobView, MemberState, MemberView, Snapshot, SnapshotRequest

REDRAW_S = 0.15
LINES_AROUND_TIMELINE = 9
"""What the picture needs besides its members and its timeline."""
STYLES = {
    MemberState.ALIVE: "green",
    MemberState.SUSPECT: "yellow",
    MemberState.FAILED: "bold red",
    MemberState.LEFT: "dim",
}


class SilentView:
    """Shows nothing."""

    def watch(self, address: str) -> None:
        pass

    def show(self, chronicle: Chronicle, waiting_for: str) -> None:
        pass


class LineView:
    """Says each thing when it has happened."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began_at = time.monotonic()
        self._said_count = 0

    def watch(self, address: str) -> None:
        self._console.print(f"Lighthouse at {address}; starting the replicas", highlight=False)

    def show(self, chronicle: Chronicle, waiting_for: str) -> None:
        news = chronicle.milestones[self._said_count :]
        self._said_count += len(news)
        for line in timeline(news, self._began_at):
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
