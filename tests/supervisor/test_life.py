"""The life of one worker, in virtual time: every order in which things can be asked and can happen."""

from __future__ import annotations

import random
from math import inf

import pytest

from procguard.supervisor.exits import Exit, ExitKind, Stop, StopReason, WorkerState
from procguard.supervisor.life import (
    KILL_WAIT_S,
    Bury,
    Done,
    Effect,
    Event,
    KillAll,
    LeaderEnded,
    Life,
    NotSpawned,
    Spawn,
    Spawned,
    Stage,
    StartAsked,
    StopAsked,
    Sweep,
    Swept,
    Tell,
    TellLeader,
    TellStarted,
    TellUnkillable,
    TimePassed,
)

STOP_TIMEOUT_S = 10.0
OPERATOR = Stop(StopReason.OPERATOR)
SIGKILLED, SIGTERMED = 9, 15


class Play:
    """A life with a clock; each call gives back the effects."""

    def __init__(self) -> None:
        self.life = Life(STOP_TIMEOUT_S)
        self.now = 100.0

    def step(self, event: Event) -> list[Effect]:
        return list(self.life.step(event, self.now))

    def advance(self, seconds: float) -> list[Effect]:
        self.now += seconds
        return self.step(TimePassed())

    def running(self) -> Play:
        self.step(StartAsked(1))
        self.step(Spawned())
        assert self.state is WorkerState.RUNNING
        return self

    @property
    def state(self) -> WorkerState:
        return self.life.state


def test_a_start_and_a_clean_end() -> None:
    stage = Play()
    assert stage.state is WorkerState.STOPPED
    assert stage.step(StartAsked(1)) == [Spawn()]
    assert stage.state is WorkerState.STARTING
    assert stage.step(Spawned()) == [TellStarted(), Done(1, True)]
    assert stage.step(LeaderEnded(0)) == [Tell(Exit(ExitKind.CLEAN, 0, text="exit code 0")), Sweep(kill=True)]
    assert stage.state is WorkerState.FINISHED
    assert stage.step(Swept(0)) == [Bury()]
    assert stage.life.next_deadline() == inf


def test_a_start_that_fails_tells_its_caller() -> None:
    stage = Play()
    stage.step(StartAsked(1))
    assert stage.step(NotSpawned("no such file")) == [Done(1, False, "no such file")]
    assert stage.state is WorkerState.FAILED


def test_a_start_that_was_due_and_fails_is_told_as_an_end() -> None:
    stage = Play()
    assert stage.step(StartAsked(1, delay_s=2.0)) == [Done(1, True)]
    assert stage.state is WorkerState.WAITING
    assert stage.advance(1.9) == []
    assert stage.advance(0.2) == [Spawn()]
    (told,) = stage.step(NotSpawned("no such file"))
    assert isinstance(told, Tell)
    assert told.exit.kind is ExitKind.ERROR


def test_a_start_of_what_runs_is_done() -> None:
    assert Play().running().step(StartAsked(2)) == [Done(2, True)]


def test_a_stop_of_what_does_not_run_is_done() -> None:
    assert Play().step(StopAsked(1, OPERATOR)) == [Done(1, True)]


def test_a_stop_tells_the_leader_and_waits() -> None:
    stage = Play().running()
    assert stage.step(StopAsked(2, OPERATOR)) == [TellLeader()]
    assert stage.state is WorkerState.STOPPING
    told, sweep = stage.step(LeaderEnded(SIGTERMED))
    assert isinstance(told, Tell)
    assert told.exit.kind is ExitKind.OPERATOR
    assert sweep == Sweep(kill=False)
    assert stage.state is WorkerState.STOPPING
    assert stage.step(Swept(0)) == [Bury(), Done(2, True)]
    assert stage.state is WorkerState.STOPPED


def test_who_ignores_the_signal_is_killed() -> None:
    stage = Play().running()
    stage.step(StopAsked(2, OPERATOR))
    assert stage.advance(STOP_TIMEOUT_S - 0.1) == []
    assert stage.advance(0.1) == [KillAll()]
    assert stage.step(LeaderEnded(SIGKILLED))[1] == Sweep(kill=True)


