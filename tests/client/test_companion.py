"""The failure thread, turn by turn: which hosts there are, what they are told, and who hears what they say.

Hosts are links whose other ends the test holds; the clock is the test's. Two tests run the thread itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from procguard.client.companion import RESPAWN_LAST_S, RESPAWN_NEXT_S, STABLE_S, Companion
from procguard.client.link import Link, link_pair
from procguard.client.link_words import (
    Farewell,
    Heard,
    InQuorum,
    LastWords,
    LeftOut,
    LinkMessage,
    Over,
    Ready,
    Said,
)
from procguard.messages import Cause, Incarnation, Notice, QuorumClaim, QuorumId
from tests.client.fakes import DEADLINE_S, EPOCH, STOPPED, Clock, enrol, life, notice

IN_QUORUM = InQuorum(EPOCH, QuorumClaim(QuorumId(EPOCH, 1), (("a", life(1)),)))


class FakeHost:
    """A session whose part the test plays at ``session``."""

    def __init__(self, pid: int | None) -> None:
        ours, theirs = link_pair()
        self.link, self.session = Link(ours), Link(theirs)
        self.pid = pid
        self.is_closed = False

    def close(self) -> None:
        assert not self.is_closed, "sent home twice"
        self.is_closed = True
        self.link.send(Farewell())
        self.link.close()

    def ended_with(self) -> str:
        return "exit code 7"

    def heard(self) -> list[LinkMessage] | None:
        return self.session.receive()

    def end(self) -> None:
        self.session.close()


class Hearing:
    """What the Manager is told."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.news = threading.Condition()

    def hear(self, epoch: int, notices: tuple[Notice, ...]) -> None:
        self._note((epoch, notices))

    def over(self, epoch: int, incarnation: Incarnation, cause: Cause) -> None:
        self._note((epoch, incarnation, cause))

    def left_out(self, quorum_id: QuorumId) -> None:
        self._note(quorum_id)

    def _note(self, what: object) -> None:
        with self.news:
            self.told.append(what)
            self.news.notify_all()


class Stage:
    """A companion that is turned by hand; ``threads`` and ``processes`` are the hosts started so far."""

    def __init__(self, *, proactive: bool = True) -> None:
        self.clock = Clock()
        self.hears = Hearing()
        self.threads: list[FakeHost] = []
        self.processes: list[FakeHost] = []
        self.failures: list[Exception] = []
        self.companion = Companion(
            self._start_thread, self._start_process if proactive else None, self.hears, self.clock
        )

    def _start_thread(self) -> FakeHost:
        return self._start(self.threads, None)

    def _start_process(self) -> FakeHost:
        return self._start(self.processes, 1_000 + len(self.processes))

    def _start(self, hosts: list[FakeHost], pid: int | None) -> FakeHost:
        if self.failures:
            raise self.failures.pop()
        hosts.append(FakeHost(pid))
        return hosts[-1]

    def begin(self) -> Stage:
        """Enrolled, without the thread; the listener process is started and not yet ready."""
        self.companion.enrol(enrol())
        self.turn()
        return self

    def ready(self) -> Stage:
        """Both are there, and the process is ready."""
        self.begin()
        self.processes[-1].session.send(Ready())
        self.turn()
        return self

    def turn(self) -> None:
        self.companion.call_later(0.0, lambda: None)  # so that no turn waits for long
        self.companion.turn()

    def turns(self, count: int = 3) -> None:
        for _ in range(count):
            self.turn()


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    finish(stage)


@pytest.fixture
def threaded() -> Iterator[Stage]:
    """Proactive recovery is off."""
    stage = Stage(proactive=False)
    yield stage
    finish(stage)


def finish(stage: Stage) -> None:
    stage.companion.close()
    stage.companion._run()  # what is left of it for the thread to do
    for host in stage.threads + stage.processes:
        host.link.close()
        host.session.close()


# --- who is there -------------------------------------------------------------------------------------


def test_a_thread_beats_until_the_process_is_ready(stage: Stage) -> None:
    stage.begin()
    assert (len(stage.threads), len(stage.processes)) == (1, 1)
    assert not stage.threads[0].is_closed
    stage.processes[0].session.send(Ready())
    stage.turns()
    assert stage.threads[0].is_closed
    assert stage.threads[0].heard() == [enrol(), Farewell()]
    assert (len(stage.threads), len(stage.processes)) == (1, 1)


def test_without_proactive_recovery_no_process_is_ever_started(threaded: Stage) -> None:
    threaded.begin()
    threaded.threads[0].session.send(Ready())
    threaded.turns()
    assert threaded.processes == []
    assert not threaded.threads[0].is_closed
    assert threaded.companion.listening_pids == []


