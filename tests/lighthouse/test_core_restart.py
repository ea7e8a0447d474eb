"""The lighthouse's own death: a new one adopts who lives, fails who does not come back, forks no job."""

from __future__ import annotations

import pytest

from procguard.lighthouse import roster
from procguard.lighthouse.events import Log, PersistEpoch, Send
from procguard.messages import (
    EPOCH_MAX,
    CauseKind,
    Claim,
    Excluded,
    Incarnation,
    MemberState,
    QuorumClaim,
    QuorumFormed,
    QuorumId,
    Reason,
    Rejoin,
    Welcome,
)
from tests.lighthouse.story import EPOCH, SETTINGS, Story

ALIVE, SUSPECT, FAILED, _ = MemberState


def trained(*names: str) -> Story:
    """Everyone is in a quorum."""
    story = Story()
    story.join(*names)
    story.ask(*names)
    story.expect_quorum(*names)
    return story


class TestComingBack:
    def test_who_lives_is_adopted_as_who_it_is(self) -> None:
        story = trained("a", "b", "c")
        before = {name: story.person(name).incarnation for name in "abc"}
        story.restart()
        story.advance(10.0)
        assert {name: story.member(name).incarnation for name in "abc"} == before
        assert {story.state(name) for name in "abc"} == {ALIVE}
        story.expect_no_notice()
        lines = [effect.text for effect in story.effects if isinstance(effect, Log)]
        assert f"Replica a joined as incarnation {before['a']}" in lines
        assert f"Replica a came back as incarnation {before['a']}" in lines

    def test_training_goes_on_under_a_greater_id(self) -> None:
        story = trained("a", "b", "c")
        before = story.person("a").claimed.quorum_id
        story.restart()
        story.advance(0.2)
        story.ask("a", "b", "c")
        quorum = story.expect_quorum("a", "b", "c")
        assert quorum.quorum_id > before
        assert quorum.quorum_id.packed > before.packed
        assert quorum.quorum_id.epoch == story.core.epoch

    def test_requests_that_waited_wait_again(self) -> None:
        story = trained("a", "b")
        story.ask("a")
        story.restart()
        story.advance(0.2)
        story.say(story.person("a").trainer, story.person("a").asks)
        story.ask("b")
        story.expect_quorum("a", "b")

    def test_even_where_the_trainer_is_the_first_to_hear_of_it(self) -> None:
        story = trained("a", "b")
        story.restart()
        story.ask("a", "b")
        story.expect_quorum("a", "b")

    def test_who_does_not_come_back_has_failed_after_two_timeouts(self) -> None:
        story = trained("a", "b", "c")
        story.restart()
        story.silence("c")
        story.advance(0.2)
        assert story.state("c") is SUSPECT
        story.ask("a", "b")
        story.advance(1.8)
        story.expect_no_notice()
        story.expect_no_quorum()
        story.advance(0.2)
        notice = story.expect_notice("c", CauseKind.LOST_IN_RESTART)
        assert notice.incarnation == story.person("c").incarnation
        story.expect_quorum("a", "b")
        (line,) = [e.text for e in story.effects if isinstance(e, Log) and "Replica c failed" in e.text]
        assert "pid" not in line, "nobody has said yet which process it was"

    def test_and_may_join_anew_when_it_comes_after_all(self) -> None:
        story = trained("a", "b")
        story.restart()
        story.silence("b")
        story.advance(3.0)
        story.expect_notice("b", CauseKind.LOST_IN_RESTART)
        b = story.person("b")
        story.come_back("b")
        assert story.expect(b, Rejoin).cause.kind is CauseKind.LOST_IN_RESTART
        story.rejoin("b")
        story.ask("a", "b")
        story.expect_quorum("a", "b")

    def test_its_place_may_be_taken_by_a_new_process(self) -> None:
        story = trained("a", "b")
        story.restart()
        story.silence("b")
        story.advance(0.2)
        first = story.person("b")
        story.join("b")
        assert story.expect_notice("b", CauseKind.SUPERSEDED).incarnation == first.incarnation
        story.come_back(first)
        story.expect(first, Rejoin)
        story.advance(3.0)
        story.expect_no_notice()
        assert story.state("b") is ALIVE

    def test_or_had_been_taken_before_anyone_told_of_the_old_one(self) -> None:
        story = trained("a", "b")
        story.silence("a", "b")
        old = story.person("b").incarnation
        story.restart()
        story.join("b")
        story.expect_no_notice()
        story.come_back("a")
        assert story.expect_notice("b", CauseKind.SUPERSEDED).incarnation == old
        story.advance(3.0)
        story.expect_no_notice()

    def test_our_own_stall_gives_all_their_time_again(self) -> None:
        story = trained("a", "b")
        story.restart()
        story.silence("b")
        story.advance(1.0)
        story.stall(60.0)
        story.time_passes()
        story.expect_no_notice()
        story.advance(1.9)
        assert story.state("b") is SUSPECT
        story.come_back("b")
        story.advance(3.0)
        story.expect_no_notice()


