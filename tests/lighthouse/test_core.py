"""The life of a member, told to the core: how it joins, how it is heard, how long its lease is."""

from __future__ import annotations

import pytest

from procguard.lighthouse.events import LoopStalled, Received, TopicHeld, TopicLost
from procguard.messages import (
    Beacon,
    CauseKind,
    HelloWanted,
    Incarnation,
    MemberState,
    Process,
    QuorumRequest,
    Rejected,
    Rejection,
    Resync,
    Welcome,
)
from tests.lighthouse.person import participant
from tests.lighthouse.story import EPOCH, SETTINGS, Story

ALIVE, SUSPECT, FAILED, LEFT = MemberState
NO_PROCESS = Process("", "", 0, 0)


class TestHello:
    def test_a_newcomer_is_welcome(self) -> None:
        story = Story()
        a = story.new_person("a")
        story.say(a.trainer, a.hello())
        assert story.expect(a, Welcome) == (EPOCH, Incarnation(EPOCH, 1), 29511, 0, SETTINGS)
        assert story.core.snapshot("train", 0.0).jobs[0].members[0].state is ALIVE

    def test_every_life_has_its_own_number(self) -> None:
        story = Story()
        story.join("a", "b", "other:a")
        first = {name: story.person(name).incarnation for name in story.people}
        story.kill("a")
        story.join("a")
        assert len({*first.values(), story.person("a").incarnation}) == 4
        assert story.person("a").incarnation > first["a"]

    def test_a_repeated_hello_of_the_same_process_changes_nothing(self) -> None:
        story = Story()
        a = story.join("a")
        incarnation = a.incarnation
        story.rejoin("a")
        assert a.incarnation == incarnation
        story.expect_no_notice()

    @pytest.mark.parametrize("goodbye", [Story.kill, Story.leave, Story.silence])
    def test_a_new_process_may_follow_one_that_is_over(self, goodbye) -> None:
        story = Story()
        first = story.join("a")
        goodbye(story, "a")
        story.advance(1.1)
        second = story.join("a")
        assert story.state("a") is ALIVE
        assert second.incarnation > first.incarnation

    def test_a_failed_process_that_lives_may_join_anew(self) -> None:
        story = Story()
        a = story.join("a")
        incarnation = a.incarnation
        story.silence("a")
        story.advance(1.1)
        assert story.state("a") is FAILED
        story.rejoin("a")
        assert story.state("a") is ALIVE
        assert a.incarnation > incarnation

    def test_an_id_in_use_is_refused_and_its_holder_named(self) -> None:
        story = Story()
        a = story.join("a")
        intruder = story.join("a")
        refusal = story.expect(intruder, Rejected)
        assert refusal.reason is Rejection.ID_IN_USE
        assert (refusal.host, refusal.pid) == (a.process.host, a.process.pid)
        story.advance(2.0)
        assert story.state("a") is ALIVE
        assert story.member("a").incarnation == a.incarnation
        story.kill("a")
        story.rejoin(intruder)
        assert story.member("a").ranks[0].process == intruder.process

    def test_a_newcomer_supersedes_a_suspect(self) -> None:
        story = Story()
        first = story.join("a")
        story.cut("a")
        second = story.join("a")
        assert story.expect_notice("a", CauseKind.SUPERSEDED).incarnation == first.incarnation
        assert story.member("a").incarnation == second.incarnation
        story.advance(2.0)
        story.expect_no_notice()

    def test_a_token_has_one_name(self) -> None:
        story = Story()
        a = story.join("a")
        a.inbox.clear()
        for hello in (a.hello()._replace(replica_id="b"), a.hello()._replace(job_id="other")):
            story.say(a.trainer, hello)
        assert a.inbox == []
        assert story.count("hellos of a token under a second name") == 2
        assert [m.replica_id for m in story.job().members] == ["a"]

    def test_what_is_not_supported_is_refused(self) -> None:
        story = Story()
        a = story.new_person("a")
        story.say(a.trainer, a.hello()._replace(group_world_size=0))
        assert story.expect(a, Rejected).reason is Rejection.UNSUPPORTED
        assert story.core.snapshot("", 0.0).jobs == ()

    def test_messages_that_only_a_lighthouse_sends_are_counted(self) -> None:
        story = Story()
        assert story.say(b"peer", Beacon(1, 1)) == []
        assert story.count("messages that only a lighthouse sends") == 1

    def test_a_token_nobody_knows_is_asked_for_a_hello(self) -> None:
        story = Story()
        a = story.new_person("a", incarnation=Incarnation(EPOCH, 1))
        story.tell(Received(a.listener, a.heartbeat()))
        story.tell(Received(a.trainer, QuorumRequest(a.token, 9.0, participant(a))))
        story.tell(Received(a.listener, Resync(a.token, EPOCH, 0)))
        assert a.inbox == [HelloWanted(EPOCH)] * 3


