"""How a guard looks: what people see at a glance, wide and narrow, and what cannot harm their terminal."""

from __future__ import annotations

from typing import Any

import pytest

from procguard.guard_view import Mood, as_text, event_line, mood_of, picture, task_rows, what_changed, why
from tests.supervisor.fake_guard import STARTED_AT, worker

NOW = STARTED_AT + 7380.0
KILLED = {"kind": "signal", "text": "killed by SIGKILL", "at": STARTED_AT}
UP = worker("w0", tasks=["t1", "t2"], restarts=1, last_exit=KILLED)
WAITING = worker(
    "w1",
    "waiting",
    pid=None,
    restarts=3,
    next_start_at=NOW + 3.2,
    last_exit={"kind": "error", "text": "exit code 3", "at": NOW - 1.5},
)
GAVE_UP = worker(
    "w2",
    "exhausted",
    restarts=5,
    last_exit={"kind": "oom", "text": "killed for memory (oom)", "at": NOW - 60},
)
SICK = worker("w3", health="unhealthy", reasons=["http://127.0.0.1:80 answers 503"])
STOPPED = worker(
    "w4", "stopped", last_exit={"kind": "operator", "text": "stopped by operator", "at": NOW - 5}
)
RECOVERY = {
    "failed": ["w1"],
    "attempt": 1,
    "max_attempts": 3,
    "started_at": NOW - 2.5,
    "steps": [
        {"step": "stop", "state": "done"},
        {"step": "reassign", "state": "doing"},
        {"step": "restart", "state": "to_do"},
    ],
}


def snapshot(*workers: dict[str, Any], recovery: object = None, **guard: Any) -> dict[str, Any]:
    facts = {"pid": 42, "started_at": STARTED_AT, "config": "/etc/g.yaml", "state": "running", **guard}
    return {"guard": facts, "workers": list(workers), "recovery": recovery}


def shown(
    *workers: dict[str, Any], width: int | None = None, height: int | None = None, **more: Any
) -> list[str]:
    return as_text(picture(snapshot(*workers, **more), NOW, width, height)).splitlines()


