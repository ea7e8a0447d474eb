"""Who is aborted by what, and who is told: the fence with a process group and a transport attached."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from procguard.client import abort as abort_module
from procguard.client.abort import FencedAbort
from procguard.client.fence import DEPARTURE_GRACE_S
from procguard.messages import Notice, QuorumId
from tests.client.fakes import (
    EPOCH,
    LEFT,
    STOPPED,
    FakeCheckpoints,
    FakeGroup,
    life,
    notice,
    participant,
    quorum,
)

PAIR = quorum(1, participant("a", 1), participant("b", 2))
NEXT = quorum(2, participant("a", 1), participant("c", 3))


class Stage:
    """A fenced abort of replica ``a`` at ``step``; ``later`` holds the calls that are due later."""

    def __init__(self) -> None:
        self.pg = FakeGroup()
        self.transport = FakeCheckpoints()
        self.step = 0
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.abort = FencedAbort(
            "a",
            self.pg,
            self.transport,
            lambda: self.step,
            lambda delay, call: self.later.append((delay, call)),
        )
        self.told: list[Notice] = []
        self.abort.on_failure(self.told.append)

    def hear(self, *notices: Notice, epoch: int = EPOCH) -> None:
        self.abort.hear(epoch, notices)

    def let_time_pass(self) -> None:
        for _, call in self.later:
            call()


@pytest.fixture
def stage() -> Stage:
    stage = Stage()
    assert stage.abort.install(PAIR)
    return stage


def test_a_failure_aborts_collectives_and_transfers_and_is_told(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.hear(notice("b", 2))
    assert stage.pg.aborted == [PAIR.quorum_id.packed]
    assert stage.transport.is_aborted
    assert stage.told == stage.abort.failures() == [notice("b", 2)]
    assert "Peer failure received: replica b, killed by SIGKILL (incarnation 1000.2)" in caplog.text


def test_a_failure_elsewhere_is_only_told(stage: Stage) -> None:
    stage.hear(notice("c", 3))
    assert stage.pg.aborted == []
    assert not stage.transport.is_aborted
    assert stage.told == [notice("c", 3)]


def test_each_failure_is_told_once_however_often_it_is_heard(stage: Stage) -> None:
    stage.hear(notice("b", 2), notice("c", 3))
    stage.hear(notice("b", 2), notice("c", 3))
    stage.hear(notice("b", 7))
    assert stage.told == [notice("b", 2), notice("c", 3), notice("b", 7)]


def test_whichever_of_notice_and_quorum_comes_first() -> None:
    stage = Stage()
    stage.hear(notice("b", 2))
    assert not stage.abort.install(PAIR)
    assert stage.pg.aborted == []
    assert stage.abort.install(NEXT)


def test_between_rounds_nothing_is_aborted(stage: Stage) -> None:
    stage.abort.begin_round()
    stage.hear(notice("b", 2))
    assert stage.pg.aborted == []
    assert stage.told == [notice("b", 2)]


def test_an_error_ends_the_quorum_it_names_and_no_other(stage: Stage) -> None:
    stage.abort.end(QuorumId(EPOCH, 9), "late")
    assert stage.pg.aborted == []
    stage.abort.end(PAIR.quorum_id, "error")
    assert stage.pg.aborted == [PAIR.quorum_id.packed]


def test_a_departure_leaves_time_to_finish(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.hear(notice("b", 2, LEFT, step=0))
    assert stage.pg.aborted == []
    assert [delay for delay, _ in stage.later] == [DEPARTURE_GRACE_S]
    assert "Peer departure received: replica b, left" in caplog.text
    stage.let_time_pass()
    assert stage.pg.aborted == [PAIR.quorum_id.packed]


def test_a_departure_does_not_touch_the_quorum_that_came_meanwhile(stage: Stage) -> None:
    stage.hear(notice("b", 2, LEFT, step=0))
    stage.abort.begin_round()
    stage.abort.install(NEXT)
    stage.let_time_pass()
    assert stage.pg.aborted == []


def test_a_departure_of_one_that_is_further_ends_nothing(stage: Stage) -> None:
    stage.hear(notice("b", 2, LEFT, step=1))
    assert stage.later == []
    assert stage.told == [notice("b", 2, LEFT, step=1)], "but it is told"


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_what_a_callback_raises_is_logged_and_the_next_is_called(
    stage: Stage, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    def broken(notice: Notice) -> None:
        raise error("of the user's")

    told: list[Notice] = []
    stage.abort.on_failure(broken)
    stage.abort.on_failure(told.append)
    stage.hear(notice("b", 2), notice("c", 3))
    assert told == [notice("b", 2), notice("c", 3)]
    assert caplog.text.count(f"{error.__name__}: of the user's") == 2


def test_a_group_that_cannot_abort_does_not_keep_the_rest_from_being_told(
    stage: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(quorum_id: int) -> None:
        raise RuntimeError("NCCL says no")

    monkeypatch.setattr(stage.pg, "abort", broken)
    stage.hear(notice("b", 2))
    assert stage.told == [notice("b", 2)]
    assert "NCCL says no" in caplog.text


def test_the_failures_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abort_module, "FAILURES_KEPT_MAX", 2)
    stage = Stage()
    stage.hear(notice("b"), notice("c"), notice("d"))
    assert stage.abort.failures() == [notice("c"), notice("d")]
    assert len(stage.told) == 3


# --- our own life -------------------------------------------------------------------------------------


def test_when_our_own_life_is_over_the_quorum_is_aborted_and_nobody_is_told(stage: Stage) -> None:
    stage.abort.over(EPOCH, life(1), STOPPED)
    assert stage.pg.aborted == [PAIR.quorum_id.packed]
    assert stage.told == stage.abort.failures() == [], "it is no peer"


def test_a_quorum_of_our_own_past_life_is_not_installed() -> None:
    stage = Stage()
    stage.abort.over(EPOCH, life(1), STOPPED)
    assert not stage.abort.install(PAIR)
    assert stage.abort.install(quorum(2, participant("a", 5), participant("b", 2)))


def test_the_late_news_that_a_past_life_is_over_does_not_touch_the_present_one() -> None:
    """The listener says so when the trainer has long been reborn by its own connection."""
    stage = Stage()
    assert stage.abort.install(quorum(2, participant("a", 5), participant("b", 2)))
    stage.abort.over(EPOCH, life(1), STOPPED)
    assert stage.pg.aborted == []


def test_one_that_was_left_out_ends_its_quorum_unless_that_is_the_newer_one(stage: Stage) -> None:
    stage.abort.left_out(QuorumId(EPOCH, 1))
    assert stage.pg.aborted == []
    stage.abort.left_out(QuorumId(EPOCH, 2))
    assert stage.pg.aborted == [PAIR.quorum_id.packed]
    stage.abort.begin_round()
    stage.abort.left_out(QuorumId(EPOCH, 3))
    assert len(stage.pg.aborted) == 1
