"""Replica groups of several ranks, told to the core: many processes, one member."""

from __future__ import annotations

from typing import Any

import pytest

from procguard.lighthouse.events import Log, TopicLost
from procguard.messages import (
    AnswerWanted,
    CauseKind,
    Excluded,
    LookedUp,
    Lookup,
    MemberState,
    QuorumFormed,
    Reason,
    Rejected,
    Rejection,
    Rejoin,
    Welcome,
)
from tests.lighthouse.person import participant
from tests.lighthouse.story import Story

ALIVE, SUSPECT, FAILED, LEFT = MemberState
RUN: dict[str, Any] = {"group_world_size": 2, "group_run": "run 1"}


def group(story: Story, *names: str, **traits: Any) -> None:
    """Replica groups of two ranks say Hello, rank 0 with the address at which it serves its group."""
    for name in names:
        story.join(name, **(RUN | {"group_address": f"server-of-{name}:1"} | traits))
        story.join(f"{name}/1", **(RUN | traits))


def logged(story: Story) -> list[str]:
    return [effect.text for effect in story.effects if isinstance(effect, Log)]


class TestGathering:
    def test_the_ranks_of_a_run_are_one_incarnation(self) -> None:
        story = Story()
        group(story, "a")
        assert story.person("a").incarnation == story.person("a/1").incarnation
        view = story.member("a")
        assert (view.state, view.group_world_size) == (ALIVE, 2)
        assert [(rank.group_rank, rank.process) for rank in view.ranks] == [
            (0, story.person("a").process),
            (1, story.person("a/1").process),
        ]
        assert logged(story)[-1].endswith(", 2 ranks")

    def test_in_any_order(self) -> None:
        story = Story()
        story.join("a/1", **RUN)
        story.join("a", **RUN)
        assert story.person("a").incarnation == story.person("a/1").incarnation

    def test_a_second_process_in_a_rank_that_lives_is_refused_and_named(self) -> None:
        story = Story()
        group(story, "a")
        copy = story.join("a/1", **RUN)
        refusal = story.expect(copy, Rejected)
        assert refusal.reason is Rejection.ID_IN_USE
        assert refusal.pid == story.person("a/1").process.pid
        assert "rank 1 of replica_id 'a'" in refusal.text
        assert story.state("a") is ALIVE

    def test_a_second_process_in_a_rank_that_was_lost_fails_the_incarnation(self) -> None:
        story = Story()
        group(story, "a")
        first = story.person("a").incarnation
        story.cut("a/1")
        story.join("a/1", **RUN)
        assert story.expect_notice("a", CauseKind.SUPERSEDED).incarnation == first
        story.beat("a")
        story.expect("a", Rejoin)
        assert len(story.member("a").ranks) == 1

    def test_ranks_that_disagree_on_their_number_are_told(self) -> None:
        story = Story()
        story.join("a", **RUN)
        other = story.join("a/1", **(RUN | {"group_world_size": 4}))
        assert "say 2" in story.expect(other, Rejected).text

    def test_a_group_started_anew_is_a_new_incarnation(self) -> None:
        story = Story()
        group(story, "a")
        first = story.person("a").incarnation
        story.kill("a", "a/1")
        story.expect_notice("a", CauseKind.PROCESS_EXIT)
        story.expect_no_notice()
        group(story, "a", group_run="run 2")
        assert story.person("a").incarnation > first
        assert story.person("a").incarnation == story.person("a/1").incarnation

    def test_a_run_that_is_early_waits_until_the_last_one_has_gone(self) -> None:
        story = Story()
        group(story, "a")
        early = story.join("a", **(RUN | {"group_run": "run 2"}))
        assert story.expect(early, Rejected).reason is Rejection.ID_IN_USE
        story.kill("a", "a/1")
        story.rejoin(early)
        story.expect(early, Welcome)


class TestLife:
    def test_the_end_of_one_rank_is_the_end_of_the_group(self) -> None:
        story = Story()
        group(story, "a", "b")
        story.kill("a/1")
        notice = story.expect_notice("a", CauseKind.PROCESS_EXIT)
        assert notice.cause.text == "rank 1"
        assert "killed by SIGKILL (rank 1)" in logged(story)[-1]
        assert str(story.person("a/1").process.pid) in logged(story)[-1]
        story.beat("a")
        assert story.expect("a", Rejoin).cause == notice.cause
        story.kill("a")
        story.expect_no_notice()

    @pytest.mark.parametrize("name", ["a", "a/1"])
    def test_each_rank_has_a_lease_of_its_own(self, name: str) -> None:
        story = Story()
        group(story, "a")
        story.silence(name)
        story.advance(0.9)
        story.expect_no_notice()
        story.advance(0.2)
        story.expect_notice("a", CauseKind.HEARTBEAT_TIMEOUT)

    def test_each_rank_has_a_connection_of_its_own(self) -> None:
        story = Story()
        group(story, "a")
        story.cut("a")
        story.cut("a/1")
        assert story.state("a") is SUSPECT
        story.come_back("a")
        assert story.state("a") is SUSPECT
        story.come_back("a/1")
        assert story.state("a") is ALIVE
        story.cut("a/1")
        story.advance(0.31)
        assert story.expect_notice("a", CauseKind.CONNECTION_LOST).cause.text == "rank 1"

    def test_one_stopped_rank_stops_the_group(self) -> None:
        story = Story()
        group(story, "a")
        story.person("a/1").stopped = True
        story.advance(1.2)
        story.expect_notice("a", CauseKind.STOPPED)

    def test_one_rank_that_leaves_ends_the_group_in_good_order(self) -> None:
        story = Story()
        group(story, "a")
        story.leave("a/1", step=7)
        assert story.expect_notice("a", CauseKind.LEFT).step == 7
        story.leave("a", step=7)
        story.kill("a")
        story.expect_no_notice()