def test_all_at_a_glance() -> None:
    assert shown(UP, WAITING, GAVE_UP, SICK, STOPPED, recovery=RECOVERY, state="recovering") == [
        "Guard 42: recovering, up for 2 h 3 min",
        "  /etc/g.yaml",
        "  5 workers: 1 running, 1 waiting, 1 gave up, 1 unhealthy, 1 stopped",
        "  Recovering w1, attempt 1 of 3, for 2.5 s: stop done > reassign ... > restart",
        "",
        "WORKER  STATE            FOR   PID  RESTARTS  TASKS   CPU   MEMORY  WHY, AND WHAT NEXT",
        "w0      running    2 h 3 min  4000    1 of 5      2  97 %  1.0 GiB  before that: killed by "
        "SIGKILL, 2 h 3 min ago",
        "w1      waiting        1.5 s          3 of 5      0                 exit code 3; starts in 3.2 s",
        "w2      gave up    1 min 0 s          5 of 5      0                 killed for memory (oom); gave "
        "up after 5 restarts in 300 s",
        "w3      unhealthy  2 h 3 min  4000    0 of 5      0  97 %  1.0 GiB  http://127.0.0.1:80 answers 503",
        "w4      stopped        5.0 s          0 of 5      0                 stopped by operator",
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_it_fits_the_terminal(width: int) -> None:
    long = worker("a-worker-with-a-name-of-some-length-and-more-of-it", reasons=["it says " + "much " * 50])
    lines = shown(UP, WAITING, GAVE_UP, SICK, long, width=width, recovery=RECOVERY)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for said in ("exit code 3; starts in 3.2 s", "gave up after 5 restarts in 300 s", "answers 503"):
        assert said in text
    assert "STATE" in text


def test_a_narrow_terminal_loses_what_matters_least() -> None:
    def head(width: int) -> str:
        return next(line for line in shown(UP, WAITING, width=width) if line.startswith("WORKER"))

    assert "CPU" in head(120)
    assert "CPU" not in head(60)
    assert "RESTARTS" in head(60)
    assert head(40).split() == ["WORKER", "STATE", "FOR", "PID"]


def test_with_more_workers_than_lines_those_in_trouble_are_shown() -> None:
    fleet = [worker(f"w{i}") for i in range(50)]
    fleet[40] = {**GAVE_UP, "worker_id": "w40"}
    fleet[45] = {**WAITING, "worker_id": "w45"}
    lines = shown(*fleet, width=120, height=12)
    assert len(lines) <= 12
    assert [line.split()[0] for line in lines[5:7]] == ["w40", "w45"]
    assert lines[-1].startswith("... and 4")
    assert lines[-1].endswith(" running")


def test_with_lines_enough_they_stay_in_their_order() -> None:
    lines = shown(UP, GAVE_UP, WAITING, width=120, height=30)
    assert [line.split()[0] for line in lines if line.startswith("w")] == ["w0", "w2", "w1"]


def test_a_guard_that_gave_up_says_why() -> None:
    lines = shown(GAVE_UP, state="gave_up", reason="3 recoveries in a row failed", exit_code=3)
    assert lines[0] == "Guard 42: gave up: 3 recoveries in a row failed (exit code 3), up for 2 h 3 min"


def test_no_workers() -> None:
    assert shown()[-1] == "No workers: the configuration names none, or they are remote"


def test_what_is_not_known_is_left_out() -> None:
    assert as_text(picture({}, NOW)).splitlines()[0] == "Guard ?: running"
    lines = as_text(picture({"workers": [{"worker_id": "w", "state": "levitating"}]}, NOW)).splitlines()
    assert lines[-1] == "w       levitating"
    assert mood_of({"state": "levitating"}) is Mood.BAD


def test_a_name_cannot_steer_the_terminal() -> None:
    evil = worker("\x1b[2J", reasons=["\x1b]0;title\x07\nnext"], state="\x9b31m")
    text = as_text(picture(snapshot(evil, reason="\x1b[H", config="\r"), NOW, 60))
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"state": "waiting", "next_start_at": NOW - 1}, "starts now"),
        ({"state": "failed", "last_exit": {"text": "exit code 1", "at": NOW}}, "exit code 1; nothing is due"),
        (
            {"state": "exhausted", "max_restarts": 2, "restart_window_s": 60.0},
            "gave up after 2 restarts in 60 s",
        ),
        ({"state": "exhausted", "reasons": ["gave up after 9 restarts"]}, "gave up after 9 restarts"),
        ({"state": "running", "adopted": True}, "adopted from an earlier guard"),
        ({"state": "running", "last_exit": {"text": "exit code 1", "at": NOW}}, ""),
        ({"state": "finished", "last_exit": {"text": "exit code 0", "at": NOW}}, "exit code 0"),
    ],
)
def test_why_and_what_next(fields: dict[str, Any], said: str) -> None:
    assert why(fields, NOW).startswith(said)
    assert bool(why(fields, NOW)) == bool(said)


def test_amounts_and_ages_are_no_change() -> None:
    before = snapshot(UP, WAITING)
    assert what_changed(before) == what_changed(snapshot({**UP, "cpu_percent": 3.0, "rss_bytes": 1}, WAITING))
    assert what_changed(before) != what_changed(snapshot({**UP, "pid": 5}, WAITING))
    assert what_changed(before) != what_changed(snapshot(UP, WAITING, recovery=RECOVERY))


def test_tasks_and_events() -> None:
    rows = task_rows({"workers": {"w0": ["a", "b"], "w1": []}, "queue": ["c\x1b"]})
    assert rows == [("a", "w0"), ("b", "w0"), (r"c\x1b", "(nobody yet: in the queue)")]
    line = event_line({"seq": 1, "at": STARTED_AT, "worker_id": "w0", "kind": "ended", "text": "exit\x1b 3"})
    assert line.endswith(r".000  w0  exit\x1b 3")
    assert event_line({"seq": 1, "kind": "recovery"}) == "?  -  recovery"