def test_when_the_process_ends_a_thread_beats_at_once_and_another_process_is_started(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.ready()
    assert stage.companion.listening_pids == [1_000]
    stage.processes[0].end()
    stage.turn()
    assert (len(stage.threads), len(stage.processes)) == (2, 2)
    assert "listener process has ended (exit code 7)" in caplog.text
    assert stage.companion.listening_pids == [1_001]
    stage.processes[1].session.send(Ready())
    stage.turn()
    assert stage.threads[1].is_closed


def test_a_process_that_lives_and_does_nothing_is_replaced(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.ready()
    stage.companion.replace_listener()
    stage.turn()
    assert stage.processes[0].is_closed
    assert (len(stage.threads), len(stage.processes)) == (2, 2), "a thread beats meanwhile"
    assert stage.companion.listening_pids == [1_001]
    assert "listener process (pid 1000) did not beat" in caplog.text


def test_without_a_process_there_is_none_to_replace(threaded: Stage) -> None:
    threaded.begin()
    threaded.companion.replace_listener()
    threaded.turns()
    assert len(threaded.threads) == 1
    assert not threaded.threads[0].is_closed


def test_a_process_that_ends_before_it_was_ready_leaves_the_thread_alone(stage: Stage) -> None:
    stage.begin()
    stage.processes[0].end()
    stage.turns()
    assert len(stage.threads) == 1
    assert not stage.threads[0].is_closed


def test_a_thread_that_ends_is_replaced(stage: Stage) -> None:
    stage.begin()
    stage.threads[0].end()
    stage.turns()
    assert len(stage.threads) == 2
    assert len(stage.processes) == 1


def test_the_thread_may_speak_and_end_in_the_very_turn_in_which_it_is_sent_home(stage: Stage) -> None:
    """Both links are readable at once, and the selector names them in an order of its own."""
    stage.begin()
    stage.threads[0].session.send(Said(20, "last"))
    stage.threads[0].end()
    stage.processes[0].session.send(Ready())
    stage.turns()
    assert len(stage.threads) <= 2
    assert all(thread.is_closed or thread.heard() is None for thread in stage.threads)
    assert not stage.processes[0].is_closed


def test_a_process_that_dies_in_the_moment_it_is_ready_is_survived(stage: Stage) -> None:
    stage.begin()
    stage.processes[0].session.send(Ready())
    stage.processes[0].end()
    stage.turns()
    assert len(stage.threads) == 2
    assert not stage.threads[1].is_closed


def test_processes_that_keep_ending_are_started_ever_more_rarely(stage: Stage) -> None:
    stage.begin()
    pauses = []
    for _ in range(8):
        before, count = stage.clock.now, len(stage.processes)
        stage.processes[-1].end()
        stage.turn()
        while len(stage.processes) == count:
            stage.clock.advance(0.5)
            stage.turn()
        pauses.append(stage.clock.now - before)
    assert pauses == [0.0, RESPAWN_NEXT_S, 2.0, 4.0, 8.0, 16.0, RESPAWN_LAST_S, RESPAWN_LAST_S]
    stage.clock.advance(STABLE_S + 1)
    count = len(stage.processes)
    stage.processes[-1].end()
    stage.turns()
    assert len(stage.processes) == count + 1, "it had been stable"


def test_a_host_that_cannot_be_started_is_tried_again_later(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.failures = [OSError("too many processes"), RuntimeError("can't start new thread")]
    stage.companion.enrol(enrol())
    stage.turn()
    assert "session in a thread could not be started" in caplog.text
    assert "listener process could not be started, trying again: too many processes" in caplog.text
    stage.turn()
    assert (len(stage.threads), len(stage.processes)) == (1, 1), "the first time at once"
    stage.failures = [OSError("again")] * 2
    stage.processes[0].end()
    stage.turns()
    assert len(stage.failures) == 2, "now it waits"


@pytest.mark.parametrize("news", ["ready", "ended", "not started"])
def test_who_waits_for_the_listener_goes_on_when_there_is_news_of_it(
    stage: Stage, news: str, caplog: pytest.LogCaptureFixture
) -> None:
    if news == "not started":
        stage.failures = [OSError("too many processes")] * 2
    stage.begin()
    if news == "ready":
        stage.processes[0].session.send(Ready())
    elif news == "ended":
        stage.processes[0].end()
    stage.turns()
    stage.companion.await_listener(0.0)
    assert "is not ready" not in caplog.text


def test_who_waits_for_the_listener_in_vain_goes_on_and_says_so_once(
    stage: Stage, threaded: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.begin()
    threaded.begin().companion.await_listener(0.0)
    assert "is not ready" not in caplog.text, "there will be none"
    for _ in range(2):
        stage.companion.await_listener(0.0)
    assert caplog.text.count("listener process is not ready after 0 s") == 1


# --- what they are told -------------------------------------------------------------------------------


def test_a_new_host_hears_what_the_others_know(stage: Stage) -> None:
    stage.ready()
    stage.companion.enrol(enrol(2))
    stage.companion.in_quorum(IN_QUORUM)
    assert stage.processes[0].heard() == [enrol(), enrol(2), IN_QUORUM]
    stage.processes[0].end()
    stage.turn()
    assert stage.threads[1].heard() == stage.processes[1].heard() == [enrol(2), IN_QUORUM]


def test_a_new_life_has_no_quorum(stage: Stage) -> None:
    stage.ready()
    stage.companion.in_quorum(IN_QUORUM)
    stage.companion.enrol(enrol(2))
    stage.processes[0].end()
    stage.turn()
    assert stage.threads[1].heard() == [enrol(2)]
    stage.companion.in_quorum(IN_QUORUM)
    assert stage.threads[1].heard() == [IN_QUORUM]


def test_the_same_quorum_is_not_said_again_at_each_step(stage: Stage) -> None:
    stage.ready()
    for _ in range(5):
        stage.companion.in_quorum(IN_QUORUM)
    stage.companion.tell(LastWords("end"))
    assert stage.processes[0].heard() == [enrol(), IN_QUORUM, LastWords("end")]


def test_one_that_does_not_read_is_replaced(stage: Stage) -> None:
    """A stopped listener: nothing but its full socket tells."""
    stage.ready()
    stage.processes[0].link._end.settimeout(0.01)
    while stage.processes[0].link.send(LastWords("x" * 4000)):
        pass
    stage.turn()
    assert (len(stage.threads), len(stage.processes)) == (2, 2)


# --- what they say ------------------------------------------------------------------------------------


def test_what_a_session_says_is_brought_to_the_manager(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.begin()
    assert stage.companion.over is None
    for message in (
        Heard(EPOCH, (notice("b"), notice("c"))),
        Over(EPOCH, life(1), STOPPED),
        LeftOut(QuorumId(EPOCH, 3)),
        Said(30, "the lighthouse is silent"),
    ):
        stage.threads[0].session.send(message)
    stage.turns()
    assert stage.hears.told == [
        (EPOCH, (notice("b"), notice("c"))),
        (EPOCH, life(1), STOPPED),
        QuorumId(EPOCH, 3),
    ]
    assert "the lighthouse is silent" in caplog.text
    assert stage.companion.over == Over(EPOCH, life(1), STOPPED)


def test_calls_are_made_when_they_are_due_and_in_order(stage: Stage) -> None:
    stage.begin()
    called: list[str] = []
    stage.companion.call_later(0.3, lambda: called.append("late"))
    stage.companion.call_later(0.1, lambda: called.append("early"))
    stage.turn()
    assert called == []
    stage.clock.advance(0.3)
    stage.turn()
    assert called == ["early", "late"]


# --- the thread itself --------------------------------------------------------------------------------


def test_the_thread_hears_until_it_is_closed() -> None:
    stage = Stage()
    stage.companion.start(enrol())
    stage.threads[0].session.send(Heard(EPOCH, (notice("b"),)))
    with stage.hears.news:
        assert stage.hears.news.wait_for(lambda: stage.hears.told, DEADLINE_S)
    stage.companion.close()
    assert all(host.is_closed for host in stage.threads + stage.processes)
    stage.companion.call_later(0.0, lambda: None)  # too late, and no harm
    stage.companion.tell(LastWords("nobody hears it"))
    for host in stage.threads + stage.processes:
        host.session.close()


def test_the_failure_thread_may_close_it_itself() -> None:
    """An ``on_failure`` callback that shuts the Manager down."""
    stage = Stage(proactive=False)
    closed = threading.Event()

    class Closes(Hearing):
        def hear(self, epoch: int, notices: tuple[Notice, ...]) -> None:
            stage.companion.close()
            closed.set()

    stage.companion._hears = Closes()
    stage.companion.start(enrol())
    stage.threads[0].session.send(Heard(EPOCH, (notice("b"),)))
    assert closed.wait(DEADLINE_S)
    stage.companion.close()
    assert stage.threads[0].is_closed
    stage.threads[0].session.close()


def test_in_a_forked_child_the_links_are_dropped_without_a_word() -> None:
    stage = Stage().ready()
    stage.companion.disown()
    assert stage.processes[0].heard() == [enrol()]
    assert stage.processes[0].heard() is None
    stage.companion._selector.close()  # which the child leaves alone: it shares it with its parent
    for host in stage.threads + stage.processes:
        host.session.close()