class TestListener:
    def test_it_is_welcome_once_its_subscription_stands(self) -> None:
        story = Story()
        a = story.new_person("a")
        story.say(a.trainer, a.hello())
        story.expect(a, Welcome)
        story.say(a.listener, a.hello(claim=True, topic=True))
        story.expect_nothing(a, Welcome)
        story.tell(TopicHeld(a.topic))
        assert story.expect(a, Welcome).incarnation == a.incarnation
        story.tell(TopicHeld(a.topic))
        story.expect_nothing(a, Welcome)

    def test_or_at_once_where_it_stood_before(self) -> None:
        story = Story()
        a = story.new_person("a")
        story.say(a.trainer, a.hello())
        story.tell(TopicHeld(a.topic))
        a.inbox.clear()
        story.say(a.listener, a.hello(claim=True, topic=True))
        story.expect(a, Welcome)

    def test_where_it_stood_and_was_lost_it_must_stand_again(self) -> None:
        story = Story()
        a = story.join("a")
        story.cut("a")
        a.inbox.clear()
        story.say(a.listener, a.hello(claim=True, topic=True))
        story.expect_nothing(a, Welcome)
        story.tell(TopicHeld(a.topic))
        story.expect(a, Welcome)

    def test_a_member_that_is_over_is_not_welcomed_late(self) -> None:
        story = Story()
        a = story.new_person("a")
        story.say(a.trainer, a.hello())
        story.say(a.listener, a.hello(claim=True, topic=True))
        story.kill(a)
        a.inbox.clear()
        story.tell(TopicHeld(a.topic))
        story.expect_nothing(a, Welcome)

    def test_nor_one_that_was_superseded_before_its_subscription_came(self) -> None:
        story = Story()
        a = story.join("a")
        story.cut("a")
        topic, a.topic = a.topic, b"\0new listener"
        story.say(a.listener, a.hello(claim=True, topic=True))
        story.tell(TopicLost(a.topic))
        story.join("a")
        a.inbox.clear()
        story.tell(TopicHeld(a.topic))
        story.tell(TopicHeld(topic))
        story.expect_nothing(a, Welcome)

    def test_a_lost_connection_is_a_hint_and_becomes_a_verdict_after_the_grace(self) -> None:
        story = Story()
        a = story.join("a")
        story.advance(1.0)
        story.cut("a")
        assert story.state("a") is SUSPECT
        story.advance(0.29)
        story.expect_no_notice()
        story.advance(0.02)
        assert story.state("a") is FAILED
        assert story.expect_notice("a", CauseKind.CONNECTION_LOST).incarnation == a.incarnation

    def test_its_hello_alone_is_enough(self) -> None:
        story = Story()
        a = story.join("a")
        story.cut("a")
        story.tell(TopicHeld(a.topic))
        story.say(a.listener, a.hello(claim=True, topic=True))
        assert story.state("a") is ALIVE

    @pytest.mark.parametrize("sign_of_life", [Story.come_back, Story.beat])
    def test_one_that_comes_back_within_the_grace_is_alive_and_the_same(self, sign_of_life) -> None:
        story = Story()
        a = story.join("a")
        incarnation = a.incarnation
        story.cut("a")
        story.advance(0.2)
        sign_of_life(story, "a")
        assert story.state("a") is ALIVE
        assert a.incarnation == incarnation
        a.beating = True
        story.advance(2.0)
        assert story.state("a") is ALIVE

    def test_losing_it_again_does_not_prolong_the_grace(self) -> None:
        story = Story()
        a = story.join("a")
        story.cut("a")
        story.advance(0.2)
        story.tell(TopicLost(a.topic))
        story.advance(0.11)
        story.expect_notice("a", CauseKind.CONNECTION_LOST)

    def test_a_connection_that_was_made_again_can_be_lost_again(self) -> None:
        story = Story()
        a = story.join("a")
        story.cut("a")
        story.tell(TopicHeld(a.topic))
        a.beating = True
        story.advance(1.0)
        assert story.state("a") is ALIVE, "beats are enough: a transport reconnects without a word"
        story.cut("a")
        assert story.state("a") is SUSPECT

    def test_the_loss_of_a_listener_that_was_replaced_means_nothing(self) -> None:
        story = Story()
        a = story.join("a")
        old = a.topic
        a.topic = b"\0thread"
        story.come_back("a")
        story.tell(TopicLost(old))
        assert story.state("a") is ALIVE
        story.tell(TopicLost(a.topic))
        assert story.state("a") is SUSPECT

    def test_a_hello_of_the_trainer_does_not_replace_its_listener(self) -> None:
        story = Story()
        a = story.join("a")
        story.say(a.trainer, a.hello())
        story.tell(TopicLost(a.topic))
        assert story.state("a") is SUSPECT

    def test_a_topic_of_nobody_means_nothing(self) -> None:
        story = Story()
        story.join("a")
        story.tell(TopicHeld(b"train\0"))
        story.tell(TopicLost(b"train\0"))
        story.tell(TopicLost(b"\0never held"))
        assert story.state("a") is ALIVE


