"""The chain on paper: who stops, who starts, in which order; a table of cases and what always holds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procguard.supervisor import plan
from procguard.supervisor.plan import Journal, Rules, Step, WorkerView, start_order
from procguard.supervisor.tasks import Task, TaskBook

RUNS = WorkerView("running", wanted=True)
DEAD = WorkerView("failed", wanted=True)


def book(**owners: str) -> TaskBook:
    return TaskBook({name: Task(worker_id=owner) for name, owner in owners.items()})


def begun(
    views: dict[str, WorkerView], *failed: str, tasks: TaskBook | None = None, **rules: bool
) -> Journal:
    return plan.begun(1, failed, views, tasks or TaskBook(), Rules(**rules))


@pytest.mark.parametrize(
    ("view", "runs"),
    [
        (WorkerView("running"), True),
        (WorkerView("waiting"), True),
        (WorkerView("stopped"), False),
        (WorkerView("stopped", wanted=True), True),
        (WorkerView("failed", wanted=True), True),
        (WorkerView("finished", wanted=True), False),
        (WorkerView("running", wanted=False), False),
        (WorkerView("running", wanted=True, out=True), False),
    ],
)
def test_who_is_to_run(view: WorkerView, runs: bool) -> None:
    assert view.to_run is runs


def test_who_is_stopped() -> None:
    views = {
        "a": DEAD,
        "b": RUNS,
        "c": WorkerView("stopped", wanted=False),
        "d": WorkerView("finished", True),
    }
    assert begun(views, "a").stop == ("a", "b")
    assert begun(views, "a", stop_all=False).stop == ("a",)
    tasks = book(t1="a", t2="b")
    assert begun(views, "a", tasks=tasks, stop_all=False, reassign=True).stop == ("a", "b")


def test_steps_are_only_those_that_somebody_asked_for() -> None:
    views = {"a": DEAD}
    assert begun(views, "a").steps == (Step.STOP, Step.RESTART)
    full = plan.begun(1, ["a"], views, TaskBook(), Rules(), saves=True, ready=True)
    assert full.steps == (Step.CHECKPOINT, Step.STOP, Step.RESTART, Step.READY, Step.RESUME)
    assert (full.step, plan.advanced(full).step) == (Step.CHECKPOINT, Step.STOP)
    done = full
    for _ in full.steps:
        done = plan.advanced(done)
    assert done.step is None


def test_who_joins_is_stopped_too_and_new_targets_are_found() -> None:
    views = {"a": DEAD, "b": RUNS, "c": RUNS}
    tasks = book(t1="a", t2="b")
    first = begun(views, "a", tasks=tasks, stop_all=False, reassign=True)
    assert first.stop == ("a", "c")
    both = plan.joined(first, ["c"], views, tasks)
    assert (both.failed, both.stop) == (("a", "c"), ("a", "b", "c"))


def decided(journal: Journal, views: dict[str, WorkerView], tasks: TaskBook, **more: Any) -> plan.Decision:
    return plan.decided(journal, views, tasks, 100.0, lambda: 0.0, **more)


def test_the_decision_of_a_second_attempt_counts_nobody_twice() -> None:
    views = {"a": DEAD, "b": RUNS}
    first = decided(begun(views, "a"), views, TaskBook())
    assert set(first.restarts) == {"a"}
    second = decided(plan.again(first.journal, "why", from_the_stop=True), views, TaskBook())
    assert (second.restarts, second.due) == ({}, {"a": 100.0, "b": 100.0})
    anew = plan.rejoined(first.journal, ["b"], views, TaskBook())
    assert set(decided(anew, views, TaskBook()).restarts) == {"b"}


def test_a_start_that_is_not_due_yet_stays_so() -> None:
    views = {"a": DEAD, "b": WorkerView("waiting", wanted=True, start_due=130.0)}
    assert decided(begun(views, "a"), views, TaskBook()).due == {"a": 100.0, "b": 130.0}


def test_exhaustion_is_the_end_only_if_all_need_it() -> None:
    never = WorkerView("failed", wanted=True, policy=plan.RestartPolicy(0))
    views = {"a": never, "b": RUNS}
    assert decided(begun(views, "a"), views, TaskBook()).journal.hopeless.startswith("a failed")
    assert not decided(begun(views, "a", stop_all=False), views, TaskBook()).journal.hopeless
    assert not decided(begun(views, "a", reassign=True), views, book(t1="a")).journal.hopeless
    both = {"a": never, "b": never}
    assert decided(begun(both, "a", "b", reassign=True), both, book(t1="a")).journal.hopeless


def test_tasks_go_to_those_who_take_them() -> None:
    server = RUNS._replace(takes_tasks=False)
    views = {"a": DEAD, "b": RUNS, "server": server}
    tasks = book(t1="a", t2="b")
    journal = begun(views, "a", tasks=tasks, stop_all=False, reassign=True)
    assert journal.stop == ("a", "b"), "b has a task, the server none, and takes none"
    (move,) = decided(journal, views, tasks).moves
    assert move.target == "b"
    alone = {"a": DEAD, "server": server}
    after = decided(begun(alone, "a", stop_all=False, reassign=True), alone, book(t1="a"))
    assert after.moves == ()
    assert "a" in after.due, "nobody takes its task, so it goes on itself"


# --- the order of starts


@pytest.mark.parametrize(
    ("starting", "depends_on", "expected"),
    [
        ("abc", {}, [["a", "b", "c"]]),
        ("abc", {"a": ["b"], "b": ["c"]}, [["c"], ["b"], ["a"]]),
        ("abcd", {"a": ["c"], "b": ["c"]}, [["c", "d"], ["a", "b"]]),
        ("ac", {"a": ["b"], "b": ["c"]}, [["c"], ["a"]]),
        ("a", {"a": ["gone"]}, [["a"]]),
        ("ab", {"a": ["b"], "b": ["a"]}, [["a", "b"]]),
        ("ab", {"a": ["a"]}, [["b"], ["a"]]),
        ("", {"a": ["b"]}, []),
    ],
)
def test_start_order(starting: str, depends_on: dict[str, list[str]], expected: list[list[str]]) -> None:
    assert start_order(starting, depends_on) == expected


@given(
    starting=st.frozensets(st.integers(0, 12).map(str)),
    edges=st.sets(st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda e: e[0] > e[1])),
)
def test_everybody_starts_once_and_after_what_it_needs(
    starting: frozenset[str], edges: set[tuple[int, int]]
) -> None:
    depends_on: dict[str, list[str]] = {}
    for above, below in edges:
        depends_on.setdefault(str(above), []).append(str(below))
    order = start_order(starting, depends_on)
    place = {worker_id: at for at, group in enumerate(order) for worker_id in group}
    assert sorted(worker_id for group in order for worker_id in group) == sorted(starting)
    for above, needed in depends_on.items():
        for below in needed:
            assert not {above, below} <= place.keys() or place[below] < place[above]
