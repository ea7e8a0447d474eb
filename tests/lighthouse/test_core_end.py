"""The end of a member, told to the core: once, for one reason, and for good."""

from __future__ import annotations

import pytest

from procguard.lighthouse import roster
from procguard.lighthouse.events import Publish, Send, TopicLost
from procguard.messages import (
    KIND_OF,
    Ack,
    Cause,
    CauseKind,
    Claim,
    Heartbeat,
    HelloWanted,
    Incarnation,
    Leave,
    MemberState,
    NoticeBatch,
    Obituary,
    Phase,
    Process,
    QuorumFormed,
    QuorumRequest,
    Rejected,
    Rejection,
    Rejoin,
)
from tests.lighthouse.person import participant
from tests.lighthouse.story import EPOCH, Story

ALIVE, SUSPECT, FAILED, LEFT = MemberState
NO_PROCESS = Process("", "", 0, 0)


class TestEnd:
    def test_an_obituary_is_a_verdict_at_once(self) -> None:
        story = Story()
        a = story.join("a")
        cause = Cause(CauseKind.PROCESS_EXIT, exit_code=3, text="ValueError: no")
        story.kill("a", cause=cause)
        assert story.expect_notice("a", CauseKind.PROCESS_EXIT).cause == cause
        assert story.expect(a, Ack) == (KIND_OF[Obituary], a.token)
        assert story.member("a").cause == cause

    def test_the_survivors_hear_of_it_before_the_messenger_is_thanked(self) -> None:
        story = Story()
        story.join("a", "b")
        story.effects.clear()
        story.kill("a")
        kinds = [type(e.message) for e in story.effects if isinstance(e, Publish | Send)]
        assert kinds == [NoticeBatch, Ack]

    def test_also_of_a_suspect(self) -> None:
        story = Story()
        story.join("a")
        story.cut("a")
        story.kill("a")
        story.expect_notice("a", CauseKind.PROCESS_EXIT)

    def test_an_obituary_may_name_the_process(self) -> None:
        story = Story()
        a = story.join("a")
        story.join("b", "other:c")
        for dead in (
            a.process._replace(start_time=1),
            a.process._replace(start_time=0),
            a.process._replace(boot_id="another boot"),
            a.process._replace(boot_id=""),
            story.person("other:c").process,
        ):
            story.say(b"guard", Obituary("train", b"", dead, Cause(CauseKind.PROCESS_EXIT)))
        story.say(b"guard", Obituary("no such job", b"", a.process, Cause(CauseKind.PROCESS_EXIT)))
        for unknown in (Process("host", "", 7, 8), Process("host", "boot", 7, 0)):
            story.join(f"on {unknown}", process=unknown)
            story.say(b"guard", Obituary("train", b"", unknown, Cause(CauseKind.PROCESS_EXIT)))
        story.expect_no_notice()
        dead = a.process._replace(host="the same, by another name")
        story.say(b"guard", Obituary("train", b"", dead, Cause(CauseKind.PROCESS_EXIT, exit_code=1)))
        story.expect_notice("a", CauseKind.PROCESS_EXIT)
        story.expect_no_notice()
        assert story.core.roster._buried == {}

    def test_all_members_of_that_process_are_meant(self) -> None:
        story = Story()
        a = story.join("a")
        story.join("b", "c", process=a.process)
        story.silence("b")
        story.advance(1.1)
        story.expect_notice("b", CauseKind.HEARTBEAT_TIMEOUT)
        story.say(b"guard", Obituary("train", b"", a.process, Cause(CauseKind.PROCESS_EXIT)))
        story.expect_notice("a", CauseKind.PROCESS_EXIT)
        story.expect_notice("c", CauseKind.PROCESS_EXIT)
        story.expect_no_notice()

    def test_one_that_names_another_token_is_not_of_this_manager(self) -> None:
        story = Story()
        a = story.join("a")
        replaced = Cause(CauseKind.PROCESS_REPLACED)  # exec: the pid and its start time stay
        story.say(b"listener before", Obituary("train", b"before exec".ljust(16), a.process, replaced))
        story.expect_no_notice()
        assert story.state("a") is ALIVE

    def test_an_obituary_before_the_hello_refuses_that_token(self) -> None:
        story = Story()
        a = story.new_person("a")
        story.kill(a)
        story.expect(a, Ack)
        story.say(a.trainer, a.hello())
        refusal = story.expect(a, Rejected)
        assert refusal.reason is Rejection.BURIED
        assert "SIGKILL" in refusal.text
        story.join("a")
        assert story.state("a") is ALIVE, "another process may have the name"

    def test_the_dead_stay_dead(self) -> None:
        story = Story()
        a = story.join("a")
        story.kill("a")
        a.inbox.clear()
        story.say(a.trainer, a.hello())
        assert story.expect(a, Rejected).reason is Rejection.BURIED

    def test_a_leave_is_no_failure(self) -> None:
        story = Story()
        a = story.join("a")
        a.step = 6
        story.leave("a", step=7)
        notice = story.expect_notice("a", CauseKind.LEFT)
        assert notice.left
        assert (notice.step, notice.incarnation) == (7, a.incarnation)
        assert story.state("a") is LEFT
        assert story.expect(a, Ack) == (KIND_OF[Leave], a.token)
        assert (story.count("members that left"), story.count("members that failed")) == (1, 0)

    def test_a_leave_is_acknowledged_as_often_as_it_is_said(self) -> None:
        story = Story()
        a = story.join("a")
        story.leave("a")
        story.leave("a")
        story.leave(stranger := story.new_person("stranger", incarnation=a.incarnation))
        story.expect(stranger, Ack)
        story.expect(a, Ack)
        story.expect(a, Ack)
        story.expect_notice("a", CauseKind.LEFT)
        story.expect_no_notice()

    def test_a_leave_of_an_earlier_life_is_none_of_this_one(self) -> None:
        story = Story()
        a = story.join("a")
        earlier = a.incarnation
        story.silence("a")
        story.advance(1.1)
        story.rejoin("a")
        story.say(a.trainer, Leave(a.token, earlier, 3))
        assert story.state("a") is ALIVE

    def test_a_leave_of_one_that_a_restart_has_forgotten_is_not_lost(self) -> None:
        story = Story()
        a = story.join("a")
        story.restart()
        a.inbox.clear()
        story.leave("a", step=7)
        assert story.expect(a, HelloWanted).epoch == story.core.epoch
        story.say(a.trainer, a.hello(claim=True))
        story.leave("a", step=7)
        assert story.expect_notice("a", CauseKind.LEFT).step == 7

    def test_an_obituary_that_says_it_left_is_a_leave(self) -> None:
        story = Story()
        story.join("a")
        story.kill("a", cause=Cause(CauseKind.LEFT))
        assert story.expect_notice("a", CauseKind.LEFT).left
        assert story.state("a") is LEFT

    @pytest.mark.parametrize("goodbye", [Story.kill, Story.leave])
    def test_nothing_more_comes_of_one_that_is_over(self, goodbye) -> None:
        story = Story()
        a = story.join("a", progress_timeout_s=0.5)
        a.phase, a.stopped = Phase.COMPUTE, True
        story.beat("a")
        goodbye(story, "a")
        story.notices.clear()
        state = story.state("a")
        story.tell(TopicLost(a.topic))
        story.kill("a")
        story.leave("a")
        story.advance(10.0)
        story.expect_no_notice()
        assert story.state("a") is state

    def test_two_ends_at_once_are_one_end(self) -> None:
        story = Story()
        a = story.join("a", progress_timeout_s=1.0)
        a.stopped, a.phase = True, Phase.COMPUTE
        story.beat("a")
        story.silence("a")
        story.now += 5.0
        story.time_passes()
        assert len(story.notices) == 1
        assert story.state("a") is FAILED


