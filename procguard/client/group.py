"""The server of a replica group: its ranks' requests become one, their votes one verdict. Pure.

It runs where rank 0's session runs. Should that place end, another takes over at another address and knows
nothing; the ranks, which repeat what is not answered, find it and tell it all that matters:

- *A quorum.* One that was given before is the lighthouse's to give again (``AnswerWanted``): a rank that has
  it already does not ask any more, so the new server would wait for it in vain.
- *A vote.* Votes are repeated until there is a verdict. A rank that has heard it tells it with its next
  request (``RankAsks.last``), so that all get the same one. A rank that asks for the next round and knows of
  no verdict has never voted in the last: then no other can have been told that it counts, and it does not.

The ranks should be equally far. They are not after a step in which one could not load the state it had
fetched. The group is then as far as the one that is behind, and heals as a whole.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from procguard.client.group_words import (
    FromRank,
    FromServer,
    GroupFormed,
    GroupWaiting,
    RankAsks,
    Verdict,
    Vote,
)
from procguard.messages import (
    AnswerWanted,
    Incarnation,
    Message,
    Participant,
    QuorumFormed,
    QuorumRequest,
    QuorumWaiting,
)

RETRY_FIRST_S = 0.1
RETRY_LAST_S = 0.25


class Answer(NamedTuple):
    """To ranks, by the connections on which they spoke last."""

    peers: tuple[bytes, ...]
    message: FromServer


class Request(NamedTuple):
    """To the lighthouse."""

    message: QuorumRequest | AnswerWanted


Effect = Answer | Request


class _Asked(NamedTuple):
    peer: bytes
    asks: RankAsks
    expires_at: float


class Group:
    """One life of one group.

    Args:
        token: of rank 0, for which it speaks.
        size: ranks in the group.
    """

    def __init__(self, token: bytes, incarnation: Incarnation, size: int) -> None:
        self._token = token
        self._incarnation = incarnation
        self._size = size
        self._asked: dict[int, _Asked] = {}
        self._formed: GroupFormed | None = None
        self._votes: dict[int, tuple[bytes, bool]] = {}
        self._vote_round = 0
        self._verdict: Verdict | None = None
        self._waiting: QuorumWaiting | None = None
        self._retry_at = inf
        self._retry_s = RETRY_FIRST_S
        self._effects: list[Effect] = []

    def hear(self, peer: bytes, message: FromRank, now: float) -> tuple[Effect, ...]:
        """Take in what a rank says. One of another life is not answered: it hears from the lighthouse."""
        if message.group_rank < self._size:
            if isinstance(message, Vote):
                if message.incarnation == self._incarnation:
                    self._vote(peer, message)
            elif message.participant.incarnation == self._incarnation and len(message.participant.ranks) == 1:
                self._asks(peer, message, now)
        return self._flush()

    def from_lighthouse(self, message: Message) -> tuple[Effect, ...]:
        """Take in what the lighthouse says on rank 0's connection."""
        if isinstance(message, QuorumFormed):
            self._form(message)
        elif isinstance(message, QuorumWaiting) and self._is_complete():
            self._waiting = message
            self._say_why()
        return self._flush()

    def time_passed(self, now: float) -> tuple[Effect, ...]:
        """Repeat what the lighthouse has not answered; tell the ranks why they wait."""
        if now >= self._retry_at:
            self._asked = {rank: asked for rank, asked in self._asked.items() if asked.expires_at > now}
            self._request(now)
            self._say_why()
        return self._flush()

    def next_deadline(self) -> float:
        """When ``time_passed`` is due."""
        return self._retry_at

    # --- quorum

    def _asks(self, peer: bytes, asks: RankAsks, now: float) -> None:
        this = asks.participant.round
        self._learn(asks.last)
        self._give_up_votes_before(this)
        formed = self._formed
        if formed is not None and this <= formed.round:
            if this == formed.round and formed.epoch >= asks.epoch:
                self._effects.append(Answer((peer,), formed))
            return
        known = self._asked.get(asks.group_rank)
        repeated = known is not None and known.asks.participant == asks.participant
        self._asked[asks.group_rank] = _Asked(peer, asks, now + asks.ttl_s)
        if not repeated:
            self._retry_s = RETRY_FIRST_S
            self._request(now)

    def _this_round(self) -> dict[int, _Asked]:
        """Who asks for the newest round that anyone asks for."""
        newest = max([asked.asks.participant.round for asked in self._asked.values()], default=0)
        return {rank: a for rank, a in self._asked.items() if a.asks.participant.round == newest}

    def _is_complete(self) -> bool:
        return len(self._this_round()) == self._size

    def _request(self, now: float) -> None:
        """Ask for all once all have asked; before that, whether an earlier server was answered."""
        if not self._asked:
            self._retry_at = inf
            return
        asking = self._this_round()
        if self._is_complete():
            ttl_s = max(asked.expires_at for asked in asking.values()) - now
            whole = together([asking[rank].asks.participant for rank in sorted(asking)])
            self._effects.append(Request(QuorumRequest(self._token, max(0.0, ttl_s), whole)))
        elif self._formed is None:
            rounds = {asked.asks.participant.round for asked in self._asked.values()}
            for this in sorted(rounds):  # one rank may have gone on, while another still asks for the last
                self._effects.append(Request(AnswerWanted(self._token, self._incarnation, this)))
        self._retry_at = now + self._retry_s
        self._retry_s = min(2 * self._retry_s, RETRY_LAST_S)

    def _form(self, formed: QuorumFormed) -> None:
        """Of the newest round, or of one before it that a rank still asks for."""
        participants = formed.quorum.participants
        rounds = {p.round for p in participants if p.incarnation == self._incarnation}
        answered = {r: asked for r, asked in self._asked.items() if asked.asks.participant.round in rounds}
        if not answered or formed.epoch < max(asked.asks.epoch for asked in answered.values()):
            return
        this = next(iter(answered.values())).asks.participant.round
        self._formed = GroupFormed(formed.epoch, this, formed.quorum)
        self._effects.append(Answer(tuple([asked.peer for asked in answered.values()]), self._formed))
        self._asked = {r: asked for r, asked in self._asked.items() if asked.asks.participant.round > this}
        self._waiting = None
        if not self._asked:
            self._retry_at = inf

    def _say_why(self) -> None:
        asking = self._this_round()
        if not asking:
            return
        this = next(iter(asking.values())).asks.participant.round
        missing = tuple([rank for rank in range(self._size) if rank not in asking])
        why = GroupWaiting(this, missing, None if missing else self._waiting)
        self._effects.append(Answer(tuple([asked.peer for asked in asking.values()]), why))

    # --- commit

    def _vote(self, peer: bytes, vote: Vote) -> None:
        if self._verdict is not None and vote.round <= self._verdict.round:
            if vote.round == self._verdict.round:
                self._effects.append(Answer((peer,), self._verdict))
            return
        if vote.round < self._vote_round:
            return
        if vote.round > self._vote_round:
            self._vote_round = vote.round
            self._votes.clear()
        self._votes[vote.group_rank] = (peer, vote.commits)
        if len(self._votes) == self._size:
            self._judge(all(commits for _, commits in self._votes.values()))

    def _learn(self, known: Verdict | None) -> None:
        """A verdict of an earlier server, from one who heard it."""
        if known is None or known.incarnation != self._incarnation:
            return
        if self._verdict is None or known.round > self._verdict.round:
            if known.round == self._vote_round:
                self._judge(known.commits)
            self._verdict = known

    def _give_up_votes_before(self, this: int) -> None:
        """Whoever asks for a round and knows of no verdict on the last has not voted in it, nor will."""
        judged = self._verdict.round if self._verdict else 0
        if judged < self._vote_round < this:
            self._judge(False)

    def _judge(self, commits: bool) -> None:
        self._verdict = Verdict(self._incarnation, self._vote_round, commits)
        self._effects.append(Answer(tuple([peer for peer, _ in self._votes.values()]), self._verdict))
        self._votes.clear()

    def _flush(self) -> tuple[Effect, ...]:
        effects = tuple(self._effects)
        self._effects.clear()
        return effects


def together(ranks: list[Participant]) -> Participant:
    """What the ranks of a group, in order, ask for as one."""
    first = ranks[0]
    step, committed_in = min((rank.step, rank.committed_in) for rank in ranks)
    return first._replace(
        step=step,
        committed_in=committed_in,
        world_size=len(ranks),
        shrink_only=any(rank.shrink_only for rank in ranks),
        commit_failures=max(rank.commit_failures for rank in ranks),
        ranks=tuple([rank.ranks[0] for rank in ranks]),
    )
