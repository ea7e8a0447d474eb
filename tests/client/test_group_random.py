"""A replica group's server among ranks that behave, on lines that do not; and among ranks that do not either.

Ranks repeat what is not answered, as ``GroupClient`` does; the lines lose, and the place that serves ends at
any moment and is followed by one that knows nothing. All that counts is then said twice or by several
servers, and still: one round has one verdict, and it counts only if all voted for it.
"""

from __future__ import annotations

from math import inf
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from procguard import codec
from procguard.client.group import Answer, Effect, Group, Request
from procguard.client.group_words import GROUP, GroupFormed, RankAsks, Verdict, Vote
from procguard.messages import (
    KINDS,
    Message,
    Quorum,
    QuorumFormed,
    QuorumId,
    QuorumRequest,
    QuorumWaiting,
    Rank,
    Reason,
)
from tests.client.fakes import EPOCH, TOKEN, life, participant
from tests.test_codec import built

SIZE_MAX = 3
LIFE = life(1)
TTL_S = 60.0
EFFECTS_MAX = 8
ROUNDS_TO_END = 10
"""Of repeating, in which the last verdict is given: one for each thing that can have been lost."""


class OneRank:
    """What a rank knows: its round, whether that was formed, its own vote, and the last verdict."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.round = 0
        self.formed: GroupFormed | None = None
        self.vote: bool | None = None
        self.last: Verdict | None = None

    @property
    def peer(self) -> bytes:
        return f"peer {self.number}".encode()

    @property
    def is_idle(self) -> bool:
        """Has all that it asked for."""
        return self.round == 0 or (self.last is not None and self.last.round == self.round)

    def says(self) -> RankAsks | Vote | None:
        """What it repeats until it is answered."""
        if self.is_idle:
            return None
        if self.formed is None:
            entry = (Rank(f"handle {self.number}", ""),)
            asks = participant("a", round=self.round, ranks=entry)
            return RankAsks(self.number, TTL_S, EPOCH, asks, self.last)
        return Vote(self.number, LIFE, self.round, self.vote) if self.vote is not None else None

    def hears(self, message: Any) -> None:
        if isinstance(message, GroupFormed) and message.round == self.round and self.formed is None:
            self.formed = message
        elif isinstance(message, Verdict) and message.round == self.round and self.vote is not None:
            self.last = message

    def next_round(self) -> None:
        self.round += 1
        self.formed, self.vote = None, None


class Honest(RuleBasedStateMachine):
    """Messages are delivered at once or lost: a rank's connection keeps their order."""

    @initialize(size=st.integers(2, SIZE_MAX))
    def begin(self, size: int) -> None:
        self.ranks = [OneRank(number) for number in range(size)]
        self.now = 0.0
        self.deaf: set[int] = set()
        self.verdicts: dict[int, bool] = {}
        self.votes: dict[int, dict[int, bool]] = {}
        self.asked: QuorumRequest | None = None
        self.quorums: dict[int, QuorumFormed] = {}
        self.server_dies()

    @rule()
    def server_dies(self) -> None:
        self.group = Group(TOKEN, LIFE, len(self.ranks))

    @rule(deaf=st.sets(st.integers(0, SIZE_MAX - 1), max_size=SIZE_MAX))
    def lines(self, deaf: set[int]) -> None:
        """From now on what the server says to these is lost."""
        self.deaf = deaf

    @rule(number=st.integers(0, SIZE_MAX - 1))
    def begins_a_round(self, number: int) -> None:
        """The next one, unless the others are still in the one before; with or without having voted."""
        rank = self.ranks[number % len(self.ranks)]
        behind = min(other.round for other in self.ranks)
        if rank.round == behind and (rank.is_idle or (rank.formed and rank.vote is None)):
            rank.next_round()
            self.repeats(number)

    @rule(number=st.integers(0, SIZE_MAX - 1), commits=st.sampled_from([True, True, True, False]))
    def votes_on_its_round(self, number: int, commits: bool) -> None:
        rank = self.ranks[number % len(self.ranks)]
        if rank.formed is not None and rank.vote is None:
            rank.vote = commits
            self.votes.setdefault(rank.round, {})[rank.number] = commits
            self.repeats(number)

    @rule()
    def all_get_a_quorum(self) -> None:
        """The usual way: all ask, and are answered."""
        for rank in self.ranks:
            self.begins_a_round(rank.number)
        self.all_repeat()
        self.lighthouse_answers(False)

    @rule(
        silent=st.sets(st.integers(0, SIZE_MAX - 1), max_size=1), commits=st.sampled_from([True, True, False])
    )
    def all_vote(self, silent: set[int], commits: bool) -> None:
        for rank in self.ranks:
            if rank.number not in silent:
                self.votes_on_its_round(rank.number, commits)

    @rule(number=st.integers(0, SIZE_MAX - 1))
    def repeats(self, number: int) -> None:
        rank = self.ranks[number % len(self.ranks)]
        said = rank.says()
        if said is not None:
            assert GROUP.decode(GROUP.encode(said)) == said
            self.perform(self.group.hear(rank.peer, said, self.now))

    @rule()
    def all_repeat(self) -> None:
        for rank in self.ranks:
            self.repeats(rank.number)

    @rule(seconds=st.sampled_from([0.1, 0.3, 1.0]))
    def time_passes(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.group.next_deadline()) <= end:
            self.now = max(self.now, due)
            self.perform(self.group.time_passed(self.now))
            assert self.group.next_deadline() > self.now
        self.now = end

    @rule(waiting=st.booleans())
    def lighthouse_answers(self, waiting: bool) -> None:
        if self.asked is None:
            return
        asks = self.asked.participant
        if waiting:
            message: Message = QuorumWaiting(Reason.MEMBERS_MISSING, 1, 2, ("b",))
        else:
            quorum = Quorum(QuorumId(EPOCH, asks.round), "train", (asks, participant("b")))
            message = self.quorums.setdefault(asks.round, QuorumFormed(EPOCH, quorum))
        self.perform(self.group.from_lighthouse(message))

    def perform(self, effects: tuple[Effect, ...]) -> None:
        assert len(effects) <= EFFECTS_MAX
        for effect in effects:
            if isinstance(effect, Request):
                self.request(effect.message)
                continue
            assert GROUP.decode(GROUP.encode(effect.message)) == effect.message
            for rank in self.ranks:
                if rank.peer in effect.peers and rank.number not in self.deaf:
                    rank.hears(effect.message)

    def request(self, message: Any) -> None:
        assert codec.decode(codec.encode(message)) == message
        if isinstance(message, QuorumRequest):
            self.asked = message
            assert [entry.handle for entry in message.participant.ranks] == [
                f"handle {rank.number}" for rank in self.ranks
            ], "it speaks for all, in order"
        elif message.round in self.quorums:  # AnswerWanted: given before, and so given again
            self.perform(self.group.from_lighthouse(self.quorums[message.round]))

    @invariant()
    def one_round_has_one_verdict_and_it_counts_only_if_all_said_so(self) -> None:
        for rank in self.ranks:
            if rank.last is None:
                continue
            known = self.verdicts.setdefault(rank.last.round, rank.last.commits)
            assert rank.last.commits is known, f"two verdicts on round {rank.last.round}"
            if known:
                votes = self.votes[rank.last.round]
                assert len(votes) == len(self.ranks)
                assert all(votes.values())

    @invariant()
    def it_keeps_no_more_than_one_word_of_each(self) -> None:
        check_bounds(self.group, len(self.ranks))

    def teardown(self) -> None:
        """Once nothing more goes wrong, each gets what it asks for, if the others ask for it too."""
        if not hasattr(self, "ranks"):
            return
        self.deaf = set()
        front = max(rank.round for rank in self.ranks)
        for _ in range(ROUNDS_TO_END):
            for rank in self.ranks:
                if rank.formed is not None and rank.vote is None:
                    rank.vote = False
                    self.votes.setdefault(rank.round, {})[rank.number] = False
                if rank.is_idle and rank.round < front:
                    rank.next_round()
            self.all_repeat()
            self.time_passes(1.0)
            self.lighthouse_answers(False)
        self.all_repeat()
        stuck = [rank.number for rank in self.ranks if not rank.is_idle]
        assert not stuck, f"ranks {stuck} wait for ever"
        self.one_round_has_one_verdict_and_it_counts_only_if_all_said_so()