def test_what_a_leader_leaves_has_the_same_deadline() -> None:
    stage = Play().running()
    stage.step(StopAsked(2, OPERATOR))
    stage.advance(4.0)
    stage.step(LeaderEnded(0))
    assert stage.step(Swept(2)) == []
    assert stage.advance(STOP_TIMEOUT_S - 4.1) == []
    assert stage.advance(0.1) == [Sweep(kill=True)]
    assert stage.step(Swept(0)) == [Bury(), Done(2, True)]


def test_a_forced_stop_kills_at_once() -> None:
    stage = Play().running()
    assert stage.step(StopAsked(2, OPERATOR, force=True)) == [KillAll()]


def test_force_hurries_a_stop_that_goes_on() -> None:
    stage = Play().running()
    stage.step(StopAsked(2, OPERATOR))
    assert stage.step(StopAsked(3, OPERATOR, force=True)) == [KillAll()]
    stage.step(LeaderEnded(SIGKILLED))
    assert stage.step(Swept(0)) == [Bury(), Done(2, True), Done(3, True)]


def test_force_hurries_even_from_behind_a_start() -> None:
    stage = Play().running()
    stage.step(StopAsked(2, OPERATOR))
    stage.step(StartAsked(3))
    assert stage.step(StopAsked(4, OPERATOR, force=True)) == [KillAll()]
    stage.step(LeaderEnded(SIGKILLED))
    assert stage.step(Swept(0)) == [Bury(), Done(2, True), Spawn()]
    assert stage.step(Spawned()) == [TellStarted(), Done(3, True), KillAll()]


def test_force_hurries_the_sweep() -> None:
    stage = Play().running()
    stage.step(StopAsked(2, OPERATOR))
    stage.step(LeaderEnded(0))
    stage.step(Swept(1))
    assert stage.step(StopAsked(3, OPERATOR, force=True)) == [Sweep(kill=True)]


def test_what_a_crash_leaves_is_killed_and_the_start_waits_for_it() -> None:
    stage = Play().running()
    assert stage.step(LeaderEnded(SIGKILLED))[1] == Sweep(kill=True)
    assert stage.state is WorkerState.FAILED
    assert stage.step(Swept(1)) == []
    assert stage.step(StartAsked(2)) == []
    assert stage.step(Swept(0)) == [Bury(), Spawn()]


def test_a_stop_after_a_crash_waits_for_the_sweep_and_blames_nobody_else() -> None:
    stage = Play().running()
    stage.step(LeaderEnded(SIGKILLED))
    assert stage.step(StopAsked(2, OPERATOR)) == []
    assert stage.step(Swept(0)) == [Bury(), Done(2, True)]
    assert stage.life.last_exit == Exit(ExitKind.SIGNAL, signal="SIGKILL", text="killed by SIGKILL")
    assert stage.state is WorkerState.FAILED


def test_a_stop_cancels_a_start_that_is_due() -> None:
    stage = Play()
    stage.step(StartAsked(1, delay_s=5.0))
    assert stage.step(StopAsked(2, OPERATOR)) == [Done(2, True)]
    assert stage.advance(10.0) == []
    assert stage.state is WorkerState.STOPPED


def test_a_start_at_once_overtakes_one_that_is_due() -> None:
    stage = Play()
    stage.step(StartAsked(1, delay_s=5.0))
    assert stage.step(StartAsked(2)) == [Spawn()]
    stage.step(Spawned())
    assert stage.advance(10.0) == []


def test_a_stop_during_a_start_follows_it() -> None:
    stage = Play()
    stage.step(StartAsked(1))
    assert stage.step(StopAsked(2, OPERATOR)) == []
    assert stage.step(Spawned()) == [TellStarted(), Done(1, True), TellLeader()]