class TestLease:
    def test_silence_of_a_heartbeat_timeout_is_a_failure_and_no_sooner(self) -> None:
        story = Story()
        a = story.join("a")
        story.advance(1.0)
        story.silence("a")
        story.advance(0.99)
        story.expect_no_notice()
        story.advance(0.02)
        notice = story.expect_notice("a", CauseKind.HEARTBEAT_TIMEOUT)
        assert notice.incarnation == a.incarnation
        assert "1.0" in str(notice.cause)

    def test_a_thread_of_the_trainer_has_the_longer_lease(self) -> None:
        story = Story()
        a = story.join("a", threaded=True)
        story.silence("a")
        story.advance(4.9)
        assert story.state("a") is ALIVE
        a.threaded = False
        story.beat("a")
        story.advance(0.9)
        assert story.state("a") is ALIVE
        story.advance(0.2)
        story.expect_notice("a", CauseKind.HEARTBEAT_TIMEOUT)

    def test_a_member_that_never_beats_has_the_longer_lease(self) -> None:
        story = Story()
        a = story.new_person("a")
        story.say(a.trainer, a.hello())
        story.advance(4.9)
        story.expect_no_notice()
        story.advance(0.2)
        story.expect_notice("a", CauseKind.HEARTBEAT_TIMEOUT)

    def test_who_beats_lives(self) -> None:
        story = Story()
        story.join("a", "b")
        story.advance(600.0)
        story.expect_no_notice()

    def test_the_last_step_known_of_it_is_told(self) -> None:
        story = Story()
        a = story.join("a", "b")
        a.step = 8
        story.advance(0.1)
        story.kill("b")
        assert story.expect_notice("b", CauseKind.PROCESS_EXIT).step == 8
        story.ask("a", step=9)
        assert story.member("a").step == 9

    def test_what_lies_in_the_inbox_counts_before_the_clock(self) -> None:
        story = Story()
        a = story.join("a")
        story.silence("a")
        story.now += 30.0
        story.beat("a")
        assert story.state("a") is ALIVE
        assert story.member("a").ranks[0].beat_age_s == 0.0
        assert a.incarnation == story.member("a").incarnation

    def test_our_own_stall_kills_nobody(self) -> None:
        story = Story()
        story.join("a", "b", "c")
        story.cut("b")
        story.stall(30.0)
        story.time_passes()
        story.expect_no_notice()
        story.silence("a")
        story.advance(0.29)
        story.expect_no_notice()
        story.advance(0.02)
        story.expect_notice("b", CauseKind.CONNECTION_LOST)
        story.advance(0.68)
        story.expect_no_notice()
        story.advance(0.02)
        story.expect_notice("a", CauseKind.HEARTBEAT_TIMEOUT)
        assert story.state("c") is ALIVE
        assert story.count("stalls of the lighthouse's own loop") == 1

    def test_a_stall_is_logged(self) -> None:
        (effect,) = Story().tell(LoopStalled(2.5))
        assert "2.500 s" in effect.text
