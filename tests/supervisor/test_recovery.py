"""What becomes of failures and of operators' commands, in virtual time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from procguard.errors import UsageError
from procguard.supervisor.chain import EXIT_GAVE_UP, OutcomeKind, bounded
from procguard.supervisor.crew import tasks_path
from procguard.supervisor.recovery import FailureHandler
from procguard.supervisor.state import StateManager
from procguard.worker_config import WorkerConfig
from tests.supervisor.world import FakeManager, Guard, World, crew, named, worker

ALONE = {"stop_all_on_failure": False}
MOVES = {"task_reassignment": True}
ABC = named("abc")


class Town:
    """A world, and one guard after the other in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.world = World()
        self.guards: list[Guard] = []

    def guard(self, configs: dict[str, WorkerConfig] = ABC, **settings: Any) -> Guard:
        """The next guard; the one before it is dead."""
        self.end()
        hooks = {name: settings.pop(name) for name in ("adapter", "checkpoint") if name in settings}
        self.guards.append(Guard(self.world, self.path, configs, lambda place: None, settings, **hooks))
        return self.guards[-1]

    def running(self, configs: dict[str, WorkerConfig] = ABC, **settings: Any) -> Guard:
        """A guard with all its workers running; what has happened so far is forgotten."""
        guard = self.guard(configs, **settings)
        guard.failures.resume(configs)
        self.world.starts.clear()
        guard.manager.asked.clear()
        return guard

    def fail(self, guard: Guard, *worker_ids: str) -> Any:
        for worker_id in worker_ids:
            self.world.end(worker_id)
        return guard.failures.handle_failure(worker_ids)

    def end(self) -> None:
        for guard in self.guards:
            guard.state.close()


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    town = Town(tmp_path / "state.json")
    yield town
    town.end()


# --- the chain


def test_the_snippet_that_users_know(tmp_path: Path) -> None:
    manager = FakeManager(World(), ABC, lambda place: None)
    state = StateManager(tmp_path / "state.json")
    for worker_id in ABC:
        manager.start_worker(worker_id)
    manager.world.end("b")
    outcome = FailureHandler(state, manager, {}).handle_failure(["b"])
    assert outcome
    assert (outcome.kind, outcome.failed, outcome.restarted) == (
        OutcomeKind.RECOVERED,
        ("b",),
        ("a", "b", "c"),
    )
    assert set(manager.world.living) == set("abc")
    state.close()


def test_all_stop_before_any_starts(town: Town) -> None:
    guard = town.running()
    assert town.fail(guard, "b").kind is OutcomeKind.RECOVERED
    asked = [said.split()[0] for said in guard.manager.asked]
    assert asked == ["stop"] * 3 + ["start"] * 3
    assert not guard.failures.in_progress
    assert [outcome.failed for outcome in guard.failures.history] == [("b",)]


def test_only_the_failed_is_restarted_if_so_asked(town: Town) -> None:
    guard = town.running(**ALONE)
    assert town.fail(guard, "b").restarted == ("b",)
    assert guard.manager.asked == ["stop b", "start b"]
    assert town.world.stops == {}


def test_workers_that_fail_together_are_one_chain(town: Town) -> None:
    guard = town.running()
    outcome = town.fail(guard, "a", "c")
    assert (outcome.failed, outcome.restarted) == (("a", "c"), ("a", "b", "c"))
    assert town.world.starts == {"a": 1, "b": 1, "c": 1}


def test_who_fails_while_others_stop_joins_the_chain(town: Town) -> None:
    guard = town.running(**ALONE)

    def die_too(worker_id: str) -> None:
        if worker_id == "a" and "b" in town.world.living:
            town.world.end("b")
            bounded(lambda: guard.failures.handle_failure(["b"]), 10.0)

    guard.manager.on_stop = die_too
    outcome = town.fail(guard, "a")
    assert (outcome.failed, outcome.restarted) == (("a", "b"), ("a", "b"))
    assert len(guard.failures.history) == 1


@pytest.mark.parametrize(
    ("settings", "chains", "starts"),
    [({}, [("b", "a")], {"a": 2, "b": 2, "c": 2}), (ALONE, [("b",), ("a",)], {"a": 1, "b": 1})],
    ids=["all stop once more", "the next chain"],
)
def test_who_fails_while_others_start(
    town: Town, settings: dict[str, Any], chains: list[Any], starts: dict[str, int]
) -> None:
    guard = town.running(**settings)

    def crash(worker_id: str) -> None:
        guard.manager.on_start = lambda worker_id: None
        town.world.end("a")
        bounded(lambda: guard.failures.handle_failure(["a"]), 10.0)

    guard.manager.on_start = crash
    town.fail(guard, "b")
    assert [outcome.failed for outcome in guard.failures.history] == chains
    assert set(town.world.living) == set("abc")
    assert town.world.starts == starts
    assert guard.state.get_worker_state("b")["restarts"] == 1