class TestStopped:
    def test_a_whole_timeout_in_state_t_is_a_failure(self) -> None:
        story = Story()
        a = story.join("a")
        story.advance(1.0)
        a.stopped = True
        story.advance(1.0)
        story.expect_no_notice()
        story.advance(0.2)
        story.expect_notice("a", CauseKind.STOPPED)
        assert story.expect(a, Rejoin).cause.kind is CauseKind.STOPPED

    def test_a_shorter_stop_is_none(self) -> None:
        story = Story()
        a = story.join("a")
        for _ in range(5):
            a.stopped = True
            story.advance(0.9)
            a.stopped = False
            story.advance(0.2)
        story.advance(5.0)
        story.expect_no_notice()

    def test_when_it_continues_it_may_join_anew(self) -> None:
        story = Story()
        a = story.join("a")
        a.stopped = True
        story.advance(1.2)
        assert story.state("a") is FAILED
        a.stopped = False
        story.rejoin("a")
        story.advance(5.0)
        assert story.state("a") is ALIVE


class TestStalled:
    def test_compute_beyond_the_progress_timeout_is_a_failure(self) -> None:
        story = Story()
        a = story.join("a", progress_timeout_s=3.0)
        a.phase = Phase.COMPUTE
        story.advance(3.0)
        story.expect_no_notice()
        story.advance(0.2)
        assert "3 s in compute" in str(story.expect_notice("a", CauseKind.STALLED).cause)

    def test_progress_starts_it_anew(self) -> None:
        story = Story()
        a = story.join("a", progress_timeout_s=3.0)
        a.phase = Phase.COMPUTE
        for _ in range(5):
            story.advance(2.5)
            a.progress += 1
        assert story.state("a") is ALIVE

    def test_progress_that_stands_still_is_none(self) -> None:
        story = Story()
        a = story.join("a", progress_timeout_s=3.0)
        a.phase, a.progress = Phase.COMPUTE, 7
        story.advance(3.3)
        story.expect_notice("a", CauseKind.STALLED)

    @pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.COMPUTE])
    def test_only_compute_counts(self, phase: Phase) -> None:
        story = Story()
        a = story.join("a", progress_timeout_s=3.0)
        a.phase = Phase.COMPUTE
        story.advance(2.0)
        a.phase = phase
        story.advance(60.0)
        assert story.state("a") is ALIVE

    def test_of_a_process_that_is_stopped_it_is_said_that_it_is(self) -> None:
        """Whichever patience ends first."""
        story = Story()
        a = story.join("a", progress_timeout_s=0.3)
        a.phase = Phase.COMPUTE
        story.beat("a")
        a.stopped = True
        story.advance(0.5)
        story.expect_notice("a", CauseKind.STOPPED)

    def test_off_by_default(self) -> None:
        story = Story()
        story.join("a").phase = Phase.COMPUTE
        story.advance(600.0)
        assert story.state("a") is ALIVE


