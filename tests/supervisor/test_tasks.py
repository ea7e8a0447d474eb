"""Whose the tasks are: one worker's or the queue's, whatever is done with them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from procguard.errors import UsageError
from procguard.supervisor import tasks
from procguard.supervisor.tasks import Move, Task, TaskBook


def book(*queue: str, **owners: str) -> TaskBook:
    """Tasks by name: ``t1="a"`` is a's; the positional ones stand in the queue."""
    owned = {name: Task(worker_id=owner) for name, owner in owners.items()}
    return TaskBook({**owned, **{name: Task() for name in queue}}, queue)


def test_a_failed_workers_tasks_go_to_the_least_loaded() -> None:
    before = book(t1="a", t2="a", t3="a", t4="b", t5="c", t6="c")
    moves = tasks.moves_of(before, {"a"}, ["b", "c"])
    assert moves == (Move("t1", "a", "b"), Move("t2", "a", "b"), Move("t3", "a", "c"))
    after = tasks.moved(before, moves)
    assert tasks.loads(after) == {"b": 3, "c": 3}
    assert tasks.tasks_of(after, "a") == []


def test_who_fails_is_given_nothing() -> None:
    moves = tasks.moves_of(book(t1="a", t2="b"), {"a", "b"}, ["a", "b", "c"])
    assert {move.target for move in moves} == {"c"}


def test_with_nobody_there_they_go_to_the_queue_and_come_back() -> None:
    before = book("mine", t1="a", t2="b")
    after = tasks.moved(before, tasks.moves_of(before, {"a", "b"}, []))
    assert after.queue == ("mine", "t1", "t2")
    assert after.tasks["t1"].orphan_of == "a"
    given = tasks.orphans_given(after, ["b", "c"], ["b", "c"])
    assert given.queue == ("mine",)
    assert [given.tasks[name].worker_id for name in ("t1", "t2")] == ["b", "b"] or tasks.loads(given) == {
        "b": 1,
        "c": 1,
    }
    assert given.tasks["t2"].worker_id == "b"  # its own
    assert tasks.orphans_given(after, [], []) is after
    assert tasks.orphans_given(after, ["c"], []) is after, "c takes none"


def test_a_move_of_a_task_that_is_elsewhere_by_now_is_not_made() -> None:
    before = book(t1="a")
    moves = tasks.moves_of(before, {"a"}, ["b"])
    assert tasks.moved(tasks.assigned(before, "t1", "c"), moves).tasks["t1"].worker_id == "c"
    assert tasks.moved(tasks.completed(before, "t1"), moves).tasks["t1"].completed


def test_the_queue_is_taken_from_its_front() -> None:
    after, taken = tasks.taken(book("t1", "t2"), "a")
    assert (taken, after.queue, after.tasks["t1"].worker_id) == ("t1", ("t2",), "a")
    assert tasks.taken(book(t1="a"), "b")[1] is None


def test_completed_tasks_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "COMPLETED_COUNT_MAX", 2)
    after = book(t1="a", t2="a", t3="a", t4="a")
    for name in ("t1", "t2", "t3", "t3"):
        after = tasks.completed(after, name)
    assert list(after.tasks) == ["t4", "t2", "t3"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: tasks.added(b, "t1", None, "b"), "task 't1' exists already"),
        (lambda b: tasks.assigned(b, "t9", "b"), "there is no task 't9'"),
        (lambda b: tasks.completed(b, "t9"), "there is no task 't9'"),
        (lambda b: tasks.assigned(tasks.completed(b, "t1"), "t1", "b"), "task 't1' is completed"),
    ],
)
def test_what_cannot_be(change: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        change(book(t1="a"))
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    "broken",
    [
        TaskBook({"t1": Task()}),
        TaskBook({"t1": Task(worker_id="a")}, ("t1",)),
        TaskBook({"t1": Task()}, ("t1", "t1")),
        TaskBook({}, ("t1",)),
        TaskBook({"t1": Task(worker_id="a", completed=True)}),
    ],
)
def test_a_book_that_cannot_be_is_noticed(broken: TaskBook) -> None:
    with pytest.raises(ValueError, match="t1"):
        tasks.check(broken)


class Bookkeeping(RuleBasedStateMachine):
    """Any changes in any order."""

    names = st.sampled_from(["t1", "t2", "t3", "t4"])
    workers = st.sampled_from("abc")
    some = st.frozensets(workers, max_size=3)

    def __init__(self) -> None:
        super().__init__()
        self.book = TaskBook()
        self.ever: set[str] = set()

    def attempt(self, change: Any) -> None:
        with suppress(UsageError):
            self.book = change()

    @rule(name=names, worker_id=st.none() | workers)
    def add(self, name: str, worker_id: str | None) -> None:
        self.ever.add(name)
        self.attempt(lambda: tasks.added(self.book, name, None, worker_id))

    @rule(name=names, worker_id=workers)
    def assign(self, name: str, worker_id: str) -> None:
        self.attempt(lambda: tasks.assigned(self.book, name, worker_id))

    @rule(name=names)
    def complete(self, name: str) -> None:
        self.attempt(lambda: tasks.completed(self.book, name))

    @rule(worker_id=workers)
    def take(self, worker_id: str) -> None:
        self.book = tasks.taken(self.book, worker_id)[0]

    @rule(failed=some, healthy=some)
    def move(self, failed: frozenset[str], healthy: frozenset[str]) -> None:
        self.book = tasks.moved(self.book, tasks.moves_of(self.book, failed, healthy))
        assert not any(tasks.tasks_of(self.book, worker_id) for worker_id in failed)

    @rule(starting=some)
    def give(self, starting: frozenset[str]) -> None:
        self.book = tasks.orphans_given(self.book, starting, starting)

    @invariant()
    def each_has_one_place(self) -> None:
        tasks.check(self.book)
        assert set(self.book.tasks) == self.ever


TestBookkeeping = Bookkeeping.TestCase
