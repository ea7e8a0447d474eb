"""Lighthouse and trainers on one stage, all of them real, in virtual time.

The lighthouse is its service and core; a trainer its requests, its listener's session and its fence. Between
them are frames as on the wire, carried by ``adapters/memory``. What a test adds is the plot: who asks, who
dies, which line is cut. ``Stage.advance`` moves the clock to whatever is due next, and lets everybody talk
until all is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from procguard import codec
from procguard.adapters.memory import MemoryMember, MemoryNetwork
from procguard.client import session as listening
from procguard.client.abort import FencedAbort
from procguard.client.link_words import Enrol, Farewell, Heard, InQuorum, LastWords, LeftOut, Over, Ready
from procguard.client.requests import Reborn, Reconnect, Requests, Send
from procguard.client.session import Session
from procguard.lighthouse.core import Core
from procguard.lighthouse.roster import Options
from procguard.lighthouse.service import Service
from procguard.messages import (
    Cause,
    Claim,
    Hello,
    Incarnation,
    JobView,
    MemberView,
    Message,
    Notice,
    Phase,
    Process,
    Quorum,
    QuorumClaim,
    listener_topic,
)
from tests.client.fakes import EPOCH, JOB, KILLED, SETTINGS, Clock, FakeCheckpoints, FakeGroup, participant

TICK_S = 0.05
"""Half a heartbeat interval: the service looks at its clock no less often."""
PATIENCE_S = 10.0
ASK_S = 600.0


class Wire:
    """One connection of a trainer. It can die without a word: frames vanish until it is made anew."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.end: MemoryMember = network.member()
        self.is_dead = False
        self.lost: tuple[type, ...] = ()
        """Messages of these kinds are lost on their way here, while the connection lives."""
        self.reconnects = 0

    def send(self, message: Message) -> None:
        if not self.is_dead:
            self.end.send(codec.encode(message))

    def receive(self) -> Iterable[Message]:
        return self._take(self.end.receive(1_000))

    def published(self) -> Iterable[Message]:
        return self._take(frame.partition(b"\0")[2] for frame in self.end.notices(1_000))

    def _take(self, frames: Iterable[bytes]) -> list[Message]:
        messages = [codec.decode(frame) for frame in frames]
        return [m for m in messages if not self.is_dead and not isinstance(m, self.lost)]

    def reconnect(self) -> None:
        self.reconnects += 1
        self.is_dead = False
        self.end.reconnect()


class Listener:
    """A session with its connection. It is told and heard at once, as over a link."""

    def __init__(self, trainer: Trainer, number: int, *, proactive: bool) -> None:
        self.trainer = trainer
        self.wire = Wire(trainer.stage.network)
        topic = listener_topic(f"{trainer.name} {number}".encode())
        self.session = Session(threaded=False, topic=topic, hear_notices=proactive)
        self.is_ready = False

    def step(self, event: listening.Event) -> None:
        for effect in self.session.step(event, self.trainer.stage.clock()):
            if isinstance(effect, listening.Send):
                self.wire.send(effect.message)
            elif isinstance(effect, listening.Listen):
                self.wire.end.listen(effect.notice_port, effect.topics)
            elif isinstance(effect, listening.Reconnect):
                self.wire.reconnect()
            elif isinstance(effect.message, Ready):
                self.is_ready = True
            else:
                self.trainer.hear(effect.message)

    def tell(self, message: Enrol | InQuorum | LastWords | Farewell) -> None:
        self.step(listening.Told(message))

    def pump(self) -> bool:
        arrived: list[listening.Event] = [listening.Received(message) for message in self.wire.receive()]
        arrived += [listening.Published(message) for message in self.wire.published()]
        for event in arrived:
            self.step(event)
        if self.trainer.stage.clock() >= self.session.next_deadline():
            self.step(listening.TimePassed(self.trainer.seen))
            return True
        return bool(arrived)


