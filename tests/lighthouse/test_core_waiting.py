"""Waiting for a quorum, told to the core: for how long, for whom, and what those who wait are told."""

from __future__ import annotations

import pytest

from procguard.lighthouse.events import Publish, Received, Send
from procguard.messages import (
    CauseKind,
    Excluded,
    NoticeBatch,
    QuorumFormed,
    QuorumWaiting,
    Reason,
)
from tests.lighthouse.story import SETTINGS, Story


def story_of(*names: str, **options: object) -> Story:
    """Everyone is in a first quorum."""
    story = Story(**options)
    story.join(*names)
    story.ask(*names)
    story.expect_quorum(*names)
    return story


class TestJoinTimeout:
    def test_a_straggler_is_left_out_after_it_and_told(self) -> None:
        story = story_of("a", "b", "c")
        story.ask("a", "b")
        story.expect_waiting("a", Reason.PREVIOUS_MEMBERS_MISSING, have=2, need=3)
        story.advance(59.4)
        story.expect_no_quorum()
        story.advance(0.2)
        quorum = story.expect_quorum("a", "b")
        assert story.expect("c", Excluded) == (story.person("c").token, quorum.quorum_id)
        story.expect_no_notice()

    def test_who_was_left_out_may_come_in_again(self) -> None:
        story = story_of("a", "b", "c")
        story.ask("a", "b")
        story.advance(60.1)
        story.expect_quorum("a", "b")
        story.ask("c")
        story.expect_no_quorum()
        story.ask("a", "b")
        story.expect_quorum("a", "b", "c")

    def test_one_without_a_listener_cannot_be_told_and_that_harms_nobody(self) -> None:
        story = Story(settings=SETTINGS._replace(join_timeout_s=2.0))
        mute = story.new_person("mute")
        story.join("a", "b")
        story.say(mute.trainer, mute.hello())
        story.ask("a", "b", mute)
        story.people["mute"] = mute
        story.expect_quorum("a", "b", "mute")
        story.ask("a", "b")
        story.advance(2.1)
        story.expect_quorum("a", "b")

    def test_a_member_that_never_asks_holds_up_the_first_quorum_for_so_long(self) -> None:
        story = Story()
        story.join("a", "b")
        story.ask("a")
        story.expect_waiting("a", Reason.MEMBERS_MISSING, have=1, need=2)
        story.advance(60.1)
        story.expect_quorum("a")
        story.expect_nothing("b", Excluded)

    def test_each_wait_has_its_own(self) -> None:
        story = story_of("a", "b", "c")
        story.ask("a", "b")
        story.advance(30.0)
        story.ask("c")
        story.expect_quorum("a", "b", "c")
        story.ask("a", "b")
        story.advance(59.9)
        story.expect_no_quorum()
        story.advance(0.2)
        story.expect_quorum("a", "b")

    def test_who_is_left_out_is_told_where_it_beats_from(self) -> None:
        story = story_of("a", "b", "c")
        c = story.person("c")
        story.silence("c")
        story.ask("a", "b")
        for _ in range(121):
            story.advance(0.5)
            story.say(b"connected anew", c.heartbeat())
        (told,) = [e for e in story.effects if isinstance(e, Send) and isinstance(e.message, Excluded)]
        assert told.peers == (b"connected anew",)

    def test_it_runs_only_while_the_numbers_hold_unbroken(self) -> None:
        story = story_of("a", "b", "c", "d", "e")
        story.ask("a", "b", "c")
        story.advance(40.0)
        story.cut("c")
        assert story.job().waiting.reason is Reason.NO_MAJORITY
        story.come_back("c")
        story.advance(59.9)
        story.expect_no_quorum()
        story.advance(0.2)
        story.expect_quorum("a", "b", "c")

    def test_our_own_stall_ends_it_for_nobody(self) -> None:
        story = story_of("a", "b", "c")
        story.ask("a", "b")
        story.stall(100.0)
        story.time_passes()
        story.expect_no_quorum()
        story.ask("c")
        story.expect_quorum("a", "b", "c")

    def test_a_straggler_whose_end_is_judged_in_the_same_turn_is_dead_not_excluded(self) -> None:
        story = story_of("a", "b", "c")
        story.ask("a", "b")
        for now, names in ((59.5, "abc"), (60.6, "ab")):
            story.now = now
            for name in names:
                person = story.person(name)
                story.tell(Received(person.listener, person.heartbeat()))
        story.effects.clear()
        story.time_passes()
        story.expect_quorum("a", "b")
        story.expect_nothing("c", Excluded)
        kinds = [type(effect.message) for effect in story.effects if isinstance(effect, Send | Publish)]
        assert kinds.index(NoticeBatch) < kinds.index(QuorumFormed)


