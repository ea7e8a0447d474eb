"""Quorums, told to the core: when they form, who is in, which round an answer is for."""

from __future__ import annotations

from typing import Any

import pytest

from procguard.lighthouse import core
from procguard.lighthouse.events import Log, Publish, Send
from procguard.lighthouse.quorum import Formed, Waiting
from procguard.messages import (
    MemberState,
    NoticeBatch,
    QuorumFormed,
    QuorumRequest,
    Rank,
    Reason,
    Rejected,
    Rejection,
)
from tests.lighthouse.person import participant
from tests.lighthouse.story import Story


def story_of(*names: str, **options: object) -> Story:
    """Everyone is in a first quorum."""
    story = Story(**options)
    story.join(*names)
    story.ask(*names)
    story.expect_quorum(*names)
    return story


class TestForming:
    def test_all_get_the_same_sorted_by_replica_id(self) -> None:
        story = Story()
        story.join("b", "c", "a")
        story.ask("c", "a")
        story.expect_no_quorum()
        story.ask("b", step=4, committed_in=9, data=b"mine", world_size=2)
        quorum = story.expect_quorum("a", "b", "c")
        assert [p.replica_id for p in quorum.participants] == ["a", "b", "c"]
        b = quorum.participants[1]
        assert (b.step, b.committed_in, b.data, b.world_size) == (4, 9, b"mine", 2)
        assert b.ranks == (Rank("handle of b", "password of b"),)
        assert quorum.quorum_id.epoch == story.core.epoch

    def test_one_batch_of_requests_is_one_decision_and_one_message(self) -> None:
        story = Story()
        names = [f"r{number:03d}" for number in range(200)]
        story.join(*names)
        before = len(story.effects)
        with story.one_batch():
            story.ask(*names)
        formed = [effect for effect in story.effects[before:] if isinstance(effect, Send)]
        assert [type(effect.message) for effect in formed] == [QuorumFormed]
        assert len(formed[0].peers) == 200

    def test_requests_that_come_one_by_one_cost_a_decision_only_where_it_may_change(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decisions: list[Formed | Waiting] = []
        real = core.decide

        def counting(*situation: Any) -> Formed | Waiting:
            decisions.append(real(*situation))
            return decisions[-1]

        names = [f"r{number:03d}" for number in range(200)]
        story = story_of(*names)
        monkeypatch.setattr(core, "decide", counting)
        for name in names:
            story.ask(name)
        assert [type(outcome) for outcome in decisions] == [Waiting, Waiting, Formed]  # first, majority, all

        story.ask("r000", shrink_only=True)  # may mean another whole: worth a look
        story.ask("r001", shrink_only=True)
        assert len(decisions) == 5

    def test_the_id_stays_while_the_membership_does(self) -> None:
        story = Story()
        story.join("a", "b")
        ids = set()
        for _ in range(5):
            story.ask("a", "b")
            ids.add(story.expect_quorum("a", "b").quorum_id)
        assert len(ids) == 1

    def test_it_grows_with_the_membership_and_never_repeats(self) -> None:
        story = story_of("a", "b")
        ids = [story.job().quorum.quorum_id]
        for _ in range(3):
            story.kill("b")
            story.ask("a")
            ids.append(story.expect_quorum("a").quorum_id)
            story.join("b")
            story.ask("b", "a")
            ids.append(story.expect_quorum("a", "b").quorum_id)
        assert ids == sorted(set(ids))

    def test_only_a_new_membership_is_worth_a_line_in_the_log(self) -> None:
        story = story_of("a", "b")
        for _ in range(3):
            story.ask("a", "b")
        lines = [effect.text for effect in story.effects if isinstance(effect, Log)]
        assert [line for line in lines if "Quorum" in line] == [
            f"Quorum {story.job().quorum.quorum_id} of job train: 2 replicas (a, b)"
        ]

    def test_and_with_commit_failures(self) -> None:
        story = story_of("a", "b")
        first = story.job().quorum.quorum_id
        story.ask("a")
        story.ask("b", commit_failures=1)
        second = story.expect_quorum("a", "b").quorum_id
        assert second > first
        story.ask("a", "b")
        assert story.expect_quorum("a", "b").quorum_id == second

    def test_a_newcomer_that_is_starting_holds_nobody_up(self) -> None:
        story = story_of("a", "b")
        story.join("n")
        story.ask("a", "b")
        story.expect_quorum("a", "b")
        story.ask("n")
        story.expect_no_quorum()
        story.ask("a", "b")
        story.expect_quorum("a", "b", "n")

    def test_waiting_requests_survive_the_death_of_others(self) -> None:
        story = story_of("a", "b", "c")
        story.ask("a", "b")
        story.expect_no_quorum()
        story.kill("c")
        story.expect_quorum("a", "b")

    def test_a_death_is_told_before_the_quorum_that_follows_from_it(self) -> None:
        story = story_of("a", "b", "c")
        story.ask("a", "b")
        story.effects.clear()
        story.kill("c")
        kinds = [type(effect.message) for effect in story.effects if isinstance(effect, Send | Publish)]
        assert kinds.index(NoticeBatch) < kinds.index(QuorumFormed)

    def test_the_dead_do_not_take_part_though_they_had_asked(self) -> None:
        story = story_of("a", "b", "c")
        story.ask("b", "c")
        story.kill("b")
        story.ask("a")
        story.expect_quorum("a", "c")

    def test_two_jobs_with_the_same_ids_never_meet(self) -> None:
        story = Story()
        story.join("a", "b", "other:a", "other:b")
        story.ask("a", "other:b")
        story.expect_no_quorum()
        story.ask("b")
        ours = story.expect_quorum("a", "b")
        story.expect_no_quorum()
        story.ask("other:a")
        theirs = story.expect_quorum("other:a", "other:b")
        assert (ours.job_id, theirs.job_id) == ("train", "other")
        assert ours.quorum_id != theirs.quorum_id
        story.kill("a")
        assert story.state("other:a") is MemberState.ALIVE
        assert story.batches("other") == []
        assert len(story.batches("train")) == 1


class TestSuspects:
    @pytest.mark.parametrize("sign_of_life", [Story.come_back, Story.beat])
    def test_a_suspect_is_no_candidate_and_its_request_stands(self, sign_of_life) -> None:
        story = story_of("a", "b")
        story.ask("b")
        story.cut("b")
        story.ask("a")
        story.expect_no_quorum()
        sign_of_life(story, "b")
        story.expect_quorum("a", "b")

    def test_nobody_goes_on_behind_its_back_until_the_grace_is_over(self) -> None:
        story = story_of("a", "b", "c")
        story.cut("c")
        story.ask("a", "b")
        story.advance(0.29)
        story.expect_no_quorum()
        story.advance(0.02)
        story.expect_quorum("a", "b")


class TestRounds:
    def test_a_lost_answer_is_given_again(self) -> None:
        story = story_of("a", "b")
        story.ask("a", "b")
        quorum = story.expect_quorum("a", "b")
        story.ask_again("a")
        assert story.expect("a", QuorumFormed).quorum == quorum
        assert not story.member("a").waiting
        story.ask_again("a")
        assert story.expect("a", QuorumFormed).quorum == quorum

    def test_to_the_connection_that_asks(self) -> None:
        story = story_of("a")
        a = story.person("a")
        asks = QuorumRequest(a.token, 9.0, participant(a))
        effects = story.say(b"new connection", asks)
        assert [effect.peers for effect in effects] == [(b"new connection",)]

    def test_even_when_others_have_gone_on(self) -> None:
        story = story_of("a", "b", "c")
        story.kill("c")
        story.ask("a", "b")
        quorum = story.expect_quorum("a", "b")
        story.kill("a")
        story.ask_again("b")
        assert story.expect("b", QuorumFormed).quorum == quorum

    def test_a_request_repeated_while_it_waits_is_one_request(self) -> None:
        story = story_of("a", "b")
        story.ask("a")
        for _ in range(10):
            story.ask_again("a")
        story.ask("b")
        story.expect_quorum("a", "b")
        story.expect_no_quorum()

    def test_an_older_round_changes_nothing(self) -> None:
        story = story_of("a", "b")
        a = story.person("a")
        older = QuorumRequest(a.token, 9.0, participant(a)._replace(round=0))
        story.say(a.trainer, older)
        assert not story.member("a").waiting
        story.ask("a", step=5)
        story.say(a.trainer, QuorumRequest(a.token, 9.0, participant(a)._replace(round=a.round - 1)))
        story.expect("a", QuorumFormed)
        story.say(a.trainer, older)
        story.ask("b")
        assert story.expect_quorum("a", "b").participants[0].round == a.round
        assert story.count("quorum requests of an older round") == 2

    def test_a_late_request_does_not_displace_a_later_one(self) -> None:
        story = Story()
        a = story.join("a")
        story.join("b")
        story.ask("a")
        late = a.asks
        story.ask("a")
        story.say(a.trainer, late)
        story.ask("b")
        assert story.expect_quorum("a", "b").participants[0].round == 2

    def test_a_request_has_a_time_to_live(self) -> None:
        story = story_of("a", "b")
        story.ask("a", ttl_s=4.7)
        story.advance(4.6)
        assert story.member("a").waiting
        story.advance(0.2)
        assert not story.member("a").waiting
        assert story.job().waiting.reason is Reason.NOBODY_ASKED
        story.ask("b")
        story.expect_no_quorum()
        story.ask_again("a")
        story.expect_quorum("a", "b")

    def test_which_is_renewed_when_it_is_repeated(self) -> None:
        story = story_of("a", "b")
        story.ask("a", ttl_s=5.0)
        story.advance(4.0)
        story.ask_again("a")
        story.advance(4.0)
        assert story.member("a").waiting

    def test_the_new_life_of_a_process_counts_its_rounds_anew(self) -> None:
        story = story_of("a", "b")
        a = story.person("a")
        story.silence("a")
        story.advance(1.1)
        a.round = 0
        story.rejoin("a")
        story.ask("b", "a")
        story.expect_quorum("a", "b")


class TestMinReplicas:
    def test_fewer_never_form_a_quorum(self) -> None:
        story = Story()
        story.join("a", "b", "c", min_replicas=3)
        story.ask("a", "b")
        story.advance(200.0)
        story.expect_no_quorum()
        story.ask("c")
        story.expect_quorum("a", "b", "c")
        story.kill("c")
        story.ask("a", "b")
        story.expect_waiting("a", Reason.TOO_FEW_REPLICAS, have=2, need=3)
        story.advance(200.0)
        story.expect_no_quorum()

    def test_the_lighthouse_may_ask_for_more(self) -> None:
        story = Story(min_replicas=2)
        story.join("a", min_replicas=1)
        story.ask("a")
        story.expect_waiting("a", Reason.TOO_FEW_REPLICAS, have=1, need=2)

    def test_a_conflict_within_a_job_is_refused(self) -> None:
        story = Story()
        story.join("a", min_replicas=2)
        other = story.join("b", min_replicas=3)
        assert story.expect(other, Rejected).reason is Rejection.MIN_REPLICAS_CONFLICT
        assert story.job().min_replicas == 2
        story.join("b", min_replicas=0)
        assert story.state("b") is MemberState.ALIVE, "0: as the others"
        assert story.job().min_replicas == 2
        story.join("other:b", min_replicas=3)
        assert story.job("other").min_replicas == 3

    def test_who_is_alone_may_change_it(self) -> None:
        story = Story()
        story.join("a", "b", min_replicas=2)
        story.kill("a", "b")
        story.join("a", min_replicas=3)
        assert story.job().min_replicas == 3

    def test_who_is_refused_may_not(self) -> None:
        story = Story()
        story.join("a", min_replicas=2)
        intruder = story.join("a", min_replicas=1)
        assert story.expect(intruder, Rejected).reason is Rejection.ID_IN_USE
        assert story.job().min_replicas == 2
        story.ask("a")
        story.advance(200.0)
        story.expect_no_quorum()