class TestQuorum:
    def test_rank_0_asks_for_all_and_is_answered(self) -> None:
        story = Story()
        group(story, "a", "b")
        story.ask("a", "b")
        quorum = story.expect_quorum("a", "b")
        assert [len(p.ranks) for p in quorum.participants] == [2, 2]
        story.expect_nothing("a/1", QuorumFormed)

    def test_a_group_that_is_not_all_there_cannot_ask(self) -> None:
        story = Story()
        story.join("a", **RUN)
        story.ask("a")
        story.expect_no_quorum()
        assert story.count("quorum requests that do not speak for every rank") == 1
        story.join("a/1", **RUN)
        story.ask("a", ranks=())
        story.expect_no_quorum()
        assert story.count("quorum requests that do not speak for every rank") == 2
        story.ask("a")
        story.expect_quorum("a")

    def test_others_wait_for_a_group_that_still_gathers(self) -> None:
        story = Story()
        story.join("a", **RUN)
        story.join("b")
        story.ask("b")
        story.expect_waiting("b", Reason.MEMBERS_MISSING, 1, 2)

    def test_whoever_takes_over_serving_may_ask_for_the_last_answer(self) -> None:
        story = Story()
        group(story, "a")
        a = story.person("a")
        assert a.incarnation is not None
        story.ask("a")
        quorum = story.expect_quorum("a")
        for round, incarnation in ((2, a.incarnation), (1, a.incarnation._replace(number=99))):
            story.say(b"new server", AnswerWanted(a.token, incarnation, round))
            story.expect_nothing("a", QuorumFormed)
        story.say(a.listener, AnswerWanted(a.token, a.incarnation, 1))
        assert story.expect("a", QuorumFormed).quorum == quorum

    def test_every_rank_of_a_group_that_is_left_out_is_told(self) -> None:
        story = Story()
        group(story, "a", "b", "c")
        story.ask("a", "b", "c")
        story.expect_quorum("a", "b", "c")
        story.ask("a", "b")
        story.advance(61)
        story.expect_quorum("a", "b")
        story.expect("c", Excluded)
        story.expect("c/1", Excluded)


class TestLookup:
    def test_a_rank_finds_where_its_rank_0_serves(self) -> None:
        story = Story()
        story.join("a/1", **RUN)
        rank = story.person("a/1")
        story.say(rank.trainer, Lookup(rank.token))
        assert story.expect(rank, LookedUp) == (rank.incarnation, "")
        story.join("a", **(RUN | {"group_address": "host:1"}))
        story.say(rank.trainer, Lookup(rank.token))
        assert story.expect(rank, LookedUp) == (rank.incarnation, "host:1")

    def test_where_it_serves_now(self) -> None:
        story = Story()
        group(story, "a")
        rank, server = story.person("a/1"), story.person("a")
        server.group_address = "host:2"
        story.come_back("a")
        story.say(rank.trainer, Lookup(rank.token))
        assert story.expect(rank, LookedUp).group_address == "host:2"

    def test_a_hello_of_the_listener_before_that_comes_late_changes_nothing(self) -> None:
        story = Story()
        group(story, "a")
        rank, server = story.person("a/1"), story.person("a")
        late = server.hello(claim=True, topic=True)
        before = server.topic
        server.topic, server.listener, server.group_address = b"\0next", b"next", "host:2"
        story.come_back("a")
        story.say(b"before", late)
        story.tell(TopicLost(before))
        story.time_passes()
        assert story.state("a") is MemberState.ALIVE
        story.say(rank.trainer, Lookup(rank.token))
        assert story.expect(rank, LookedUp).group_address == "host:2"
        story.cut("a")
        story.time_passes()
        assert story.state("a") is MemberState.SUSPECT

    def test_in_a_group_that_is_over_it_finds_the_end(self) -> None:
        story = Story()
        group(story, "a")
        story.kill("a")
        rank = story.person("a/1")
        story.say(rank.trainer, Lookup(rank.token))
        assert story.expect(rank, Rejoin).cause.kind is CauseKind.PROCESS_EXIT


class TestRestart:
    def both_trained(self) -> Story:
        story = Story()
        group(story, "a", "b")
        story.ask("a", "b")
        story.expect_quorum("a", "b")
        for name in ("a", "b"):
            story.person(f"{name}/1").claimed = story.person(name).claimed
        return story

    def test_every_rank_comes_back_to_its_place(self) -> None:
        story = self.both_trained()
        lives = [story.person(name).incarnation for name in ("a", "b")]
        story.restart()
        story.advance(3)
        story.expect_no_notice()
        assert [story.member(name).incarnation for name in ("a", "b")] == lives
        assert [story.state(name) for name in ("a", "b")] == [ALIVE, ALIVE]
        story.ask("a", "b")
        story.expect_quorum("a", "b")

    def test_a_rank_that_does_not_come_back_takes_its_group_with_it(self) -> None:
        story = self.both_trained()
        story.silence("a/1")
        story.restart()
        story.advance(1)
        assert story.state("a") is SUSPECT
        story.advance(1.2)
        story.expect_notice("a", CauseKind.LOST_IN_RESTART)
        story.ask("b")
        story.expect_quorum("b")

    def test_a_rank_that_died_meanwhile_is_told_of(self) -> None:
        story = self.both_trained()
        story.silence("a/1")
        story.restart()
        story.come_back("a/1")
        story.kill("a/1")
        story.expect_notice("a", CauseKind.PROCESS_EXIT)

    def test_participants_show_their_group(self) -> None:
        story = self.both_trained()
        assert participant(story.person("a")).world_size == 2