class TestNoFork:
    def test_a_newcomer_that_is_first_waits_for_the_others(self) -> None:
        story = trained("a", "b")
        story.silence("a", "b")
        story.restart()
        story.join("n")
        story.ask("n")
        story.expect_waiting("n", Reason.SETTLING, have=0, need=1)
        story.advance(1.0)
        story.come_back("a", "b")
        story.ask("a", "b")
        assert story.expect_quorum("a", "b", "n")

    def test_and_goes_alone_only_when_nobody_has_come(self) -> None:
        story = Story(restarted=True)
        story.join("n")
        story.ask("n")
        story.advance(1.9)
        story.expect_no_quorum()
        story.advance(0.2)
        story.expect_quorum("n")

    def test_the_moment_that_is_over(self) -> None:
        story = Story(restarted=True, settings=SETTINGS._replace(heartbeat_timeout_s=0.6))
        story.join("n")
        story.ask("n")
        story.advance(1.19)
        story.expect_no_quorum()
        story.advance(0.02)
        story.expect_quorum("n")

    def test_a_first_start_waits_for_nobody(self) -> None:
        story = Story()
        story.join("n")
        story.ask("n")
        story.expect_quorum("n")

    def test_without_any_claimed_member_only_after_the_join_timeout(self) -> None:
        story = trained("a", "b")
        story.restart()
        story.silence("b")
        story.advance(0.2)
        story.kill("a")
        story.join("n")
        story.ask("n")
        story.advance(2.0)
        story.expect_notice("b", CauseKind.LOST_IN_RESTART)
        story.expect_waiting("n", Reason.PREVIOUS_MEMBERS_MISSING, have=0, need=1)
        story.advance(57.0)
        story.expect_no_quorum()
        story.advance(3.0)
        story.expect_quorum("n")

    def test_once_it_is_our_own_quorum_again_nobody_can_come_back_to_it(self) -> None:
        story = trained("a", "b")
        story.restart()
        story.ask("a", "b")
        story.expect_quorum("a", "b")
        story.advance(3.0)
        story.kill("a", "b")
        story.join("n")
        story.ask("n")
        story.expect_quorum("n")

    def test_one_claimed_member_cannot_go_without_a_majority_that_may_return(self) -> None:
        story = trained("a", "b", "c")
        story.silence("b", "c")
        story.restart()
        story.advance(0.2)
        story.ask("a")
        story.expect_waiting("a", Reason.NO_MAJORITY, have=1, need=2)
        story.come_back("b", "c")
        story.ask("b", "c")
        story.expect_quorum("a", "b", "c")