def test_an_unkillable_one_is_reported_and_not_waited_for() -> None:
    stage = Play().running()
    stage.step(StopAsked(2, OPERATOR, force=True))
    assert stage.advance(KILL_WAIT_S) == [TellUnkillable(), Done(2, False)]
    assert stage.state is WorkerState.UNKILLABLE
    assert stage.life.last_exit is not None
    assert stage.life.last_exit.kind is ExitKind.UNKILLABLE
    assert stage.step(StartAsked(3)) == [Done(3, False)]
    assert stage.step(StopAsked(4, OPERATOR)) == [Done(4, False), KillAll()]
    assert isinstance(stage.step(LeaderEnded(SIGKILLED))[0], Tell)
    assert stage.step(Swept(0)) == [Bury()]
    assert stage.state is WorkerState.STOPPED


def test_something_unkillable_that_was_left_behind() -> None:
    stage = Play().running()
    stage.step(LeaderEnded(0))
    stage.step(Swept(1))
    stage.step(StartAsked(2))
    assert stage.advance(KILL_WAIT_S) == [TellUnkillable(), Done(2, False)]
    assert stage.step(StopAsked(3, OPERATOR)) == [Done(3, False), Sweep(kill=True)]
    assert stage.step(Swept(0)) == [Bury()]
    assert stage.state is WorkerState.FINISHED


def test_what_an_earlier_guard_started_is_taken_over() -> None:
    stage = Play()
    assert stage.step(Spawned()) == [TellStarted()]
    assert stage.state is WorkerState.RUNNING


def test_a_late_deadline_after_a_long_sleep_of_ours_does_one_thing_at_a_time() -> None:
    stage = Play().running()
    stage.step(StopAsked(2, OPERATOR))
    assert stage.advance(3600.0) == [KillAll()]
    assert stage.life.next_deadline() == stage.now + KILL_WAIT_S


class World:
    """A worker's process and what it leaves, played by chance; it answers what the life wants done."""

    def __init__(self, seed: int) -> None:
        self.chance, self.play = random.Random(seed), Play()
        self.asked = 0
        self.answered: set[int] = set()
        self.leader = self.spawning = False
        self.strays = 0

    def step(self, event: Event) -> None:
        self.take(self.play.step(event))

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Spawn):
                assert not self.leader and not self.strays and not self.spawning, "a second copy"
                self.spawning = True
            elif isinstance(effect, Done):
                assert effect.command not in self.answered
                self.answered.add(effect.command)

    def ask(self) -> None:
        self.asked += 1
        if self.chance.random() < 0.6:
            self.step(StartAsked(self.asked, self.chance.choice([0.0, 0.0, 3.0])))
        else:
            self.step(StopAsked(self.asked, OPERATOR, force=self.chance.random() < 0.3))

    def spawn(self) -> None:
        self.spawning, self.leader = False, self.chance.random() < 0.8
        self.step(Spawned() if self.leader else NotSpawned("why"))

    def end_something(self) -> None:
        if self.leader:
            self.leader, self.strays = False, self.chance.randint(0, 2)
            self.step(LeaderEnded(self.chance.choice([0, 9, 256, None])))
        elif self.play.life.stage in (Stage.SWEEPING, Stage.STUCK):
            self.strays = max(0, self.strays - 1)
            self.step(Swept(self.strays))

    def turn(self) -> None:
        if self.spawning:
            self.spawn()
        choice = self.chance.random()
        if choice < 0.5:
            self.ask()
        elif choice < 0.75:
            self.end_something()
        else:
            self.take(self.play.advance(self.chance.random() * 8))

    def come_to_rest(self) -> None:
        """Now whatever is asked to end does."""
        for _ in range(10 * self.asked + 10):
            if self.spawning:
                self.spawn()
            elif self.play.life.stage is not Stage.ALIVE:
                self.end_something()
            self.take(self.play.advance(KILL_WAIT_S))


@pytest.mark.parametrize("seed", range(200))
def test_any_order_answers_every_command_and_keeps_one_process(seed: int) -> None:
    print(f"seed {seed}")
    world = World(seed)
    for _ in range(60):
        world.turn()
    world.come_to_rest()
    assert world.answered == set(range(1, world.asked + 1))