class TestOlderLives:
    def test_a_late_heartbeat_never_resurrects(self) -> None:
        story = Story()
        a = story.join("a")
        story.kill("a")
        story.beat("a")
        assert story.state("a") is FAILED
        assert story.expect(a, Rejoin) == (a.token, a.incarnation, Cause(CauseKind.PROCESS_EXIT, signal=9))

    def test_the_same_process_in_an_earlier_life(self) -> None:
        story = Story()
        a = story.join("a")
        earlier = a.heartbeat()
        story.silence("a")
        story.advance(1.1)
        story.rejoin("a")
        a.inbox.clear()
        story.say(a.listener, earlier)
        rejoin = story.expect(a, Rejoin)
        assert rejoin.incarnation == earlier.incarnation
        assert rejoin.cause.kind is CauseKind.HEARTBEAT_TIMEOUT
        assert a.beating, "it is not this life that is over"
        story.silence("a")
        story.advance(0.95)
        story.say(a.listener, earlier)
        story.advance(0.1)
        assert story.state("a") is FAILED, "nor is a lease renewed by it"

    def test_an_earlier_process_of_that_name(self) -> None:
        story = Story()
        first = story.join("a")
        story.cut("a")
        story.join("a")
        story.beat(first)
        assert story.expect(first, Rejoin).cause.kind is CauseKind.SUPERSEDED
        assert not first.beating
        story.ask(first)
        story.expect(first, Rejoin)
        story.expect_nothing(first, QuorumFormed)

    def test_a_quorum_request_of_an_earlier_life(self) -> None:
        story = Story()
        a = story.join("a")
        story.silence("a")
        story.advance(1.1)
        story.ask("a")
        assert story.expect(a, Rejoin).cause.kind is CauseKind.HEARTBEAT_TIMEOUT
        story.expect_no_quorum()

    def test_a_quorum_request_of_an_earlier_life_of_one_that_lives(self) -> None:
        story = Story()
        a = story.join("a")
        earlier = QuorumRequest(a.token, 600.0, participant(a))
        story.silence("a")
        story.advance(1.1)
        story.rejoin("a")
        story.say(a.trainer, earlier)
        assert story.expect(a, Rejoin).incarnation == earlier.participant.incarnation
        assert not story.member("a").waiting

    def test_a_claim_of_a_life_that_is_over_is_never_reborn(self) -> None:
        story = Story()
        a = story.join("a")
        story.silence("a")
        story.advance(1.1)
        story.come_back("a")
        assert story.expect(a, Rejoin).incarnation == a.incarnation
        assert story.state("a") is FAILED

    def test_nor_long_after_it_has_been_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(roster, "DEAD_KEPT_S", 5.0)
        story = Story()
        a = story.join("a")
        story.join("b")
        story.silence("a")
        story.advance(7.0)
        assert [m.replica_id for m in story.job().members] == ["b"]
        story.beat("a")
        story.expect(a, HelloWanted)
        assert story.expect(a, Rejoin).cause.kind is CauseKind.HEARTBEAT_TIMEOUT
        assert [m.replica_id for m in story.job().members] == ["b"]

    def test_a_claim_nobody_could_have_made(self) -> None:
        story = Story()
        liar = story.new_person("a", incarnation=Incarnation(EPOCH, 999))
        story.say(liar.trainer, liar.hello(claim=True))
        story.expect(liar, Rejoin)
        story.say(liar.trainer, liar.hello()._replace(claim=Claim(Incarnation(EPOCH + 9, 1), None)))
        story.expect(liar, Rejoin)
        story.advance(1.0)
        assert story.core.snapshot("", story.now).jobs == (), "a job without members is dropped"

    def test_asking_under_another_name_is_refused(self) -> None:
        story = Story()
        a = story.join("a")
        asks = participant(a)._replace(replica_id="b")
        story.say(a.trainer, QuorumRequest(a.token, 9.0, asks))
        story.expect(a, Rejoin)
        story.expect_no_quorum()

    def test_a_heartbeat_with_a_copied_id_but_its_own_token(self) -> None:
        story = Story()
        a = story.join("a")
        story.silence("a")
        beat = a.heartbeat()
        assert isinstance(beat, Heartbeat)
        for _ in range(12):
            story.advance(0.1)
            story.say(b"copycat", beat._replace(token=b"copycat".ljust(16)))
        story.expect_notice("a", CauseKind.HEARTBEAT_TIMEOUT)