class TestClaims:
    def test_the_latest_claimed_quorum_counts(self) -> None:
        story = trained("a", "b", "c")
        with_all = story.person("a").claimed
        story.kill("c")
        story.ask("a", "b")
        later = story.person("b").claimed
        story.notices.clear()
        for first in (with_all, later):
            story.restart()
            story.silence("a", "b")
            story.person("a").claimed, story.person("b").claimed = first, later
            story.come_back("a", "b")
            story.ask("a", "b")
            if first is with_all:
                story.advance(2.5)
                story.expect_notice("c", CauseKind.LOST_IN_RESTART)
            story.expect_quorum("a", "b")
            story.expect_no_notice()

    def test_one_that_was_told_to_be_over_is_not_awaited_again(self) -> None:
        story = trained("a", "b", "c")
        story.restart()
        story.silence("b", "c")
        story.advance(3.0)
        story.expect_notice("b", CauseKind.LOST_IN_RESTART)
        story.expect_notice("c", CauseKind.LOST_IN_RESTART)
        d = story.new_person("d", incarnation=Incarnation(EPOCH, 90))
        claim = story.person("a").claimed
        later = QuorumId(EPOCH, claim.quorum_id.number + 1)
        d.claimed = QuorumClaim(later, (*claim.members, ("d", d.incarnation)))
        story.people["d"] = d
        story.come_back("d")
        assert [story.state(name) for name in "abcd"] == [ALIVE, FAILED, FAILED, ALIVE]
        story.advance(3.0)
        story.expect_no_notice()

    def test_a_later_life_than_the_one_that_is_over_is_awaited(self) -> None:
        story = trained("a", "b")
        first = story.person("b")
        story.silence("b")
        story.advance(1.1)
        second = story.join("b")
        story.ask("b", "a")
        story.silence("a", "b")
        story.restart()
        story.come_back(first)
        story.kill(first)
        story.notices.clear()
        story.come_back("a")
        assert (story.state("b"), story.member("b").incarnation) == (SUSPECT, second.incarnation)
        story.come_back(second)
        story.advance(3.0)
        story.expect_no_notice()

    def test_an_earlier_life_that_came_first_gives_way_to_the_later(self) -> None:
        story = Story()
        first = story.join("a")
        story.silence("a")
        story.advance(1.1)
        second = story.join("a")
        story.notices.clear()
        story.silence("a")
        story.restart()
        story.come_back(first)
        assert story.member("a").incarnation == first.incarnation
        story.come_back(second)
        assert story.member("a").incarnation == second.incarnation
        assert story.expect_notice("a", CauseKind.SUPERSEDED).incarnation == first.incarnation
        story.beat(first)
        story.expect(first, Rejoin)
        assert story.member("a").incarnation == second.incarnation

    def test_also_when_only_another_member_tells_of_the_later(self) -> None:
        story = trained("a", "b")
        first = story.person("b")
        story.silence("b")
        story.advance(1.1)
        second = story.join("b")
        story.ask("b", "a")
        story.silence("a", "b")
        story.notices.clear()
        story.restart()
        story.come_back(first, "a")
        assert story.expect_notice("b", CauseKind.SUPERSEDED).incarnation == first.incarnation
        assert story.state("b") is SUSPECT
        story.come_back(second)
        assert story.state("b") is ALIVE
        story.advance(3.0)
        story.expect_no_notice()

    def test_lies_harm_nobody_but_the_liar(self) -> None:
        story = trained("a", "b")
        current = story.person("a").claimed
        liar = story.join("liar")
        future = Incarnation(EPOCH, 500)
        for quorum in (
            QuorumClaim(QuorumId(EPOCH, 999), (("a", future), ("ghost", future))),
            QuorumClaim(QuorumId(EPOCH + 5, 1), (("a", future),)),
            QuorumClaim(QuorumId(EPOCH - 1, 1), (("ghost", Incarnation(EPOCH - 1, 1)),)),
            QuorumClaim(current.quorum_id, ()),
        ):
            story.say(liar.trainer, liar.hello()._replace(claim=Claim(liar.incarnation, quorum)))
        story.advance(5.0)
        story.expect_no_notice()
        assert story.state("a") is ALIVE
        story.ask("a", "b")
        assert story.expect_quorum("a", "b").quorum_id == current.quorum_id

    def test_members_of_this_epoch_that_were_never_given_are_not_awaited(self) -> None:
        story = Story(restarted=True)
        liar = story.new_person("liar", incarnation=Incarnation(EPOCH - 1, 1))
        ours = Incarnation(EPOCH, 2)
        liar.claimed = QuorumClaim(QuorumId(EPOCH - 1, 9), (("a", ours), ("liar", liar.incarnation)))
        story.come_back(liar)
        assert [m.replica_id for m in story.job().members] == ["liar"]

    def test_the_claimed_quorum_is_as_old_as_our_knowledge_of_it(self) -> None:
        story = trained("a", "b")
        story.advance(100.0)
        story.restart()
        story.advance(5.0)
        assert 4.5 < story.job().quorum.age_s <= 5.0