def test_a_worker_that_hangs_is_stopped_and_started(town: Town) -> None:
    guard = town.running(**ALONE)
    before = town.world.living["b"].pid
    assert guard.failures.handle_failure(["b"]).restarted == ("b",)
    assert town.world.living["b"].pid != before


def test_a_report_of_a_process_that_was_replaced_since_is_dropped(town: Town) -> None:
    guard = town.running()
    before = town.world.living["b"].pid
    guard.failures.restart(["b"])
    town.world.starts.clear()
    outcome = guard.failures.handle_failure(["b"], pids={"b": before})
    assert outcome.kind is OutcomeKind.NOTHING_TO_DO
    assert town.world.starts == {}


def test_a_worker_that_waits_for_its_start_does_not_fail_again(town: Town) -> None:
    guard = town.running(**ALONE)
    town.fail(guard, "b")
    town.fail(guard, "b")
    assert guard.manager.get_worker_status("b").state == "waiting"
    assert guard.failures.handle_failure(["b"]).kind is OutcomeKind.NOTHING_TO_DO


def test_without_auto_recovery_nothing_is_done(town: Town) -> None:
    guard = town.running(enable_auto_recovery=False)
    outcome = town.fail(guard, "b")
    assert not outcome
    assert outcome.kind is OutcomeKind.DISABLED
    assert guard.manager.asked == []


def test_without_auto_recovery_a_good_end_is_called_that(
    town: Town, caplog: pytest.LogCaptureFixture
) -> None:
    guard = town.running(enable_auto_recovery=False)
    town.world.end("b", "finished")
    assert guard.failures.handle_end(["b"]).kind is OutcomeKind.DISABLED
    assert "b ended in good order; enable_auto_recovery is off" in caplog.text
    assert "failed" not in caplog.text


