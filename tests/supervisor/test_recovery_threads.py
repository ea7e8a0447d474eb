"""Monitors and operators on many threads: each thing is done in its turn, and nobody waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from random import Random

import pytest

from procguard.supervisor.chain import OutcomeKind, RecoveryOutcome
from tests.supervisor.test_recovery_random import memory_folder
from tests.supervisor.world import Guard, World, named

DEADLINE_S = 30.0


def guard_of(world: World, configs: str = "abcd", **hooks: object) -> Guard:
    guard = Guard(world, None, named(configs, max_restarts=1000), lambda place: None, {}, **hooks)
    guard.failures.start(list(configs))
    return guard


@pytest.mark.parametrize("seed", range(4))
def test_many_threads_at_once(seed: int) -> None:
    print(f"seed {seed}")
    with memory_folder() as folder:
        world = World()
        configs = named("abcd", max_restarts=1000, restart_delay=0.0)
        guard = Guard(world, folder / "state.json", configs, lambda place: None, {"task_reassignment": True})
        guard.failures.start(configs)
        guard.manager.on_start = guard.manager.on_stop = lambda worker_id: switch.wait(0.0005)
        switch = threading.Event()
        errors: list[BaseException] = []

        def act(random: Random) -> None:
            try:
                for _ in range(12):
                    worker_id = random.choice("abcd")
                    what = random.choice(["fail", "fail", "hang", "stop", "start", "restart"])
                    if what == "fail":
                        world.end(worker_id)
                    if what in ("fail", "hang"):
                        guard.failures.handle_failure([worker_id])
                    else:
                        getattr(guard.failures, what)([worker_id])
            except BaseException as error:  # noqa: BLE001 - shown by the test
                errors.append(error)

        threads = [threading.Thread(target=act, args=(Random(f"{seed} {n}"),), daemon=True) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive(), "a deadlock"
        assert errors == []
        guard.failures.resume()
        document = guard.state.document
        assert document.recovery is None
        assert world.doubles == []
        for worker_id, record in document.workers.items():
            assert (worker_id in world.living) == (record.wanted is not False and not record.left_out)
            if worker_id in world.living:
                assert sorted(world.living[worker_id].tasks) == sorted(guard.state.tasks_of(worker_id))
        guard.state.close()


def test_a_report_returns_at_once_and_the_outcome_comes_later() -> None:
    world, entered, go_on = World(), threading.Event(), threading.Event()

    class Slow:
        def before_stop(self, worker_ids: Sequence[str]) -> None:
            entered.set()
            assert go_on.wait(DEADLINE_S)

        def after_restart(self, worker_ids: Sequence[str]) -> None:
            pass

    guard = guard_of(world, checkpoint=Slow())
    told, outcomes = threading.Event(), []

    def then(outcome: RecoveryOutcome) -> None:
        outcomes.append(outcome)
        if len(outcomes) == 2:
            told.set()

    world.end("a")
    guard.failures.report_failure(["a"], then=then)
    assert entered.wait(DEADLINE_S)
    world.end("b")
    guard.failures.report_failure(["b"], then=then)
    assert guard.failures.in_progress
    go_on.set()
    assert told.wait(DEADLINE_S)
    assert [(outcome.kind, outcome.failed) for outcome in outcomes] == [
        (OutcomeKind.RECOVERED, ("a", "b"))
    ] * 2
    assert world.starts == {"a": 2, "b": 2, "c": 2, "d": 2}


def test_a_stop_does_not_wait_for_the_chain_and_the_chain_heeds_it() -> None:
    world, stopped = World(), threading.Event()
    asked: list[tuple[str, ...]] = []

    class Ready:
        """Ready once c, who never will be, is stopped."""

        def wait_ready(self, worker_ids: Sequence[str], timeout_s: float) -> bool:
            asked.append(tuple(worker_ids))
            if "c" in worker_ids:
                operator.start()
                assert stopped.wait(DEADLINE_S)
                return False
            return True

    def stop() -> None:
        answers.append(guard.failures.stop(["c"]))
        stopped.set()

    answers: list[dict[str, bool]] = []
    operator = threading.Thread(target=stop, daemon=True)
    guard = guard_of(world, adapter=Ready())
    world.end("a")
    outcome = guard.failures.handle_failure(["a"])
    assert outcome.kind is OutcomeKind.RECOVERED
    assert answers == [{"c": True}]
    assert asked == [("a", "b", "c", "d"), ("a", "b", "d")]
    assert set(world.living) == set("abd")


def test_close_ends_a_chain_that_waits() -> None:
    world, asked = World(), threading.Event()

    class NeverReady:
        def wait_ready(self, worker_ids: Sequence[str], timeout_s: float) -> bool:
            asked.set()
            return False

    guard = guard_of(world, adapter=NeverReady())
    guard.failures._pause = guard.failures._crew._pause = guard.failures._closed.wait
    world.end("a")
    outcomes: list[RecoveryOutcome] = []
    guard.failures.report_failure(["a"], then=outcomes.append)
    assert asked.wait(DEADLINE_S)
    guard.failures.close()
    assert guard.failures.in_progress
    assert guard.failures.handle_failure(["b"]).kind is OutcomeKind.INTERRUPTED
