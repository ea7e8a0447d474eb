"""A replica group's server: many ask, one asks; many vote, one verdict; and what a change of server loses."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from procguard.client.group import Answer, Effect, Group, Request
from procguard.client.group_words import GroupFormed, GroupWaiting, RankAsks, Verdict, Vote
from procguard.messages import (
    AnswerWanted,
    Message,
    Participant,
    Quorum,
    QuorumFormed,
    QuorumId,
    QuorumRequest,
    QuorumWaiting,
    Rank,
    Reason,
)
from tests.client.fakes import EPOCH, TOKEN, life, participant

LIFE = life(1)


class Ranks:
    """The ranks of a group, their server, and what it does.

    Attributes:
        heard: what each rank was answered, by rank.
        requests: what was asked of the lighthouse.
    """

    def __init__(self, size: int = 2) -> None:
        self.size = size
        self.now = 0.0
        self.heard: dict[int, list[Any]] = {rank: [] for rank in range(size)}
        self.requests: list[Message] = []
        self.last: dict[int, Verdict] = {}
        self.server_dies()

    def server_dies(self) -> None:
        """Another takes over."""
        self.group = Group(TOKEN, LIFE, self.size)

    def ask(self, rank: int, round: int = 1, *, epoch: int = EPOCH, ttl_s: float = 60.0, **asks: Any) -> None:
        entry = (Rank(f"handle {rank}", f"metadata {rank}"),)
        wants = participant("a", round=round, ranks=entry)._replace(**asks)
        self.say(rank, RankAsks(rank, ttl_s, epoch, wants, self.last.get(rank)))

    def vote(self, rank: int, commits: bool = True, round: int = 1) -> None:
        self.say(rank, Vote(rank, LIFE, round, commits))

    def say(self, rank: int, message: RankAsks | Vote) -> None:
        self.perform(self.group.hear(f"peer {rank}".encode(), message, self.now))

    def lighthouse_says(self, message: Message) -> None:
        self.perform(self.group.from_lighthouse(message))

    def form(self, round: int = 1, epoch: int = EPOCH) -> Quorum:
        quorum = Quorum(QuorumId(epoch, 7), "train", (self.member(round), participant("b")))
        self.lighthouse_says(QuorumFormed(epoch, quorum))
        return quorum

    def member(self, round: int) -> Participant:
        return participant("a", round=round, world_size=self.size)

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self.group.next_deadline() <= end:
            self.now = max(self.now, self.group.next_deadline())
            self.perform(self.group.time_passed(self.now))
        self.now = end

    def perform(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            if isinstance(effect, Request):
                self.requests.append(effect.message)
                continue
            assert isinstance(effect, Answer)
            for peer in effect.peers:
                rank = int(peer.split()[1])
                self.heard[rank].append(effect.message)
                if isinstance(effect.message, Verdict):
                    self.last[rank] = effect.message

    def answers(self, rank: int, kind: type) -> list[Any]:
        return [message for message in self.heard[rank] if isinstance(message, kind)]

    def asked_for_all(self) -> list[Participant]:
        return [request.participant for request in self.requests if isinstance(request, QuorumRequest)]


@pytest.fixture
def ranks() -> Ranks:
    return Ranks()


class TestQuorum:
    @pytest.mark.parametrize("order", list(permutations(range(3))))
    def test_once_all_have_asked_one_request_speaks_for_them(self, order: tuple[int, ...]) -> None:
        ranks = Ranks(3)
        for rank in order[:2]:
            ranks.ask(rank)
        assert not ranks.asked_for_all()
        ranks.ask(order[2])
        (whole,) = ranks.asked_for_all()
        assert [rank.handle for rank in whole.ranks] == ["handle 0", "handle 1", "handle 2"]
        assert (whole.world_size, whole.round, whole.incarnation) == (3, 1, LIFE)

    def test_all_get_the_answer_and_get_it_again(self, ranks: Ranks) -> None:
        ranks.ask(0)
        ranks.ask(1)
        quorum = ranks.form()
        formed = GroupFormed(EPOCH, 1, quorum)
        assert [ranks.answers(rank, GroupFormed) for rank in (0, 1)] == [[formed], [formed]]
        ranks.ask(1)
        assert ranks.answers(1, GroupFormed) == [formed, formed]
        assert len(ranks.asked_for_all()) == 1

    def test_what_the_lighthouse_does_not_answer_is_repeated(self, ranks: Ranks) -> None:
        ranks.ask(0)
        ranks.ask(1)
        ranks.advance(1.0)
        repeated = ranks.asked_for_all()
        assert len(repeated) >= 4
        assert all(request == repeated[0] for request in repeated)

    def test_the_group_is_as_far_as_the_rank_that_is_behind(self, ranks: Ranks) -> None:
        ranks.ask(0, step=7, committed_in=5, commit_failures=0)
        ranks.ask(1, step=6, committed_in=9, commit_failures=2, shrink_only=True)
        (whole,) = ranks.asked_for_all()
        assert (whole.step, whole.committed_in) == (6, 9)
        assert (whole.commit_failures, whole.shrink_only) == (2, True)

    def test_who_waits_is_told_for_which_ranks(self, ranks: Ranks) -> None:
        ranks.ask(1)
        ranks.advance(0.2)
        assert ranks.answers(1, GroupWaiting)[-1] == GroupWaiting(1, (0,), None)

    def test_or_for_what_the_lighthouse_waits(self, ranks: Ranks) -> None:
        ranks.ask(0)
        ranks.ask(1)
        why = QuorumWaiting(Reason.TOO_FEW_REPLICAS, 1, 2, ())
        ranks.lighthouse_says(why)
        assert [ranks.answers(rank, GroupWaiting)[-1] for rank in (0, 1)] == [GroupWaiting(1, (), why)] * 2

    def test_a_request_ends_with_its_time(self, ranks: Ranks) -> None:
        ranks.ask(0, ttl_s=0.3)
        ranks.advance(1.0)
        ranks.ask(1)
        ranks.advance(1.0)
        assert not ranks.asked_for_all()

    def test_an_answer_to_another_round_or_of_an_older_lighthouse_is_none(self, ranks: Ranks) -> None:
        ranks.ask(0, round=2)
        ranks.ask(1, round=2)
        ranks.form(round=1)
        ranks.form(round=2, epoch=EPOCH - 1)
        assert not ranks.answers(0, GroupFormed)
        ranks.form(round=2)
        assert ranks.answers(0, GroupFormed)

    def test_of_another_life_or_no_rank_of_ours_nobody_is_heard(self, ranks: Ranks) -> None:
        ranks.ask(0, incarnation=life(2))
        ranks.ask(1, incarnation=life(2))
        wants = participant("a", ranks=(Rank("", ""),))
        ranks.say(0, RankAsks(2, 60.0, EPOCH, wants, None))
        ranks.say(0, RankAsks(0, 60.0, EPOCH, wants._replace(ranks=()), None))
        ranks.say(0, Vote(0, life(2), 1, True))
        ranks.advance(1.0)
        assert not ranks.requests
        assert ranks.heard == {0: [], 1: []}


class TestCommit:
    @pytest.mark.parametrize(
        ("votes", "commits"),
        [((True, True), True), ((True, False), False), ((False, True), False), ((False, False), False)],
    )
    def test_it_counts_when_all_say_so(self, ranks: Ranks, votes: tuple[bool, ...], commits: bool) -> None:
        ranks.vote(0, votes[0])
        assert not ranks.heard[0]
        ranks.vote(1, votes[1])
        assert ranks.heard == {0: [Verdict(LIFE, 1, commits)], 1: [Verdict(LIFE, 1, commits)]}

    def test_a_vote_repeated_counts_once_and_gets_the_verdict_again(self, ranks: Ranks) -> None:
        ranks.vote(0)
        ranks.vote(0)
        assert not ranks.heard[0]
        ranks.vote(1)
        ranks.vote(0)
        assert len(ranks.answers(0, Verdict)) == 2

    def test_a_rank_that_goes_on_without_a_vote_votes_no(self, ranks: Ranks) -> None:
        ranks.vote(0)
        ranks.ask(1, round=2)
        assert ranks.answers(0, Verdict) == [Verdict(LIFE, 1, False)]

    def test_a_vote_on_an_older_round_is_too_late(self, ranks: Ranks) -> None:
        for round in (1, 2):
            ranks.vote(0, round=round)
            ranks.vote(1, round=round)
        ranks.vote(0, False, round=1)
        assert ranks.answers(0, Verdict)[-1].round == 2


class TestAnotherServerTakesOver:
    def test_while_all_wait(self, ranks: Ranks) -> None:
        ranks.ask(0)
        ranks.ask(1)
        ranks.server_dies()
        ranks.ask(1)
        assert ranks.requests[-1] == AnswerWanted(TOKEN, LIFE, 1)
        ranks.ask(0)
        assert len(ranks.asked_for_all()) == 2
        ranks.form()
        assert ranks.answers(0, GroupFormed) == ranks.answers(1, GroupFormed) != []

    def test_when_one_has_the_quorum_already_the_lighthouse_gives_it_again(self, ranks: Ranks) -> None:
        ranks.ask(0)
        ranks.ask(1)
        ranks.server_dies()
        ranks.ask(1)
        ranks.form()
        assert len(ranks.answers(1, GroupFormed)) == 1

    def test_when_one_has_gone_on_to_the_next_round_the_other_still_gets_the_last(self, ranks: Ranks) -> None:
        ranks.server_dies()
        ranks.ask(0, round=2)
        ranks.ask(1, round=1)
        assert ranks.requests[-2:] == [AnswerWanted(TOKEN, LIFE, 1), AnswerWanted(TOKEN, LIFE, 2)]
        quorum = ranks.form(1)
        assert ranks.answers(1, GroupFormed) == [GroupFormed(EPOCH, 1, quorum)]
        assert not ranks.answers(0, GroupFormed)
        ranks.ask(1, round=2)
        assert [whole.round for whole in ranks.asked_for_all()] == [2]
        ranks.form(2)
        assert [formed.round for formed in ranks.answers(0, GroupFormed)] == [2]

    def test_when_some_have_voted_they_vote_again(self, ranks: Ranks) -> None:
        ranks.vote(0)
        ranks.server_dies()
        ranks.vote(1)
        assert not ranks.heard[1]
        ranks.vote(0)
        assert ranks.heard[0] == ranks.heard[1] == [Verdict(LIFE, 1, True)]

    @pytest.mark.parametrize("commits", [True, False])
    def test_when_one_has_the_verdict_all_get_the_same(self, ranks: Ranks, commits: bool) -> None:
        ranks.vote(0, commits)
        ranks.vote(1)
        ranks.heard[1].clear()  # died on its way
        ranks.server_dies()
        ranks.vote(1)
        ranks.ask(0, round=2)
        assert ranks.answers(1, Verdict) == [Verdict(LIFE, 1, commits)]
        ranks.ask(1, round=2)
        assert [whole.round for whole in ranks.asked_for_all()] == [2]

    def test_in_whatever_order_they_come(self, ranks: Ranks) -> None:
        ranks.vote(0)
        ranks.vote(1)
        ranks.heard[1].clear()
        ranks.server_dies()
        ranks.ask(0, round=2)
        ranks.vote(1)
        assert ranks.answers(1, Verdict) == [Verdict(LIFE, 1, True)]