def test_unknown_workers_are_named(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    guard = town.running(**ALONE)
    with pytest.raises(UsageError, match="failed_workers: 'x', 'y': not registered"):
        guard.failures.handle_failure(["x", "y"])
    with pytest.raises(UsageError, match="no worker 'x'; these are known: a, b, c"):
        guard.failures.start(["x"])
    assert town.fail(guard, "a", "x").restarted == ("a",)  # the known one is not left alone for it
    assert "'x'" in caplog.text
    assert guard.failures.handle_failure([]).kind is OutcomeKind.NOTHING_TO_DO


def test_dependencies_start_first(town: Town) -> None:
    configs = crew(worker("a", depends_on=["b"]), worker("b", depends_on=["c"]), worker("c"), worker("d"))
    guard = town.guard(configs)
    guard.failures.resume(configs)
    assert guard.manager.asked == ["start c", "start d", "start b", "start a"]
    guard.manager.asked.clear()
    town.fail(guard, "c")
    assert guard.manager.asked[4:] == ["start c", "start d", "start b", "start a"]


def test_a_dependent_waits_for_the_delayed_start_of_what_it_needs(town: Town) -> None:
    configs = crew(worker("a", depends_on=["b"]), worker("b", restart_delay=8.0), worker("c"))
    guard = town.running(configs)
    town.fail(guard, "b")
    began = town.world.now
    seen: dict[str, float] = {}
    guard.manager.on_start = lambda worker_id: seen.update({worker_id: town.world.now - began})
    town.fail(guard, "b")
    assert seen == {"c": 0.0, "b": pytest.approx(8.0, abs=0.1), "a": pytest.approx(8.0, abs=0.1)}


def test_a_dependent_that_starts_without_one_of_two_is_told_once(
    town: Town, caplog: pytest.LogCaptureFixture
) -> None:
    slow = worker("c", restart_delay=8.0, start_period=9.0)
    configs = crew(worker("a", depends_on=["b", "c"]), worker("b", start_period=1.0), slow)
    guard = town.running(configs)
    starting = guard.manager.get_worker_status
    guard.manager.get_worker_status = lambda w: (  # type: ignore[method-assign]
        starting(w)._replace(state="starting") if w in ("b", "c") and w in town.world.living else starting(w)
    )
    caplog.clear()
    town.fail(guard, "a")
    assert set(town.world.living) == {"a", "b", "c"}
    [said] = [record.message for record in caplog.records if "depends on" in record.message]
    assert said == "Starting what depends on b, c, which does not run yet"


# --- tasks


def test_a_failed_worker_restarts_with_its_own_tasks(town: Town) -> None:
    guard = town.running()
    guard.state.add_task("more", payload={"shard": 7}, worker_id="b")
    town.fail(guard, "b")
    process = town.world.living["b"]
    assert process.tasks == ("tb", "more")
    path = tasks_path(town.path, "b")
    assert process.environment["PROCGUARD_TASKS_FILE"] == str(path)
    assert path.read_text(encoding="utf-8").count("task_id") == 2
    assert '"shard": 7' in path.read_text(encoding="utf-8")


def test_state_files_of_one_folder_have_each_their_own_task_files() -> None:
    assert tasks_path(Path("run/job.1"), "a") == Path("run/job.1.d/tasks/a.json")
    assert tasks_path(Path("run/job.2"), "a") == Path("run/job.2.d/tasks/a.json")
    assert tasks_path(Path("run/job"), "a") == Path("run/job.d/tasks/a.json")


def test_tasks_move_to_the_least_loaded_and_the_failed_stays_out(town: Town) -> None:
    guard = town.running(**MOVES)
    guard.state.add_task("more", worker_id="b")
    outcome = town.fail(guard, "a")
    assert outcome.kind is OutcomeKind.DEGRADED
    assert outcome.left_out == (("a", "its tasks went to c"),)
    assert guard.state.tasks_of("c") == ["ta", "tc"]
    assert town.world.holders() == {"tb": ["b"], "more": ["b"], "tc": ["c"], "ta": ["c"]}
    assert guard.failures.start(["a"]) == {"a": True}
    assert town.world.living["a"].tasks == ()
    assert guard.state.get_worker_state("a")["left_out"] == ""


def test_who_gets_a_task_is_restarted_even_if_the_others_are_not(town: Town) -> None:
    guard = town.running(**MOVES, **ALONE)
    town.fail(guard, "c")
    assert guard.manager.asked == ["stop a", "stop c", "start a"]
    assert town.world.living["a"].tasks == ("ta", "tc")


def test_a_worker_without_tasks_restarts_even_if_tasks_may_move(town: Town) -> None:
    guard = town.running(crew(worker("a"), worker("b")), **MOVES)
    assert town.fail(guard, "a").restarted == ("a", "b")


def test_with_nobody_healthy_the_failed_keep_their_tasks(town: Town) -> None:
    guard = town.running(**MOVES)
    outcome = town.fail(guard, "a", "b", "c")
    assert (outcome.moves, outcome.restarted) == ((), ("a", "b", "c"))
    assert town.world.holders() == {"ta": ["a"], "tb": ["b"], "tc": ["c"]}


def test_with_nobody_left_tasks_wait_in_the_queue_for_the_next_start(town: Town) -> None:
    guard = town.running(named("ab", restart="never"), **MOVES, **ALONE)
    town.fail(guard, "a", "b")
    assert guard.state.task_queue() == ["ta", "tb"]
    guard.failures.start(["b"])
    assert town.world.living["b"].tasks == ("ta", "tb")
    assert guard.state.task_queue() == []


def test_what_a_user_has_queued_is_not_handed_out(town: Town) -> None:
    guard = town.running()
    guard.state.enqueue_task("later")
    town.fail(guard, "a")
    assert guard.state.task_queue() == ["later"]
    assert "later" not in town.world.holders()


def test_tasks_do_not_move_while_the_disk_is_full(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    guard = town.running(**MOVES)
    guard.state.full = True
    outcome = town.fail(guard, "a")
    assert (outcome.kind, outcome.moves) == (OutcomeKind.RECOVERED, ())
    assert town.world.holders() == {"ta": ["a"], "tb": ["b"], "tc": ["c"]}
    assert "No task is reassigned" in caplog.text


def test_too_many_tasks_for_a_variable_come_by_file(town: Town) -> None:
    guard = town.running()
    guard.state._auto_save = False  # spares 6000 writes
    for number in range(6000):
        guard.state.add_task(f"a task with quite a long name {number}", worker_id="b")
    guard.state._auto_save = True
    town.fail(guard, "b")
    environment = town.world.living["b"].environment
    assert "PROCGUARD_TASKS" not in environment
    assert tasks_path(town.path, "b").read_text(encoding="utf-8").count("task_id") == 6001


# --- restarts


def test_the_first_restart_is_at_once_then_later_and_later_then_it_gives_up(town: Town) -> None:
    guard = town.running(named("ab", max_restarts=3, restart_delay=2.0))
    delays = []
    for _ in range(3):
        began = town.world.now
        town.fail(guard, "a")
        while "a" not in town.world.living:
            guard.advance(0.25)
        delays.append(town.world.now - began)
    assert delays == [0.0, 2.0, 4.0]
    outcome = town.fail(guard, "a")
    assert (outcome.kind, outcome.exit_code) == (OutcomeKind.GAVE_UP, EXIT_GAVE_UP)
    assert outcome.reason == "a failed again after 3 restarts within 300 s (max_restarts)"
    assert town.world.living == {}
    assert guard.failures.handle_failure(["b"]).kind is OutcomeKind.GAVE_UP
    assert guard.failures.gave_up is not None
    assert guard.failures.gave_up.reason == outcome.reason


def test_the_healthy_do_not_pay_for_it(town: Town) -> None:
    guard = town.running(named("ab", max_restarts=2))
    for victim in ("a", "b", "a", "b"):
        assert town.fail(guard, victim).kind is OutcomeKind.RECOVERED
        guard.advance(5.0)
    assert guard.state.get_worker_state("b")["restarts"] == 2


def test_a_stable_time_makes_all_good_again(town: Town) -> None:
    guard = town.running(named("a", max_restarts=1, restart_window=100.0))
    for _ in range(4):
        assert town.fail(guard, "a").kind is OutcomeKind.RECOVERED
        assert "a" in town.world.living
        guard.advance(100.0)


def test_one_that_is_exhausted_stays_out_where_the_others_do_not_stop_for_it(town: Town) -> None:
    guard = town.running(named("ab", max_restarts=0), **ALONE)
    outcome = town.fail(guard, "a")
    assert outcome.kind is OutcomeKind.DEGRADED
    assert outcome.left_out == (("a", "failed, and may not be restarted (max_restarts 0)"),)
    assert guard.state.get_worker_state("a")["exhausted"]
    assert set(town.world.living) == {"b"}
    guard.failures.start(["a"])
    assert set(town.world.living) == {"a", "b"}
    assert not guard.state.get_worker_state("a")["exhausted"]


def test_restart_never(town: Town) -> None:
    guard = town.running(crew(worker("a", restart="never"), worker("b")))
    outcome = town.fail(guard, "a")
    assert outcome.left_out == (("a", "its settings say restart: never"),)
    assert set(town.world.living) == {"b"}


def test_restart_always_restarts_what_ended_well_and_nobody_else(town: Town) -> None:
    guard = town.running()
    town.world.end("a", "finished")
    assert guard.failures.handle_end(["a"]).restarted == ("a",)
    assert guard.manager.asked == ["stop a", "start a"]
    town.world.end("a", "finished")
    guard.failures.handle_end(["a"])
    assert guard.manager.get_worker_status("a").state == "waiting"


def test_what_has_finished_is_left_in_peace(town: Town) -> None:
    guard = town.running()
    town.world.end("a", "finished")
    assert town.fail(guard, "b").restarted == ("b", "c")


# --- attempts, time and the end


def test_what_cannot_start_is_tried_again_and_then_all_is_given_up(town: Town) -> None:
    guard = town.running(max_recovery_attempts=3)
    guard.manager.unstartable = {"b"}
    outcome = town.fail(guard, "b")
    assert (outcome.kind, outcome.attempts, outcome.exit_code) == (OutcomeKind.GAVE_UP, 3, EXIT_GAVE_UP)
    assert outcome.reason == "b could not be started; given up after attempt 3"
    assert guard.manager.asked.count("start b") == 3
    assert town.world.starts == {"a": 1, "c": 1}
    assert town.world.living == {}


@pytest.mark.parametrize(
    ("settings", "kind", "living"),
    [
        ({}, OutcomeKind.GAVE_UP, set()),
        (ALONE, OutcomeKind.DEGRADED, {"a", "c"}),
        ({"enable_auto_recovery": False}, OutcomeKind.DISABLED, {"a", "c"}),
    ],
)
def test_what_cannot_start_from_the_beginning_is_a_failure(
    town: Town, settings: dict[str, Any], kind: OutcomeKind, living: set[str]
) -> None:
    guard = town.guard(**settings)
    guard.manager.unstartable = {"b"}
    outcome = guard.failures.resume(ABC)
    assert (outcome.kind, outcome.failed) == (kind, ("b",))
    assert bool(outcome) == (kind is OutcomeKind.DEGRADED)
    if kind is not OutcomeKind.GAVE_UP:
        assert outcome.left_out == (("b", "could not be started"),)
    assert set(town.world.living) == living


def test_what_cannot_start_at_first_is_started_again(town: Town) -> None:
    guard = town.guard(**ALONE)
    guard.manager.unstartable = {"b"}
    guard.manager.on_start = lambda worker_id: guard.manager.unstartable.clear() if worker_id == "c" else None
    outcome = guard.failures.resume(ABC)
    assert (outcome.kind, outcome.failed, outcome.restarted) == (OutcomeKind.RECOVERED, ("b",), ("b",))
    assert set(town.world.living) == {"a", "b", "c"}


def test_where_the_others_do_not_stop_they_go_on_without_it(town: Town) -> None:
    guard = town.running(**ALONE)
    guard.manager.unstartable = {"b"}
    outcome = town.fail(guard, "b")
    assert (outcome.kind, outcome.left_out) == (OutcomeKind.DEGRADED, (("b", "could not be started"),))
    assert set(town.world.living) == {"a", "c"}


def test_a_start_that_fails_once_is_made_up_for(town: Town) -> None:
    guard = town.running()
    guard.manager.unstartable = {"b"}
    guard.failures._pause = guard.failures._crew._pause = lambda s: guard.manager.unstartable.clear()
    outcome = town.fail(guard, "b")
    assert (outcome.kind, outcome.attempts) == (OutcomeKind.RECOVERED, 2)
    assert town.world.starts == {"a": 1, "b": 1, "c": 1}


def test_nothing_starts_and_no_task_moves_before_the_failed_is_dead(town: Town) -> None:
    guard = town.running(**MOVES, **ALONE)
    guard.manager.undying = {"a"}
    outcome = guard.failures.handle_failure(["a"])
    assert (outcome.moves, outcome.left_out) == ((), (("a", "it could not be killed"),))
    assert town.world.holders() == {"ta": ["a"], "tb": ["b"], "tc": ["c"]}
    assert town.world.starts == {"b": 1}  # it had been chosen for the task, and came back with its own


def test_all_is_given_up_if_one_of_all_cannot_be_killed(town: Town) -> None:
    guard = town.running()
    guard.manager.undying = {"c"}
    outcome = town.fail(guard, "a")
    assert outcome.reason == "c could not be stopped; given up after attempt 3"
    assert set(town.world.living) == {"c"}


def test_a_stop_that_takes_too_long_is_an_attempt_and_the_chain_goes_on(town: Town) -> None:
    guard = town.running(recovery_timeout=20.0)
    guard.manager.on_stop = lambda worker_id: guard.advance(10.0)
    outcome = town.fail(guard, "b")
    assert (outcome.kind, outcome.attempts) == (OutcomeKind.RECOVERED, 2)
    assert town.world.starts == {"a": 1, "b": 1, "c": 1}


def test_a_chain_that_takes_too_long_for_good_is_given_up(town: Town) -> None:
    guard = town.running(recovery_timeout=20.0, max_recovery_attempts=1)
    guard.manager.on_stop = lambda worker_id: guard.advance(10.0)
    outcome = town.fail(guard, "b")
    assert outcome.reason == "took longer than recovery_timeout (20 s); given up after attempt 1"
    assert town.world.living == {}


@pytest.mark.parametrize("settings", [{}, ALONE])
def test_a_process_manager_that_raises_is_a_worker_that_could_not_be_stopped(
    town: Town, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    guard = town.running(**settings)

    def raises(worker_id: str) -> None:
        guard.manager.on_stop = lambda worker_id: None
        raise RuntimeError("a bug of ours")

    guard.manager.on_stop = raises
    outcome = town.fail(guard, "a", "b")
    assert (outcome.kind, outcome.attempts) == (OutcomeKind.RECOVERED, 2)
    assert "a bug of ours" in caplog.text


class Quorum:
    """An adapter whose workers find together, or not."""

    def __init__(self, town: Town, ready_after_s: float) -> None:
        self.town = town
        self.ready_after_s = ready_after_s
        self.asked: list[tuple[str, ...]] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def environment(self, worker_id: str) -> dict[str, str]:
        return {"WAY_BACK": worker_id}

    def wait_ready(self, worker_ids: Sequence[str], timeout_s: float) -> bool:
        self.asked.append(tuple(worker_ids))
        self.town.guards[-1].advance(timeout_s)
        self.ready_after_s -= timeout_s
        self.meanwhile()
        return self.ready_after_s <= 0


def test_the_chain_waits_for_the_quorum(town: Town) -> None:
    quorum = Quorum(town, ready_after_s=0.0)
    guard = town.running(adapter=quorum)
    quorum.ready_after_s = 12.0
    began = town.world.now
    assert town.fail(guard, "b").kind is OutcomeKind.RECOVERED
    assert town.world.now - began == 12.0
    assert set(quorum.asked) == {("a", "b", "c")}
    assert town.world.living["c"].environment["WAY_BACK"] == "c"


def test_without_a_quorum_all_are_stopped_and_started_again_and_then_given_up(town: Town) -> None:
    guard = town.running(adapter=Quorum(town, 10_000.0), recovery_timeout=20.0, max_recovery_attempts=2)
    outcome = town.fail(guard, "b")
    why = "the workers were not ready within recovery_timeout (20 s); given up after attempt 2"
    assert (outcome.kind, outcome.reason) == (OutcomeKind.GAVE_UP, why)
    assert town.world.starts == {"a": 2, "b": 2, "c": 2}
    assert guard.state.get_worker_state("b")["restarts"] == 1  # a second attempt is not a second failure
    assert 40.0 <= outcome.duration_s <= 42.0


def test_who_fails_while_it_is_waited_for_the_quorum_begins_the_chain_anew(town: Town) -> None:
    quorum = Quorum(town, 3.0)
    guard = town.running(adapter=quorum)

    def crash() -> None:
        quorum.meanwhile = lambda: None
        town.world.end("a")
        guard.failures.handle_failure(["a"])

    quorum.ready_after_s, quorum.meanwhile = 3.0, crash
    outcome = town.fail(guard, "b")
    assert (outcome.kind, outcome.failed, outcome.attempts) == (OutcomeKind.RECOVERED, ("b", "a"), 1)
    assert town.world.starts == {"a": 2, "b": 2, "c": 2}
    assert guard.state.get_worker_state("b")["restarts"] == 1


class RaisingHooks:
    def before_stop(self, worker_ids: Sequence[str]) -> None:
        raise RuntimeError("no space for a checkpoint")

    def after_restart(self, worker_ids: Sequence[str]) -> None:
        raise KeyError("model")

    def wait_ready(self, worker_ids: Sequence[str], timeout_s: float) -> bool:
        raise OSError("no lighthouse")


def test_adapters_that_raise_hold_up_nothing(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    guard = town.running(adapter=RaisingHooks(), checkpoint=RaisingHooks())
    assert town.fail(guard, "b").kind is OutcomeKind.RECOVERED
    assert all(text in caplog.text for text in ("no space for a checkpoint", "model", "no lighthouse"))


def test_a_hook_that_hangs_is_left_behind(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    over = threading.Event()

    class Hanging(RaisingHooks):
        def before_stop(self, worker_ids: Sequence[str]) -> None:
            over.wait(30.0)

        def after_restart(self, worker_ids: Sequence[str]) -> None:
            pass

    guard = town.running(checkpoint=Hanging(), recovery_timeout=0.1)
    assert town.fail(guard, "b").kind is OutcomeKind.RECOVERED
    assert "before_stop of the checkpoint adapter takes longer than" in caplog.text
    over.set()


def test_a_hook_may_report_a_failure_but_not_wait_for_its_end(town: Town) -> None:
    said: list[Any] = []

    class Hook(RaisingHooks):
        def before_stop(self, worker_ids: Sequence[str]) -> None:
            town.world.end("c")
            said.append(guard.failures.handle_failure(["c"]))
            with pytest.raises(UsageError, match="from another thread"):
                guard.failures.start(["a"])

    guard = town.running(checkpoint=Hook())
    outcome = town.fail(guard, "b")
    assert outcome.failed == ("b", "c")
    assert [answer.kind for answer in said] == [OutcomeKind.JOINED]


# --- operators


def test_a_stopped_worker_stays_stopped_through_chains_and_guards(town: Town) -> None:
    guard = town.running()
    assert guard.failures.stop(["c"]) == {"c": True}
    assert guard.failures.stop("c") == {"c": True}
    town.fail(guard, "b")
    assert set(town.world.living) == {"a", "b"}
    guard = town.guard()
    guard.failures.resume(ABC)
    assert set(town.world.living) == {"a", "b"}
    assert guard.failures.handle_failure(["c"]).kind is OutcomeKind.NOTHING_TO_DO
    assert guard.failures.start(["c", "a"]) == {"c": True, "a": True}
    assert set(town.world.living) == {"a", "b", "c"}


@pytest.mark.parametrize("when", ["on_stop", "on_start"])
def test_a_stop_that_comes_while_a_chain_is_under_way(town: Town, when: str) -> None:
    guard = town.running()

    def operator(worker_id: str) -> None:
        setattr(guard.manager, when, lambda worker_id: None)
        assert guard.failures.stop(["c"]) == {"c": True}

    setattr(guard.manager, when, operator)
    assert town.fail(guard, "b").kind is OutcomeKind.RECOVERED
    assert set(town.world.living) == {"a", "b"}


def test_a_stop_that_a_killed_guard_had_only_begun_is_finished(town: Town) -> None:
    guard = town.running()
    guard.state.update_worker("c", wanted=False)
    town.guard().failures.resume(ABC)
    assert set(town.world.living) == {"a", "b"}


def test_a_start_that_a_full_disk_forgot_counts_all_the_same(town: Town) -> None:
    never = named("a", restart="never") | named("b")
    guard = town.running(never, **ALONE)
    town.fail(guard, "a")
    guard.state.full = True
    guard.failures.start(["a"])
    guard = town.guard(never, **ALONE)
    assert guard.state.get_worker_state("a")["left_out"]
    guard.failures.resume(never)
    assert guard.state.get_worker_state("a")["left_out"] == ""
    assert set(town.world.living) == {"a", "b"}


def test_restart_is_not_counted(town: Town) -> None:
    guard = town.running(named("ab", max_restarts=1))
    for _ in range(5):
        assert guard.failures.restart(["a"]) == {"a": True}
    assert town.world.starts == {"a": 5}
    assert guard.state.get_worker_state("a")["restarts"] == 0


def test_commands_say_what_did_not_come_true(town: Town) -> None:
    guard = town.running()
    guard.manager.undying = {"a"}
    assert guard.failures.stop(["a", "b"]) == {"a": False, "b": True}
    assert guard.failures.restart(["a"]) == {"a": False}
    guard.manager.unstartable = {"b"}
    assert guard.failures.start(["b", "c"]) == {"b": False, "c": True}


def test_an_operators_start_ends_a_recovery_that_gave_up(town: Town) -> None:
    guard = town.running(named("ab", max_restarts=0))
    town.fail(guard, "a")
    assert guard.failures.gave_up
    guard.failures.start(["a", "b"])
    assert guard.failures.gave_up is None
    assert set(town.world.living) == {"a", "b"}


# --- the next guard


def test_a_start_that_was_due_comes_with_the_next_guard(town: Town) -> None:
    guard = town.running(**ALONE)
    town.fail(guard, "b")
    town.fail(guard, "b")
    town.world.now += 0.25
    guard = town.guard(**ALONE)
    guard.failures.resume(ABC)
    assert guard.manager.get_worker_status("b").state == "waiting"
    guard.advance(0.5)
    assert "b" not in town.world.living
    guard.advance(0.25)
    assert "b" in town.world.living


def test_what_died_unseen_beside_living_ones_is_a_failure(town: Town) -> None:
    town.running()
    town.world.end("b")
    guard = town.guard()
    assert guard.failures.resume(ABC).failed == ("b",)
    assert town.world.starts == {"a": 1, "b": 1, "c": 1}


def settle(guard: Guard) -> None:
    """Wait for what was noted aside."""
    for thread in tuple(guard.failures._asides):
        thread.join(30.0)


@pytest.mark.parametrize("orderly", [True, False])
def test_what_has_finished_runs_again_only_after_an_orderly_end(town: Town, orderly: bool) -> None:
    guard = town.running()
    town.world.end("c", "finished")
    guard.failures.worker_finished("c")
    settle(guard)
    if orderly:
        guard.failures.close()
    town.world.ended.clear()  # the next process manager knows nothing of it
    town.guard().failures.resume(ABC)
    assert ("c" in town.world.living) == orderly


def test_an_operators_start_that_overtakes_the_note_of_an_end_wins(town: Town) -> None:
    guard = town.running(**ALONE)
    with guard.failures._muster._starting:  # the note comes only when that is free
        town.world.end("c", "finished")
        guard.failures.worker_finished("c")
        assert guard.failures.start(["c"]) == {"c": True}
    settle(guard)
    assert guard.state.get_worker_state("c")["left_out"] == ""
    assert town.fail(guard, "c").restarted == ("c",)


def test_a_start_that_is_under_way_wins_over_the_note_of_an_end(town: Town) -> None:
    guard = town.running()
    town.world.end("c", "finished")

    def noted(worker_id: str) -> None:
        guard.manager.on_start = lambda worker_id: None
        guard.failures._muster.finished(["c"])  # after it was forgiven, before its turn

    guard.manager.on_start = noted
    town.world.end("b")
    guard.failures.start(["b", "c"])
    assert "c" in town.world.living
    assert guard.state.get_worker_state("c")["left_out"] == ""


def test_an_end_that_is_no_good_one_by_now_is_not_noted_as_that(town: Town) -> None:
    guard = town.running()
    with guard.failures._muster._starting:
        town.world.end("c", "finished")
        guard.failures.worker_finished("c")
        guard.failures.start(["c"])
        town.world.end("c")
    settle(guard)
    assert guard.state.get_worker_state("c")["left_out"] == ""


def test_close_waits_for_what_is_being_noted_and_nothing_is_noted_after_it(town: Town) -> None:
    guard = town.running()
    closing = threading.Thread(target=guard.failures.close, daemon=True)
    with guard.failures._muster._starting:
        town.world.end("b", "finished")
        guard.failures.worker_finished("b")
        closing.start()
        closing.join(0.05)
        assert closing.is_alive()
    closing.join(30.0)
    assert guard.state.get_worker_state("b")["left_out"] == "", "the next guard starts it again"
    town.world.end("c", "finished")
    guard.failures.worker_finished("c")
    settle(guard)
    assert guard.state.get_worker_state("c")["left_out"] == ""


def test_a_delayed_start_that_has_happened_is_remembered(town: Town) -> None:
    guard = town.running()
    guard.state.update_worker("a", start_due=town.world.now + 5.0)
    guard.failures.worker_started("a")
    settle(guard)
    assert guard.state.document.workers["a"].start_due is not None
    town.world.now += 5.0
    guard.failures.worker_started("a")
    guard.failures.worker_started("nobody")
    settle(guard)
    assert guard.state.document.workers["a"].start_due is None


def test_an_operator_need_not_wait_for_a_delay(town: Town) -> None:
    guard = town.running(**ALONE)
    town.fail(guard, "b")
    town.fail(guard, "b")
    assert guard.failures.start(["b"]) == {"b": True}
    assert "b" in town.world.living


def test_what_dies_with_its_guard_is_no_failure(town: Town) -> None:
    configs = named("a", on_supervisor_death="kill") | named("b")
    town.running(configs)
    town.world.end("a")
    assert town.guard(configs).failures.resume(configs).kind is OutcomeKind.NOTHING_TO_DO
    assert town.world.starts == {"a": 1}


def test_after_a_reboot_all_start_and_nothing_is_held_against_them(town: Town) -> None:
    guard = town.running(named("ab", max_restarts=1))
    town.fail(guard, "a")
    for worker_id in "ab":
        town.world.end(worker_id)
    town.end()
    state = StateManager(town.path, boot_id="another boot")
    town.world.now = 5.0  # the monotonic clock begins anew
    manager = FakeManager(town.world, named("ab"), lambda place: None)
    outcome = FailureHandler(state, manager, clock=lambda: town.world.now).resume("ab")
    assert outcome.kind is OutcomeKind.NOTHING_TO_DO
    assert set(town.world.living) == {"a", "b"}
    assert state.get_worker_state("a")["restarts"] == 0
    state.close()


def test_a_guard_after_one_that_gave_up_begins_anew(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    guard = town.running(named("ab", max_restarts=0))
    town.fail(guard, "a")
    guard = town.guard(named("ab", max_restarts=0))
    guard.failures.resume("ab")
    assert set(town.world.living) == {"a", "b"}
    assert guard.failures.gave_up is None
    assert "The guard before this one gave up: a failed, and may not be restarted" in caplog.text


def test_a_worker_that_is_gone_from_the_configuration_holds_up_no_chain(town: Town) -> None:
    guard = town.running()
    guard.manager.undying = {"c"}
    guard.failures._pause = guard.failures._crew._pause = lambda s: guard.failures._closed.set()
    assert town.fail(guard, "b").kind is OutcomeKind.INTERRUPTED
    fewer = {name: config for name, config in ABC.items() if name != "b"}
    guard = town.guard(fewer)
    assert guard.failures.resume(fewer).kind is OutcomeKind.RECOVERED
    assert set(town.world.living) == {"a", "c"}


def test_a_closed_guard_leaves_the_chain_to_the_next(town: Town) -> None:
    quorum = Quorum(town, 1000.0)
    guard = town.running(adapter=quorum)
    quorum.meanwhile = guard.failures._closed.set
    assert town.fail(guard, "b").kind is OutcomeKind.INTERRUPTED
    guard.failures.close()
    assert guard.failures.in_progress
    assert guard.failures.handle_failure(["a"]).kind is OutcomeKind.INTERRUPTED
    quorum.ready_after_s = 0.0
    guard = town.guard(adapter=quorum)
    assert guard.failures.resume(ABC).kind is OutcomeKind.RECOVERED
    assert not guard.failures.in_progress


# --- bad input


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"stop_all": True}, "recovery.stop_all: there is no such key; these are: enable_auto_recovery"),
        ({"recovery_timeout": "soon"}, "recovery.recovery_timeout: 'soon': "),
        ({"recovery_timeout": 0}, "recovery.recovery_timeout: 0: "),
        ({"recovery_timeout": float("nan")}, "recovery.recovery_timeout: nan: "),
        ({"max_recovery_attempts": 0}, "recovery.max_recovery_attempts: 0: "),
        ({"task_reassignment": "yes"}, "recovery.task_reassignment: 'yes': "),
    ],
)
def test_settings_that_cannot_be(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        FailureHandler(StateManager(), FakeManager(World(), ABC, lambda place: None), config)
    assert str(caught.value).startswith(said)


def test_recovery_without_a_state_file(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    manager = FakeManager(World(), ABC, lambda place: None)
    failures = FailureHandler(StateManager(), manager, None)
    failures.start(ABC)
    manager.world.end("a")
    assert failures.handle_failure("a").failed == ("a",)
    assert "PROCGUARD_TASKS_FILE" not in manager.world.living["a"].environment
    assert manager.world.living["a"].tasks == ("ta",)
    assert "Recovery 1 is over: a, b, c restarted" in caplog.text