class Trainer:
    """One process: it asks when the test says so, and its listener does the rest.

    ``name`` is its replica id, or ``job:replica_id`` in another job than ``JOB``. ``said`` are fields of its
    Hello.
    """

    def __init__(self, stage: Stage, name: str, *, proactive: bool = True, **said: Any) -> None:
        self.stage = stage
        self.name = name
        job, _, self.replica_id = name.rpartition(":")
        self.proactive = proactive
        number = stage.next_number()
        self.process = Process("host", "boot", number, 7 * number)
        token = f"token {number:010d}".encode()
        hello = Hello(job or JOB, self.replica_id, token, self.process, 0, 1, "", None, b"", "", 0, 1, 0.0)
        self.hello = hello._replace(**said)
        self.requests = Requests(self.hello)
        self.wire = Wire(stage.network)
        self.listener: Listener | None = None
        self.seen = listening.Trainer(Phase.COMPUTE)
        self.is_running = True
        self.pg = FakeGroup()
        self.abort = FencedAbort(
            self.replica_id, self.pg, FakeCheckpoints(), lambda: self.seen.step, self._call_later
        )
        self.told: list[Notice] = []
        self.abort.on_failure(self.told.append)
        self.lives: list[Incarnation] = []
        self.over: Over | None = None
        self.round = 0
        self.installed: Quorum | None = None
        """The last quorum that the fence has let in."""
        self._enrolled: Enrol | None = None
        self._in_quorum: InQuorum | None = None

    @property
    def incarnation(self) -> Incarnation:
        return self.lives[-1]

    # --- what it does

    def join(self) -> None:
        self._perform(self.requests.join(self.stage.clock()))

    def ask(self) -> None:
        """Begin a step."""
        self.abort.begin_round()
        self._ask(0)

    def _ask(self, broken: int) -> None:
        self.round += 1
        if self.over is not None:
            self._perform(self.requests.life_is_over(self.over.incarnation, self.over.epoch))
        asks = participant(self.replica_id, 0, round=self.round, step=self.seen.step, commit_failures=broken)
        self._perform(self.requests.ask(asks, ASK_S, self.stage.clock()))

    def commit(self) -> None:
        self.seen = self.seen._replace(step=self.seen.step + 1)

    def does(self, phase: Phase) -> None:
        """From now on, which is a sign of progress."""
        self.seen = self.seen._replace(phase=phase, progress=self.seen.progress + 1)

    def leave(self) -> None:
        self._perform(self.requests.leave(self.seen.step, self.stage.clock()))
        self.stage.settle()
        assert self.requests.done, "the departure is acknowledged"
        assert self.listener is not None
        self.listener.tell(Farewell())
        self.vanish()

    def die(self, cause: Cause = KILLED) -> None:
        """The process ends; its listener lives to tell."""
        assert self.listener is not None
        self.is_running = False
        self.wire.end.close()
        self.listener.step(listening.Died(cause, self.seen.step))

    def vanish(self) -> None:
        """Process and listener end at once, as with their host."""
        self.is_running = False
        self.wire.end.close()
        if self.listener is not None:
            self.listener.wire.end.close()
        self.stage.trainers.pop(self.name, None)

    def stop(self) -> None:
        self.is_running = False
        self.seen = self.seen._replace(stopped=True)

    def go_on(self) -> None:
        self.is_running = True
        self.seen = self.seen._replace(stopped=False)

    def start_listener(self) -> Listener:
        """The first one, or another in the place of one that has ended."""
        if self.listener is not None:
            self.listener.wire.end.close()
        self.listener = Listener(self, self.stage.next_number(), proactive=self.proactive)
        for message in (self._enrolled, self._in_quorum):
            if message is not None:
                self.listener.tell(message)
        return self.listener

    # --- what it hears

    def hear(self, message: object) -> None:
        if isinstance(message, Heard):
            self.abort.hear(message.epoch, message.notices)
        elif isinstance(message, Over):
            self.over = message
            self.abort.over(message.epoch, message.incarnation, message.cause)
        elif isinstance(message, LeftOut):
            self.abort.left_out(message.quorum_id)

    def pump(self) -> bool:
        """Take in what has come; whether there was anything."""
        busy = self.listener is not None and self.listener.pump()
        if not self.is_running:
            return busy
        for message in self.wire.receive():
            busy = True
            self._perform(self.requests.receive(message, self.stage.clock()))
        if self.stage.clock() >= self.requests.next_deadline():
            busy = True
            self._perform(self.requests.time_passed(self.stage.clock()))
        return busy

    def next_deadline(self) -> float:
        deadlines = [self.listener.session.next_deadline()] if self.listener else []
        return min([*deadlines, *([self.requests.next_deadline()] if self.is_running else [])])

    def _perform(self, effects: Iterable[object]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self.wire.send(effect.message)
            elif isinstance(effect, Reconnect):
                self.wire.reconnect()
            elif isinstance(effect, Reborn):
                self._be_born(effect)
        quorum = self.requests.quorum
        if quorum is not None and self.requests.done and quorum is not self.installed:
            self._install(quorum)

    def _be_born(self, reborn: Reborn) -> None:
        welcome = reborn.welcome
        self.lives.append(welcome.incarnation)
        claimed = self.hello._replace(claim=Claim(welcome.incarnation, None), epoch=welcome.epoch)
        self._enrolled = Enrol(claimed, welcome.notice_port, welcome.seq, welcome.settings, "")
        self._in_quorum = self.over = None
        if self.listener is None:
            self.start_listener()
        else:
            self.listener.tell(self._enrolled)

    def _install(self, quorum: Quorum) -> None:
        members = tuple([(p.replica_id, p.incarnation) for p in quorum.participants])
        self._in_quorum = InQuorum(self.requests.epoch, QuorumClaim(quorum.quorum_id, members))
        assert self.listener is not None
        self.listener.tell(self._in_quorum)
        if self.abort.install(quorum):
            self.installed = quorum
        else:
            self._ask(1)

    def _call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        self.stage.later.append((self.stage.clock() + delay_s, call))


class Stage:
    """One lighthouse, its trainers by name, the clock."""

    def __init__(self, min_replicas: int = 1) -> None:
        self.clock = Clock()
        self.network = MemoryNetwork()
        self._min_replicas = min_replicas
        self._is_hanging = False
        self.trainers: dict[str, Trainer] = {}
        self.later: list[tuple[float, Callable[[], None]]] = []
        self._numbers = 0
        self.start_lighthouse(EPOCH)

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def start_lighthouse(self, epoch: int, *, restarted: bool = False) -> None:
        self._ear = self.network.lighthouse()
        options = Options(SETTINGS, self._min_replicas, self._ear.notice_port, restarted)
        self.core = Core(options, epoch, self.clock())
        self.service: Service | None = Service(
            self.core, self._ear, lambda epoch: None, self.clock, pause=lambda seconds: None
        )

    def kill_lighthouse(self) -> None:
        self.service = None
        self._ear.close()

    def restart_lighthouse(self, epoch: int | None = None) -> None:
        """With its state directory; or, given an epoch, without."""
        self.kill_lighthouse()
        self.start_lighthouse(epoch or self.core.epoch + 1, restarted=epoch is None)

    def hang_lighthouse(self, seconds: float) -> None:
        """It answers nobody, and hangs up on nobody."""
        self._is_hanging = True
        self.advance(seconds)
        self._is_hanging = False

    def add(self, *names: str, proactive: bool = True, **said: Any) -> None:
        """New processes join, and beat."""
        for name in names:
            trainer = Trainer(self, name, proactive=proactive, **said)
            self.trainers[name] = trainer
            trainer.join()
        self.settle()

    def __getitem__(self, name: str) -> Trainer:
        return self.trainers[name]

    def settle(self) -> None:
        """Let all talk until there is nothing left to say at this moment."""
        for _ in range(1_000):
            if self.service is not None and not self._is_hanging:
                self.service.run_once()
            busy = [trainer.pump() for trainer in tuple(self.trainers.values())]
            if not any(busy):
                bugs = {"errors of the lighthouse itself", "invalid frames"}
                assert not bugs & dict(self.core.snapshot("", self.clock()).counters).keys()
                return
        raise AssertionError("they never stop talking")

    def advance(self, seconds: float) -> None:
        end = self.clock() + seconds
        while True:
            self.settle()
            if self.clock() >= end:
                return
            due = [trainer.next_deadline() for trainer in self.trainers.values()]
            self.clock.now = max(self.clock(), min([*due, self.clock() + TICK_S, end]))
            for when, call in tuple(self.later):
                if when <= self.clock():
                    self.later.remove((when, call))
                    call()

    def advance_until(self, what: Callable[[], bool]) -> None:
        """Until ``what()`` is true, which must not take long."""
        give_up_at = self.clock() + PATIENCE_S
        while not what():
            assert self.clock() < give_up_at, "it has not come to pass"
            self.advance(TICK_S)

    def quorum(self, *names: str, among: tuple[str, ...] | None = None) -> Quorum:
        """These ask, and within short get a quorum of ``among`` (themselves); which they then use."""
        for name in names:
            self[name].ask()
        self.settle()
        return self.await_quorum(*names, among=among)

    def await_quorum(self, *names: str, among: tuple[str, ...] | None = None) -> Quorum:
        waiting = [self[name] for name in names]

        def stands() -> bool:
            return all(t.installed is not None and t.installed is t.requests.quorum for t in waiting)

        self.advance_until(stands)
        formed = [t.installed for t in waiting]
        assert formed[0] is not None
        assert formed == [formed[0]] * len(formed), "all have the same"
        members = [(p.replica_id, p.incarnation) for p in formed[0].participants]
        trainers = [self[name] for name in sorted(among or names)]
        assert members == [(trainer.replica_id, trainer.incarnation) for trainer in trainers]
        return formed[0]

    def job(self, job_id: str = JOB) -> JobView:
        (job,) = self.core.snapshot(job_id, self.clock()).jobs
        return job

    def member(self, name: str) -> MemberView:
        job_id, _, replica_id = name.rpartition(":")
        return next(m for m in self.job(job_id or JOB).members if m.replica_id == replica_id)

    def wires(self) -> Iterator[Wire]:
        """Of each trainer its own, then its listener's."""
        for trainer in self.trainers.values():
            yield trainer.wire
            assert trainer.listener is not None
            yield trainer.listener.wire

    def nobody_was_told(self) -> None:
        assert [trainer.told for trainer in self.trainers.values()] == [[] for _ in self.trainers]
        assert all(len(trainer.lives) == 1 for trainer in self.trainers.values()), "nor reborn"