class TestProgressBound:
    def test_half_is_no_majority_until_the_others_are_overdue(self) -> None:
        story = story_of("a", "b")
        story.ask("a")
        story.expect_waiting("a", Reason.NO_MAJORITY, have=1, need=2)
        story.advance(59.0)
        story.expect_no_quorum()
        story.expect_waiting("a", Reason.NO_MAJORITY, have=1, need=2)
        story.advance(0.5)
        story.expect_waiting("a", Reason.PREVIOUS_MEMBERS_MISSING, have=1, need=2)
        story.advance(60.0)
        story.expect_quorum("a")
        story.expect("b", Excluded)

    def test_a_member_of_long_steps_is_given_ten_of_them(self) -> None:
        story = story_of("a", "b")
        story.advance(20.0)
        story.ask("a", "b")
        story.expect_quorum("a", "b")
        story.ask("a")
        story.advance(199.0)
        story.expect_waiting("a", Reason.NO_MAJORITY, have=1, need=2)
        story.advance(1.5)
        story.expect_waiting("a", Reason.PREVIOUS_MEMBERS_MISSING, have=1, need=2)

    def test_waiting_is_no_step(self) -> None:
        story = story_of("a", "b")
        story.ask("b", ttl_s=30.0)
        story.advance(30.0)
        story.ask("b", ttl_s=30.0)
        story.advance(20.0)
        story.ask_again("b")
        story.ask("a")
        story.expect_quorum("a", "b")
        story.ask("a")
        story.advance(60.5)
        story.expect_waiting("a", Reason.PREVIOUS_MEMBERS_MISSING, have=1, need=2)

    def test_one_that_asked_in_vain_does_not_hold_up_the_incumbents_either(self) -> None:
        story = story_of("a")
        story.join("n")
        story.ask("n", ttl_s=1.0)
        story.advance(2.0)
        story.ask("a")
        story.expect_waiting("a", Reason.NO_MAJORITY, have=1, need=2)
        story.advance(60.0)
        story.expect_quorum("a")

    def test_a_wedged_trainer_does_not_block_its_survivors_for_ever(self) -> None:
        story = story_of("a", "b", "c", "d")
        story.ask("a", "b")
        story.expect_waiting("a", Reason.NO_MAJORITY, have=2, need=3)
        story.advance(121.0)
        story.expect_quorum("a", "b")


class TestShrinkOnly:
    def test_newcomers_wait_while_it_is_asked_and_are_told(self) -> None:
        story = story_of("a", "b", "c")
        story.kill("c")
        story.join("c", "d", "e")
        story.ask("c", "d", "e")
        story.ask("a", shrink_only=True)
        story.ask("b")
        story.expect_quorum("a", "b")
        story.expect_waiting("c", Reason.PREVIOUS_MEMBERS_MISSING, have=0, need=2)
        story.ask("a", "b")
        story.expect_quorum("a", "b", "c", "d", "e")


class TestWaiters:
    def test_each_is_told_why_within_a_beacon_and_again(self) -> None:
        story = story_of("a", "b", "c")
        story.ask("a")
        story.expect_nothing("a", QuorumWaiting)
        for _ in range(3):
            story.expect_waiting("a", Reason.NO_MAJORITY, have=1, need=2)
        story.expect_nothing("b", QuorumWaiting)
        story.ask("b", "c")
        story.expect_quorum("a", "b", "c")
        for name in "abc":
            story.person(name).inbox.clear()
        story.advance(2.0)
        story.expect_nothing("a", QuorumWaiting)

    def test_who_is_missing_is_named(self) -> None:
        story = story_of("a", "b", "c")
        story.ask("a", "b")
        story.advance(0.5)
        assert story.expect("b", QuorumWaiting).missing == ("c",)

    def test_the_snapshot_says_it_too(self) -> None:
        story = story_of("a", "b", "c")
        story.ask("a", "b")
        assert story.job().waiting == (Reason.PREVIOUS_MEMBERS_MISSING, 2, 3, ("c",))
        assert [m.waiting for m in story.job().members] == [True, True, False]
        story.kill("c")
        assert story.job().waiting is None
        assert story.job().quorum.replica_ids == ("a", "b")


@pytest.mark.parametrize("join_timeout_s", [2.2, 60.0])
def test_settings_are_those_of_the_welcome(join_timeout_s: float) -> None:
    story = story_of("a", "b", "c", settings=SETTINGS._replace(join_timeout_s=join_timeout_s))
    story.ask("a", "b")
    story.advance(join_timeout_s - 0.1)
    story.expect_no_quorum()
    story.advance(0.15)
    story.expect_quorum("a", "b")
    story.kill("c")
    story.expect_notice("c", CauseKind.PROCESS_EXIT)
