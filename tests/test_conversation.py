"""Lighthouse and members talk with each other: all pure cores together, over frames, in virtual time.

Each ``Replica`` is a trainer with its listener: the real ``Requests``, ``Session`` and ``Fence`` on two lines
of a ``MemoryNetwork``. At the other end is the real ``Service`` with its ``Core``. What a test sees is what a
trainer sees: quorums, notices, aborts, and the end of its own life.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from procguard.adapters.memory import MemoryMember, MemoryNetwork
from procguard.client import requests as requests_module
from procguard.client import session as session_module
from procguard.client.fence import Fence
from procguard.client.link_words import Enrol, Farewell, Heard, InQuorum, LeftOut, Over
from procguard.client.requests import Reborn, Requests
from procguard.client.session import (
    Died,
    Listen,
    Published,
    Received,
    Session,
    Tell,
    TimePassed,
    Told,
    Trainer,
)
from procguard.codec import decode, encode
from procguard.lighthouse.core import Core
from procguard.lighthouse.roster import Options
from procguard.lighthouse.service import Service
from procguard.messages import (
    Cause,
    CauseKind,
    Claim,
    Hello,
    Incarnation,
    MemberState,
    Notice,
    Participant,
    Phase,
    Process,
    Quorum,
    QuorumClaim,
    QuorumId,
    Settings,
    Welcome,
    listener_topic,
)

EPOCH = 1_000
JOB = "train"
SETTINGS = Settings(
    heartbeat_interval_s=0.1,
    heartbeat_timeout_s=1.0,
    thread_heartbeat_timeout_s=5.0,
    disconnect_grace_s=0.3,
    join_timeout_s=20.0,
)
KILLED = Cause(CauseKind.PROCESS_EXIT, signal=9)
TURN_S = SETTINGS.heartbeat_interval_s / 2
PASSES_MAX = 50
FRAMES_MAX = 1_000


class Replica:
    """A trainer and its listener.

    Attributes:
        stopped: SIGSTOP: the trainer does nothing, its listener goes on.
        deaf: what is published does not arrive.
        quorum: the one that the last ``ask`` led to, if there is one yet.
        notices: the peers' ends, each once.
        aborted: quorums that a notice ended while they were in use.
        ends: of its own lives.
    """

    def __init__(self, world: World, name: str, number: int) -> None:
        self.name = name
        self.stopped = self.deaf = False
        self.step = self.round = 0
        self.quorum: Quorum | None = None
        self.notices: list[Notice] = []
        self.aborted: list[QuorumId] = []
        self.left_out: list[QuorumId] = []
        self.ends: list[Over] = []
        self.trainer_line, self.listener_line = world.network.member(), world.network.member()
        token = f"token {number:010d}".encode()
        process = Process("host", "boot", 100 + number, 5_000 + number)
        self.hello = Hello(JOB, name, token, process, 0, 1, "", None, b"", 0, world.min_replicas, 0.0)
        self.requests = Requests(self.hello)
        self.session = Session(threaded=False, topic=listener_topic(f"{number}".encode()))
        self.fence = Fence()
        self._world = world
        self._alive = True
        self._told_quorum: Quorum | None = None
        self._busy = False

    @property
    def incarnation(self) -> Incarnation:
        assert self.requests.welcome is not None
        return self.requests.welcome.incarnation

    # --- the trainer

    def join(self) -> None:
        self._perform(self.requests.join(self._world.now))

    def ask(self) -> None:
        """Begin the next round."""
        self.round += 1
        self.quorum = None
        self.fence.begin_round()
        if self.ends:
            self.requests.life_is_over(self.ends[-1].incarnation)
        unborn = Incarnation(0, 0)
        asks = Participant(self.name, unborn, self.round, self.step, 0, 1, self.name, False, 0, b"", ())
        self._perform(self.requests.ask(asks, 60.0, self._world.now))

    def leave(self) -> None:
        self._perform(self.requests.leave(self.step, self._world.now))

    def say_farewell(self) -> None:
        """The departure is acknowledged: the listener goes, and the trainer hangs up."""
        assert self.requests.done
        self._step(Told(Farewell()))
        self._die()
        self.listener_line.close()

    # --- what may happen to it

    def die(self, cause: Cause = KILLED) -> None:
        """The process ends, and its listener sees it."""
        self._die()
        self._step(Died(cause, self.step))

    def lose_host(self) -> None:
        """Trainer and listener are gone at once, and nobody is left to say so."""
        self._die()
        self.listener_line.close()
        self.session = Session(threaded=False, topic=b"")

    def _die(self) -> None:
        self._alive = False
        self.requests.give_up()
        self.trainer_line.close()

    # --- talking

    def next_deadline(self) -> float:
        trainer_s = float("inf") if self.stopped else self.requests.next_deadline()
        return min(trainer_s, self.session.next_deadline())

    def turn(self) -> bool:
        """Take in what has arrived, and let time pass; whether anything was said or heard."""
        self._busy = False
        now = self._world.now
        if self._alive and not self.stopped:
            for frame in self.trainer_line.receive(FRAMES_MAX):
                self._perform(self.requests.receive(decode(frame), now))
            if now >= self.requests.next_deadline():
                self._perform(self.requests.time_passed(now))
        for frame in self.listener_line.receive(FRAMES_MAX):
            self._step(Received(decode(frame)))
        for frame in self.listener_line.notices(FRAMES_MAX):
            if not self.deaf:
                self._step(Published(decode(frame[frame.index(b"\0") + 1 :])))
        if now >= self.session.next_deadline():
            self._step(TimePassed(Trainer(Phase.COMPUTE, self.round, self.step, self.stopped)))
        return self._busy

    def _perform(self, effects: Iterable[requests_module.Effect]) -> None:
        self._busy = True
        for effect in effects:
            if isinstance(effect, requests_module.Send):
                self.trainer_line.send(encode(effect.message))
            elif isinstance(effect, Reborn):
                self._step(Told(self._enrol(effect.welcome)))
            else:
                self.trainer_line.reconnect()
        quorum = self.requests.quorum
        if quorum is not None and quorum is not self._told_quorum:
            self._told_quorum = quorum
            members = tuple([(p.replica_id, p.incarnation) for p in quorum.participants])
            self._step(Told(InQuorum(self.requests.epoch, QuorumClaim(quorum.quorum_id, members))))
            if self.fence.install(quorum):
                self.quorum = quorum

    def _enrol(self, welcome: Welcome) -> Enrol:
        hello = self.hello._replace(claim=Claim(welcome.incarnation, None), epoch=welcome.epoch)
        return Enrol(hello, welcome.notice_port, welcome.seq, welcome.settings)

    def _step(self, event: session_module.Event) -> None:
        self._busy = True
        for effect in self.session.step(event, self._world.now):
            if isinstance(effect, session_module.Send):
                self.listener_line.send(encode(effect.message))
            elif isinstance(effect, Listen):
                self.listener_line.listen(effect.notice_port, effect.topics)
            elif isinstance(effect, Tell):
                self._hear(effect.message)
            else:
                self.listener_line.reconnect()

    def _hear(self, word: Any) -> None:
        if isinstance(word, Heard):
            for notice in word.notices:
                outcome = self.fence.hear(notice, word.epoch, self.step)
                self.notices += [notice] if outcome.news else []
                self.aborted += [outcome.abort] if outcome.abort else []
        elif isinstance(word, Over):
            self.ends.append(word)
        elif isinstance(word, LeftOut):
            self.left_out.append(word.quorum_id)


class World:
    """One lighthouse with its network, the replicas, and the clock."""

    def __init__(self, min_replicas: int = 1) -> None:
        self.now = 100.0
        self.min_replicas = min_replicas
        self.network = MemoryNetwork()
        self.replicas: list[Replica] = []
        self.start_lighthouse(EPOCH)

    def start_lighthouse(self, epoch: int, *, restarted: bool = False) -> None:
        self.lighthouse_is_up = True
        self.transport = self.network.lighthouse()
        options = Options(SETTINGS, self.min_replicas, self.transport.notice_port, restarted)
        self.core = Core(options, epoch, self.now)
        self.service = Service(
            self.core,
            self.transport,
            persist_epoch=lambda epoch: None,
            clock=lambda: self.now,
            pause=lambda seconds: None,
        )

    def lose_lighthouse(self) -> None:
        self.lighthouse_is_up = False
        self.transport.close()

    def join(self, *names: str) -> list[Replica]:
        """New processes; each has joined when this returns."""
        joined = [Replica(self, name, len(self.replicas) + nth) for nth, name in enumerate(names)]
        self.replicas += joined
        for replica in joined:
            replica.join()
        self.settle()
        assert all(replica.requests.done for replica in joined)
        return joined

    def train(self, *replicas: Replica) -> Quorum:
        """One step, committed by all of them."""
        for replica in replicas:
            replica.ask()
        self.settle()
        return self._commit(*replicas)

    def train_with_newcomer(self, newcomer: Replica, *incumbents: Replica) -> Quorum:
        """One step. Incumbents do not wait for one that is not asking yet, so the newcomer asks first."""
        newcomer.ask()
        self.settle()
        for replica in incumbents:
            replica.ask()
        self.settle()
        return self._commit(newcomer, *incumbents)

    @staticmethod
    def _commit(*replicas: Replica) -> Quorum:
        quorum = quorum_of(*replicas)
        for replica in replicas:
            replica.step += 1
        return quorum

    def settle(self) -> None:
        """Let everybody talk until nobody has anything to say at this time."""
        for _ in range(PASSES_MAX):
            if self.lighthouse_is_up:
                self.service.run_once()
            if not sum(replica.turn() for replica in self.replicas):
                break
        else:
            raise AssertionError("they talk without end")
        counters = dict(self.core.snapshot("", self.now).counters)
        assert not counters.keys() & {"errors of the lighthouse itself", "invalid frames"}

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            due = min(replica.next_deadline() for replica in self.replicas)
            self.now = min(max(due, self.now), self.now + TURN_S, end)
            self.settle()

    def advance_until(self, true: Callable[[], bool], limit_s: float = 30.0) -> float:
        """Returns how long it took."""
        start = self.now
        while not true():
            assert self.now < start + limit_s, f"not within {limit_s:g} s"
            self.advance(TURN_S)
        return self.now - start

    def states(self) -> dict[str, MemberState]:
        (job,) = self.core.snapshot(JOB, self.now).jobs
        return {member.replica_id: member.state for member in job.members}


def quorum_of(*replicas: Replica) -> Quorum:
    """All of them are in one quorum of exactly them."""
    first = replicas[0].quorum
    assert first is not None
    assert all(replica.quorum == first for replica in replicas)
    members = sorted((replica.name, replica.incarnation) for replica in replicas)
    assert [(p.replica_id, p.incarnation) for p in first.participants] == members
    return first


def kinds(replica: Replica) -> list[tuple[str, CauseKind]]:
    """The notices it has heard, in short."""
    return [(notice.replica_id, notice.cause.kind) for notice in replica.notices]


@pytest.fixture
def world() -> World:
    return World(min_replicas=2)


def test_those_who_join_train_together_and_nobody_is_called_dead(world: World):
    a, b, c = world.join("a", "b", "c")
    first = world.train(a, b, c)
    world.advance(10.0)
    second = world.train(a, b, c)
    assert second.quorum_id == first.quorum_id, "the same members: the same quorum"
    assert [p.step for p in second.participants] == [1, 1, 1]
    assert set(world.states().values()) == {MemberState.ALIVE}
    assert a.notices == b.notices == c.notices == []


def test_one_who_asks_too_early_waits_for_the_others(world: World):
    (a,) = world.join("a")
    a.ask()
    world.advance(5.0)
    assert a.quorum is None
    assert a.requests.waiting is not None
    (b,) = world.join("b")
    b.ask()
    world.settle()
    quorum_of(a, b)


def test_a_death_is_told_to_all_at_once_and_the_others_go_on(world: World):
    a, b, c = world.join("a", "b", "c")
    quorum = world.train(a, b, c)
    c.die()
    world.settle()
    for survivor in (a, b):
        assert kinds(survivor) == [("c", CauseKind.PROCESS_EXIT)]
        assert survivor.notices[0].cause == KILLED
        assert survivor.aborted == [quorum.quorum_id]
    assert c.session.state is session_module.State.DONE, "buried"
    assert world.train(a, b).quorum_id > quorum.quorum_id
    world.advance(10.0)
    assert len(a.notices) == len(b.notices) == 1


def test_a_host_that_vanishes_is_missed_after_the_grace(world: World):
    a, b, c = world.join("a", "b", "c")
    world.train(a, b, c)
    c.lose_host()
    waited_s = world.advance_until(lambda: bool(a.notices and b.notices))
    assert kinds(a) == kinds(b) == [("c", CauseKind.CONNECTION_LOST)]
    assert waited_s == pytest.approx(SETTINGS.disconnect_grace_s, abs=2 * TURN_S)


def test_a_new_process_of_the_same_name_is_let_in_after_the_death_of_the_former(world: World):
    a, b = world.join("a", "b")
    world.train(a, b)
    b.die()
    (again,) = world.join("b")
    assert again.incarnation > b.incarnation
    world.train(a, again)
    assert len(a.notices) == 1


def test_a_notice_that_is_lost_is_asked_for(world: World):
    a, b, c = world.join("a", "b", "c")
    quorum = world.train(a, b, c)
    a.deaf = True
    c.die()
    world.settle()
    assert (kinds(a), len(b.notices)) == ([], 1)
    a.deaf = False
    world.advance(0.6)
    assert kinds(a) == [("c", CauseKind.PROCESS_EXIT)]
    assert a.aborted == [quorum.quorum_id]


def test_a_lost_answer_is_asked_for_again(world: World):
    a, b = world.join("a", "b")
    a.ask()
    world.settle()
    b.ask()
    world.service.run_once()
    world.network.cut(a.trainer_line)
    world.settle()
    assert (a.quorum is None, b.quorum is None) == (True, False)
    world.network.mend(a.trainer_line)
    world.advance(requests_module.RETRY_LAST_S)
    quorum_of(a, b)


@pytest.mark.parametrize("side", ["trainer_line", "listener_line"])
def test_a_line_that_is_cut_for_less_than_the_grace_costs_nothing(world: World, side: str):
    a, b = world.join("a", "b")
    first = world.train(a, b)
    line: MemoryMember = getattr(a, side)
    world.network.cut(line)
    world.advance(SETTINGS.disconnect_grace_s / 2)
    world.network.mend(line)
    world.advance(5.0)
    assert world.train(a, b).quorum_id == first.quorum_id
    assert b.notices == []


def test_what_a_listener_missed_while_its_line_was_cut_it_hears_afterwards(world: World):
    a, b, c = world.join("a", "b", "c")
    world.train(a, b, c)
    world.network.cut(a.listener_line)
    c.die()
    world.settle()
    assert a.notices == []
    world.network.mend(a.listener_line)
    world.advance(0.6)
    assert kinds(a) == [("c", CauseKind.PROCESS_EXIT)]


def test_one_that_was_cut_off_for_too_long_comes_back_as_another(world: World):
    a, b, c = world.join("a", "b", "c")
    first = world.train(a, b, c)
    before = c.incarnation
    world.network.cut(c.listener_line)
    world.advance(2 * SETTINGS.disconnect_grace_s)
    assert kinds(a) == kinds(b) == [("c", CauseKind.CONNECTION_LOST)]
    world.network.mend(c.listener_line)
    world.advance(1.0)
    assert [end.incarnation for end in c.ends] == [before]
    quorum = world.train_with_newcomer(c, a, b)
    assert c.incarnation > before
    assert quorum.quorum_id > first.quorum_id


@pytest.mark.parametrize(
    ("epoch", "restarted"), [(EPOCH + 1, True), (EPOCH - 900, False)], ids=["with state", "without state"]
)
def test_a_lighthouse_that_restarts_in_mid_training_fails_nobody(world: World, epoch: int, restarted: bool):
    members = world.join("a", "b", "c")
    before = world.train(*members)
    lives = [member.incarnation for member in members]
    world.lose_lighthouse()
    world.advance(0.5)
    world.start_lighthouse(epoch, restarted=restarted)
    world.advance(5.0)
    after = world.train(*members)
    assert world.core.epoch > EPOCH, "no id is ever given a second time"
    assert after.quorum_id > before.quorum_id
    assert [member.incarnation for member in members] == lives
    assert all(member.notices == member.ends == member.aborted == [] for member in members)


def test_a_lighthouse_that_restarts_while_all_wait_forms_their_quorum(world: World):
    a, b = world.join("a", "b")
    first = world.train(a, b)
    a.ask()
    world.settle()
    world.lose_lighthouse()
    b.ask()
    world.advance(1.0)
    assert a.quorum is b.quorum is None
    world.start_lighthouse(EPOCH + 1, restarted=True)
    world.advance_until(lambda: bool(a.quorum and b.quorum))
    assert quorum_of(a, b).quorum_id > first.quorum_id
    assert a.notices == b.notices == []


def test_a_lighthouse_may_restart_twice_and_lose_its_state_between(world: World):
    members = world.join("a", "b")
    ids = [world.train(*members).quorum_id]
    for epoch in (EPOCH + 50, 7):
        world.lose_lighthouse()
        world.start_lighthouse(epoch, restarted=epoch > EPOCH)
        world.advance(3.0)
        ids.append(world.train(*members).quorum_id)
    assert ids == sorted(set(ids))
    assert all(member.notices == member.ends == [] for member in members)


def test_a_lighthouse_that_hangs_and_goes_on_blames_nobody(world: World):
    """It answers nobody and hangs up on nobody: all connect afresh, and are the same as before."""
    a, b = world.join("a", "b")
    first = world.train(a, b)
    a.ask()
    world.lighthouse_is_up = False
    world.advance(5.0)
    assert a.quorum is None
    world.lighthouse_is_up = True
    world.settle()
    b.ask()
    world.advance(1.0)
    assert quorum_of(a, b).quorum_id == first.quorum_id
    assert a.notices == b.notices == a.ends == b.ends == []


def test_one_that_vanished_with_the_lighthouse_is_missed_by_the_next(world: World):
    a, b, c = world.join("a", "b", "c")
    quorum = world.train(a, b, c)
    world.lose_lighthouse()
    c.lose_host()
    world.advance(0.5)
    world.start_lighthouse(EPOCH + 1, restarted=True)
    waited_s = world.advance_until(lambda: bool(a.notices and b.notices))
    assert kinds(a) == kinds(b) == [("c", CauseKind.LOST_IN_RESTART)]
    assert waited_s < 2 * SETTINGS.heartbeat_timeout_s + 0.5
    assert a.aborted == b.aborted == [quorum.quorum_id]
    world.train(a, b)


def test_one_that_dies_while_there_is_no_lighthouse_is_buried_by_the_next(world: World):
    a, b, c = world.join("a", "b", "c")
    world.train(a, b, c)
    world.lose_lighthouse()
    c.die()
    world.advance(1.0)
    assert c.session.state is session_module.State.BURYING
    world.start_lighthouse(EPOCH + 1, restarted=True)
    world.advance(3.0)
    assert c.session.state is session_module.State.DONE
    assert [notice.replica_id for notice in a.notices] == ["c"]
    assert kinds(a) == kinds(b)
    world.train(a, b)


def test_a_stopped_trainer_is_left_behind_and_comes_back_as_another(world: World):
    a, b, c = world.join("a", "b", "c")
    first = world.train(a, b, c)
    before = c.incarnation
    c.stopped = True
    waited_s = world.advance_until(lambda: bool(a.notices and b.notices))
    assert waited_s == pytest.approx(SETTINGS.heartbeat_timeout_s, abs=0.3)
    assert kinds(a) == kinds(b) == [("c", CauseKind.STOPPED)]
    assert a.aborted == b.aborted == [first.quorum_id]
    second = world.train(a, b)
    world.advance(3.0)
    c.stopped = False
    world.advance(1.0)
    assert [(end.incarnation, end.cause.kind) for end in c.ends] == [(before, CauseKind.STOPPED)]
    third = world.train_with_newcomer(c, a, b)
    assert c.incarnation > before
    assert first.quorum_id < second.quorum_id < third.quorum_id
    assert len(a.notices) == len(b.notices) == 1


def test_a_pause_shorter_than_the_timeout_is_no_failure(world: World):
    a, b = world.join("a", "b")
    first = world.train(a, b)
    b.stopped = True
    world.advance(SETTINGS.heartbeat_timeout_s / 2)
    b.stopped = False
    world.advance(3.0)
    assert world.train(a, b).quorum_id == first.quorum_id
    assert a.notices == []


def test_a_departure_is_told_and_is_no_failure(world: World):
    a, b, c = world.join("a", "b", "c")
    quorum = world.train(a, b, c)
    c.leave()
    world.settle()
    c.say_farewell()
    world.advance(5.0)
    assert world.states()["c"] is MemberState.LEFT
    for survivor in (a, b):
        assert kinds(survivor) == [("c", CauseKind.LEFT)]
        assert survivor.notices[0].step == 1
        assert survivor.aborted == [quorum.quorum_id], "it left with no step more than ours"
    assert c.ends == []
    world.train(a, b)


def test_one_that_left_a_step_ahead_ends_nothing(world: World):
    a, b, c = world.join("a", "b", "c")
    world.train(a, b, c)
    c.step += 1
    c.leave()
    world.settle()
    assert kinds(a) == kinds(b) == [("c", CauseKind.LEFT)]
    assert a.aborted == b.aborted == []


def test_an_exit_with_code_0_is_a_departure(world: World):
    a, b, c = world.join("a", "b", "c")
    world.train(a, b, c)
    c.die(Cause(CauseKind.PROCESS_EXIT, exit_code=0))
    world.advance(1.0)
    assert kinds(a) == kinds(b) == [("c", CauseKind.LEFT)]
    assert c.session.state is session_module.State.DONE


def test_a_waiting_request_survives_the_death_of_another(world: World):
    a, b, c = world.join("a", "b", "c")
    world.train(a, b, c)
    a.ask()
    b.ask()
    world.settle()
    assert a.quorum is b.quorum is None
    c.die()
    world.settle()
    quorum_of(a, b)


def test_one_that_does_not_come_is_left_out_told_and_let_in_again(world: World):
    a, b, c = world.join("a", "b", "c")
    first = world.train(a, b, c)
    a.ask()
    b.ask()
    waited_s = world.advance_until(lambda: bool(a.quorum and b.quorum))
    assert waited_s == pytest.approx(SETTINGS.join_timeout_s, abs=2 * TURN_S)
    second = quorum_of(a, b)
    assert c.left_out == [second.quorum_id]
    assert a.notices == b.notices == c.ends == []
    third = world.train_with_newcomer(c, a, b)
    assert first.quorum_id < second.quorum_id < third.quorum_id
