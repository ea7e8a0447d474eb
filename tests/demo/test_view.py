"""What is shown while a run goes on."""

from __future__ import annotations

import io

from rich.console import Console

from procguard.demo.chronicle import Chronicle
from procguard.demo.faults import Fault, Kind
from procguard.demo.story import story
from procguard.demo.view import LineView, LiveView
from tests.demo.fake_job import FakeJob

FAULTS = (Fault(Kind.KILL, "2", 0, 60, 0.5),)


def shown_by(view: LineView) -> None:
    chronicle = Chronicle("012", proactive=True)
    job = FakeJob(chronicle)
    with view:
        for act in story(FAULTS, chronicle):
            job.perform(act)
            view.show(chronicle, "something happens")


def test_lines_are_said_once_each() -> None:
    output = io.StringIO()
    shown_by(LineView(Console(file=output, width=120)))
    lines = output.getvalue().splitlines()
    assert len(lines) == len(set(lines)) == 7
    assert "replica 2: kill -9 in step 62" in lines[1]


def test_the_live_picture_leaves_the_timeline() -> None:
    output = io.StringIO()
    shown_by(LiveView(Console(file=output, width=120, height=40, force_terminal=True)))
    assert "something happens" in output.getvalue()
    assert "No quorum yet" in output.getvalue()
    assert output.getvalue().splitlines()[-1].endswith("all replicas have ended")