class TestEpochs:
    def test_a_member_that_has_seen_a_later_epoch_raises_ours_above_it(self) -> None:
        story = Story()
        a = story.join("a", epoch=EPOCH + 7)
        assert story.core.epoch == EPOCH + 8
        assert a.incarnation.epoch == EPOCH + 8
        assert story.expect(a, Welcome).epoch == EPOCH + 8
        kinds = [type(effect) for effect in story.effects]
        assert kinds.index(PersistEpoch) < kinds.index(Send), "durable before anyone hears of it"
        assert PersistEpoch(EPOCH + 8) in story.effects
        assert next(e.text for e in story.effects if isinstance(e, Log)) == (
            f"Epoch raised to {EPOCH + 8}: a has seen epoch {EPOCH + 7}"
        )

    def test_one_that_knows_ours_or_an_earlier_one_does_not(self) -> None:
        story = Story()
        story.join("a", epoch=EPOCH)
        story.join("b", epoch=3)
        assert story.core.epoch == EPOCH
        assert PersistEpoch not in {type(effect) for effect in story.effects}

    def test_no_claim_uses_the_epochs_up(self) -> None:
        story = Story()
        story.join("a", epoch=EPOCH_MAX)
        story.join("b", epoch=(1 << 63) - 1)
        assert story.core.epoch == EPOCH
        assert story.count("absurd epochs claimed") > 0
        assert story.state("a") is ALIVE

    def test_raised_in_the_middle_of_a_life_it_changes_nothing_else(self) -> None:
        story = trained("a", "b")
        before = story.person("a").claimed.quorum_id
        story.join("n", epoch=EPOCH + 7)
        story.advance(5.0)
        story.expect_no_notice()
        story.ask("a", "b")
        assert story.expect_quorum("a", "b").quorum_id > before
        story.kill("a", "b")
        story.ask("n")
        assert story.expect_quorum("n"), "the quorum before was our own: nobody can come back to it"

    def test_even_right_before_the_last_of_a_quorum_dies(self) -> None:
        story = trained("a", "b")
        story.join("n", epoch=EPOCH + 7)
        story.kill("a", "b")
        story.ask("n")
        story.expect_quorum("n")

    def test_numbers_never_repeat_though_they_are_used_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(roster, "NUMBER_MAX", 5)
        story = Story()
        story.join("a")
        given = []
        for _ in range(20):
            given.append(story.join("b").incarnation)
            story.ask("b", "a")
            given.append(story.expect_quorum("a", "b").quorum_id)
            story.kill("b")
        assert given == sorted(set(given))
        assert max(one.number for one in given) == 5
        persisted = [effect.epoch for effect in story.effects if isinstance(effect, PersistEpoch)]
        assert persisted == list(range(EPOCH + 1, story.core.epoch + 1))

    def test_ids_grow_across_restarts(self) -> None:
        story = trained("a", "b")
        ids = [story.person("a").claimed.quorum_id]
        for _ in range(3):
            story.restart()
            story.ask("a", "b")
            ids.append(story.expect("a", QuorumFormed).quorum.quorum_id)
            story.expect("b", QuorumFormed)
        assert ids == sorted(set(ids))
        assert [one.packed for one in ids] == sorted({one.packed for one in ids})


class TestHalfAnAnswer:
    """The lighthouse died when some had the answer, and not all of those that it names."""

    def test_who_waits_for_the_others_in_a_collective_is_called_off(self) -> None:
        story = trained("a", "b", "c")
        story.restart()
        story.advance(0.2)
        story.ask("a")
        story.advance(1.9)
        story.expect_nothing("b", Excluded)
        story.advance(0.2)
        for name in ("b", "c"):
            assert story.expect(name, Excluded).quorum_id > story.person(name).claimed.quorum_id
        story.expect_nothing("a", Excluded)
        story.ask("b", "c")
        story.expect_quorum("a", "b", "c")

    def test_once(self) -> None:
        story = trained("a", "b")
        story.restart()
        story.advance(0.2)
        story.ask("a")
        story.advance(2.1)
        story.expect("b", Excluded)
        story.advance(10.0)
        story.expect_nothing("b", Excluded)

    def test_not_while_nobody_asks(self) -> None:
        story = trained("a", "b")
        story.restart()
        story.advance(10.0)
        story.ask("a")
        story.advance(1.9)
        story.ask("b")
        story.advance(10.0)
        for name in ("a", "b"):
            story.expect_nothing(name, Excluded)

    def test_nor_in_a_quorum_of_our_own(self) -> None:
        story = trained("a", "b")
        story.ask("a")
        story.advance(10.0)
        story.expect_nothing("b", Excluded)