def check_bounds(group: Group, size: int) -> None:
    assert len(group._asked) <= size
    assert len(group._votes) <= size
    assert (group.next_deadline() < inf) == bool(group._asked)


class Anybody(RuleBasedStateMachine):
    """Ranks that say whatever the codec lets through."""

    @initialize(size=st.integers(1, SIZE_MAX))
    def begin(self, size: int) -> None:
        self.size = size
        self.now = 0.0
        self.group = Group(TOKEN, LIFE, size)

    @rule(
        peer=st.binary(min_size=1, max_size=2),
        rank=st.integers(0, SIZE_MAX + 1),
        number=st.integers(1, 2),
        round=st.integers(0, 4),
        ttl_s=st.sampled_from([0.0, 0.3, 60.0, 1e308]),
        ranks=st.integers(0, 2),
        last=st.none()
        | st.builds(Verdict, st.builds(life, st.integers(1, 2)), st.integers(0, 4), st.booleans()),
        epoch=st.integers(EPOCH - 1, EPOCH + 1),
    )
    def asks(self, peer: bytes, rank: int, number: int, round: int, ttl_s: float, **said: Any) -> None:
        entries = tuple([Rank("handle", "")] * said["ranks"])
        asks = participant("a", number, round=round, ranks=entries)
        self.perform(
            self.group.hear(peer, RankAsks(rank, ttl_s, said["epoch"], asks, said["last"]), self.now)
        )

    @rule(
        peer=st.binary(min_size=1, max_size=2),
        vote=st.builds(
            Vote,
            st.integers(0, SIZE_MAX + 1),
            st.builds(life, st.integers(1, 2)),
            st.integers(0, 4),
            st.booleans(),
        ),
    )
    def votes(self, peer: bytes, vote: Vote) -> None:
        self.perform(self.group.hear(peer, vote, self.now))

    @rule(message=st.one_of(built(RankAsks), built(Vote)))
    def says_anything(self, message: RankAsks | Vote) -> None:
        self.perform(self.group.hear(b"peer", message, self.now))

    @rule(
        epoch=st.integers(EPOCH - 1, EPOCH + 1),
        rounds=st.lists(st.tuples(st.integers(1, 2), st.integers(0, 4)), max_size=2),
    )
    def forms(self, epoch: int, rounds: list[tuple[int, int]]) -> None:
        members = tuple([participant("a", number, round=round) for number, round in rounds])
        quorum = Quorum(QuorumId(epoch, 7), "train", members)
        self.perform(self.group.from_lighthouse(QuorumFormed(epoch, quorum)))

    @rule(message=st.one_of([built(kind) for kind in KINDS.values()]))
    def lighthouse_says_anything(self, message: Message) -> None:
        self.perform(self.group.from_lighthouse(message))

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.perform(self.group.time_passed(self.now))
        assert self.group.next_deadline() > self.now

    def perform(self, effects: tuple[Effect, ...]) -> None:
        assert len(effects) <= EFFECTS_MAX
        for effect in effects:
            if isinstance(effect, Answer):
                assert GROUP.decode(GROUP.encode(effect.message)) == effect.message
            else:
                assert codec.decode(codec.encode(effect.message)) == effect.message

    @invariant()
    def it_keeps_no_more_than_one_word_of_each(self) -> None:
        check_bounds(self.group, self.size)


for machine, examples in ((Honest, 120), (Anybody, 60)):
    machine.TestCase.settings = settings(
        derandomize=True,
        max_examples=examples,
        stateful_step_count=40,
        suppress_health_check=[HealthCheck.too_slow],
    )
TestHonest = Honest.TestCase
TestAnybody = Anybody.TestCase
