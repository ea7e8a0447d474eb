"""One round, from the question to a configured process group, on the test's own thread."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from procguard.client.abort import FencedAbort
from procguard.client.formation import Formation, Round
from procguard.client.phases import Phases
from procguard.client.train_state import DEFAULT_PART, Progress, TrainState
from procguard.errors import (
    CheckpointError,
    CollectiveError,
    ProcGuardError,
    QuorumTimeout,
    UnsupportedState,
    UsageError,
)
from procguard.messages import Participant, Phase, Quorum, Rank
from tests.client.fakes import (
    EPOCH,
    STOPPED,
    FakeCheckpoints,
    FakeGroup,
    FakeMembership,
    life,
    notice,
    participant,
    quorum,
)

MINUTE = timedelta(seconds=60)
OWN = {"step": 5, "batches_committed": 20, "committed_in": 9}
STATE = {"procguard": OWN, "user": {DEFAULT_PART: {"weights": 1}}}


class Stage:
    """The formation of replica ``a``, which has committed ``progress``."""

    def __init__(
        self,
        quorum_retries: int = 0,
        init_sync: bool = True,
        timeout: timedelta = MINUTE,
        membership: FakeMembership | None = None,
    ) -> None:
        self.pg = FakeGroup()
        self.transport = FakeCheckpoints()
        self.membership = membership or FakeMembership()
        self.abort = FencedAbort("a", self.pg, self.transport, lambda: 0, self.membership.call_later)
        self.phases: list[Phase] = []
        self.state = TrainState()
        self.state.progress = Progress(step=5, committed_in=9, batches=20)
        self.state.register(DEFAULT_PART, lambda part: None, lambda: {"weights": 1})
        self.formation = Formation(
            self.membership,
            self.pg,
            self.transport,
            self.abort,
            Phases(lambda phase, signs: self.phases.append(phase)),
            host="10.0.0.1",
            init_sync=init_sync,
            timeout=timeout,
            quorum_retries=quorum_retries,
            state=self.state,
        )

    def run(self, *answers: Any, allow_heal: bool = True, shrink_only: bool = False) -> Round:
        self.membership.answer(*answers)
        this = Round(allow_heal, shrink_only, MINUTE)
        self.formation.run(this)
        return this

    def rounds(self) -> list[int]:
        return [asked.round for asked in self.membership.asked]


def of(number: int, *peers: Participant, own: int = 1) -> Callable[[Participant], Quorum]:
    """A quorum with these peers and whoever asks."""
    return lambda asks: quorum(number, asks._replace(incarnation=life(own)), *peers)


def peer(name: str = "b", number: int = 2, step: int = 5, committed_in: int = 9) -> Participant:
    return participant(name, number, step=step, committed_in=committed_in)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_what_is_asked_says_how_far_this_replica_is_and_where_it_can_be_reached(stage: Stage) -> None:
    stage.state.fail()
    stage.state.fail()
    stage.run(of(1), shrink_only=True)
    (asked,) = stage.membership.asked
    assert asked[:10] == ("a", life(1), 1, 5, 9, 1, "10.0.0.1", True, 2, b"")
    assert asked.ranks[0] == (stage.pg.handle(), "checkpoint 1")
    assert stage.membership.timeouts_s == [60.0]


def test_the_group_is_configured_with_all_handles_in_the_order_of_ranks(stage: Stage) -> None:
    this = stage.run(of(1, peer("b"), peer("0")))
    assert this.quorum is not None
    packed = this.quorum.quorum_id.packed
    assert stage.pg.configured == [(("handle of 0", ":1", "handle of b"), 1, packed)]
    assert this.plan is not None
    assert not this.behind
    assert this.error is None


def test_a_quorum_that_stays_the_same_is_not_configured_again(stage: Stage) -> None:
    for _ in range(3):
        stage.run(of(1, peer()))
    assert len(stage.pg.configured) == 1
    assert stage.rounds() == [1, 2, 3]
    stage.run(of(2, peer()))
    assert len(stage.pg.configured) == 2


# --- quorums that are broken before they are in use ---------------------------------------------------


def test_a_quorum_that_names_one_who_is_over_is_asked_again_without_configuring(stage: Stage) -> None:
    stage.abort.hear(EPOCH, (notice("b", 2),))
    this = stage.run(of(1, peer("b")), of(2))
    assert [quorum_id for _, _, quorum_id in stage.pg.configured] == [quorum(2, peer()).quorum_id.packed]
    assert this.error is None
    assert stage.rounds() == [1, 2]
    assert [asked.commit_failures for asked in stage.membership.asked] == [0, 1], "so that its id is another"


def test_a_quorum_of_our_own_past_life_is_asked_again_too(stage: Stage) -> None:
    stage.abort.over(EPOCH, life(1), STOPPED)
    stage.run(of(1, peer()), of(2, peer(), own=7))
    assert len(stage.pg.configured) == 1


def test_an_abort_during_configure_makes_it_ask_again_at_once(stage: Stage) -> None:
    def strike(quorum_id: int) -> None:
        stage.pg.at_configure = lambda quorum_id: None
        stage.abort.hear(EPOCH, (notice("b", 2),))

    stage.pg.at_configure = strike
    this = stage.run(of(1, peer("b"), peer("c", 3)), of(2, peer("c", 3)))
    assert this.error is None
    assert [rank for _, rank, _ in stage.pg.configured] == [0]
    assert len(stage.membership.asked) == 2


def test_a_second_notice_of_the_broken_quorum_does_not_spoil_the_next_one(stage: Stage) -> None:
    """While it is asked for, nothing is in use; an abort would hold on in the transport's new round."""

    def strike(quorum_id: int) -> None:
        stage.pg.at_configure = lambda quorum_id: None
        stage.abort.hear(EPOCH, (notice("b", 2),))

    def second(asks: Participant) -> Quorum:
        stage.abort.hear(EPOCH, (notice("c", 3),))
        return quorum(2, asks, peer("d", 4, step=8))

    stage.pg.at_configure = strike
    stage.transport.states["checkpoint of d"] = STATE
    this = stage.run(of(1, peer("b"), peer("c", 3)), second)
    assert this.state == STATE


def test_a_peer_that_cannot_be_reached_fails_the_step_and_frees_the_others(stage: Stage) -> None:
    packed = quorum(1, peer()).quorum_id.packed
    stage.pg.refusals.append(CollectiveError("nobody listens there", packed))
    this = stage.run(of(1, peer(step=8)))
    assert isinstance(this.error, CollectiveError)
    assert stage.pg.aborted == [packed]
    assert stage.transport.is_aborted
    assert this.state is None, "nothing is fetched in a step that is over"
    this = stage.run(of(2, peer()))
    assert this.error is None


def test_an_error_reported_while_the_quorum_forms_frees_the_others_once_it_stands(stage: Stage) -> None:
    """Else they would wait in a collective for this replica, which contributes nothing more."""
    this = Round(True, False, MINUTE)
    assert this.fail(ValueError("in the forward pass"))
    stage.membership.answer(of(1, peer(step=8)))
    stage.formation.run(this)
    assert stage.pg.aborted == [quorum(1, peer()).quorum_id.packed]
    assert this.state is None


# --- no quorum ----------------------------------------------------------------------------------------


def test_a_quorum_that_timed_out_is_asked_for_again_as_often_as_allowed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = Stage(quorum_retries=1)
    this = stage.run(QuorumTimeout("first"), of(1))
    assert this.quorum is not None
    assert "first; asking again" in caplog.text
    with pytest.raises(QuorumTimeout, match="third"):
        stage.run(QuorumTimeout("second"), QuorumTimeout("third"))
    assert stage.rounds() == [1, 1, 2, 2], "asked again, a round gets the answer that came too late"


# --- healing ------------------------------------------------------------------------------------------


def test_one_behind_fetches_the_state_of_the_step_that_all_will_be_at(stage: Stage) -> None:
    stage.transport.states["checkpoint of b"] = STATE
    this = stage.run(of(1, peer(step=8)))
    assert this.state == STATE
    assert this.behind, "until it has loaded it"
    assert stage.phases == [Phase.HEAL, Phase.COMPUTE]


def test_one_up_to_date_serves_those_who_are_behind(stage: Stage) -> None:
    this = stage.run(of(1, peer(step=3), peer("c", 3)))
    assert stage.transport.sent == [(STATE, [1], 5)]
    assert this.state is None
    assert not this.behind


def test_where_healing_is_not_allowed_nothing_is_fetched_or_served(stage: Stage) -> None:
    this = stage.run(of(1, peer(step=8)), allow_heal=False)
    assert this.state is None
    assert this.behind
    stage.run(of(2, peer(step=3)), allow_heal=False)
    assert stage.transport.sent == []


def test_a_fetch_that_fails_leaves_this_replica_behind_and_the_step_alive(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    this = stage.run(of(1, peer(step=8)))
    assert this.behind
    assert this.error is None
    assert stage.pg.aborted == []
    assert "Healing from b failed, the next step tries again: the source does not answer" in caplog.text


def test_a_notice_ends_the_fetch(stage: Stage) -> None:
    stage.transport.states["checkpoint of b"] = STATE
    stage.transport.at_fetch = lambda: stage.abort.hear(EPOCH, (notice("b", 2),))
    assert stage.run(of(1, peer(step=8))).state is None


def test_a_notice_just_before_serving_is_no_error_of_this_replica(stage: Stage) -> None:
    stage.transport.at_send = lambda: stage.abort.hear(EPOCH, (notice("b", 2),))
    this = stage.run(of(1, peer(step=3)))
    assert this.error is None
    assert stage.transport.sent == []


@pytest.mark.parametrize("error", [UnsupportedState("at model.hook: a function"), KeyError("of the user's")])
def test_a_state_that_cannot_be_served_is_the_callers_mistake(stage: Stage, error: Exception) -> None:
    def broken() -> Any:
        raise error

    stage.state.register(DEFAULT_PART, lambda part: None, broken)
    with pytest.raises(type(error)):
        stage.run(of(1, peer(step=3)))
    assert stage.pg.aborted == [quorum(1, peer()).quorum_id.packed], "nobody waits for its collectives"
    assert stage.transport.is_aborted, "nor for its state"


def test_a_state_that_may_not_be_read_is_not_served_and_the_step_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = Stage(timeout=timedelta(milliseconds=2))
    stage.state.disallow_read()
    this = stage.run(of(1, peer(step=3)))
    assert this.error is None
    assert stage.transport.sent == []
    assert stage.pg.aborted == []
    assert "did not allow the state to be read for 0.001 s" in caplog.text


def test_a_silent_peer_costs_less_than_the_collective_in_which_the_others_wait(stage: Stage) -> None:
    """So they can finish it, and the step goes on without the newcomer."""
    stage.run(of(1, peer(step=8)))
    stage.run(of(2, peer(step=3)))
    assert stage.transport.silences == [MINUTE / 2, MINUTE / 2]


def test_before_the_first_step_all_take_over_one_state(stage: Stage) -> None:
    stage.state.progress = Progress()
    stage.run(of(1, peer(step=0, committed_in=0)))
    assert [(ranks, step) for _, ranks, step in stage.transport.sent] == [([1], 0)]
    alone = Stage(init_sync=False)
    alone.state.progress = Progress()
    alone.run(of(1, peer(step=0, committed_in=0)))
    assert alone.transport.sent == []


def test_where_healing_is_not_allowed_all_begin_with_their_own_state(stage: Stage) -> None:
    stage.state.progress = Progress()
    this = stage.run(of(1, peer("0", step=0, committed_in=0)), allow_heal=False)
    assert this.plan is not None
    assert this.plan.contributors == (0, 1)
    assert not this.behind


# --- a round ------------------------------------------------------------------------------------------


def test_the_first_error_of_a_round_stays() -> None:
    this = Round(True, False, MINUTE)
    first = CheckpointError("first")
    assert this.fail(first)
    assert not this.fail(CheckpointError("second"))
    assert this.conclude() is first


def test_once_concluded_nothing_fails_it() -> None:
    this = Round(True, False, MINUTE)
    assert this.conclude() is None
    assert not this.fail(CheckpointError("late"))
    assert this.error is None


# --- one of several ranks -----------------------------------------------------------------------------


def ranked(entry: Participant, size: int = 2) -> Participant:
    """The same member with so many ranks, whose handles and addresses end in their number."""
    ranks = [
        Rank(f"{entry.ranks[0].handle}/{n}", f"{entry.ranks[0].checkpoint_metadata}/{n}") for n in range(size)
    ]
    return entry._replace(world_size=size, ranks=tuple(ranks))


def of_groups(number: int, *peers: Participant, **own: Any) -> Callable[[Participant], Quorum]:
    """A quorum of groups of two ranks, with these peers and our group as far as ``own`` says."""

    def formed(asks: Participant) -> Quorum:
        ours = ranked(asks._replace(incarnation=life(1), **own))
        return quorum(number, ours, *map(ranked, peers))

    return formed


@pytest.fixture
def rank_1() -> Stage:
    return Stage(membership=FakeMembership(group_rank=1, group_world_size=2))


def test_a_rank_asks_for_itself_and_meets_the_same_rank_of_the_others(rank_1: Stage) -> None:
    rank_1.run(of_groups(1, peer("b")))
    (asked,) = rank_1.membership.asked
    assert (asked.world_size, len(asked.ranks)) == (2, 1)
    handles, me, _ = rank_1.pg.configured[0]
    assert handles == (f"{rank_1.pg.handle()}/1", "handle of b/1")
    assert me == 0


def test_a_rank_heals_from_the_same_rank_of_another_group(rank_1: Stage) -> None:
    rank_1.transport.states["checkpoint of b/1"] = STATE
    this = rank_1.run(of_groups(1, peer(step=8)))
    assert this.state == STATE


def test_a_rank_that_is_ahead_of_its_group_heals_with_it(rank_1: Stage) -> None:
    rank_1.transport.states["checkpoint of b/1"] = STATE
    this = rank_1.run(of_groups(1, peer(step=5), step=4))
    assert this.behind
    assert this.state == STATE


def test_ranks_that_are_not_equally_far_and_have_nobody_to_heal_from(rank_1: Stage) -> None:
    with pytest.raises(
        ProcGuardError, match="rank 1 of replica a is at step 5, another rank of it at step 4"
    ):
        rank_1.run(of_groups(1, peer(step=4), step=4))


def test_groups_of_different_sizes_cannot_train_together(rank_1: Stage) -> None:
    def formed(asks: Participant) -> Quorum:
        return quorum(1, ranked(asks._replace(incarnation=life(1))), ranked(peer("b"), size=4))

    with pytest.raises(UsageError, match="replica b has 4 ranks, replica a has 2: give all replica groups"):
        rank_1.run(formed)


def test_a_rank_does_not_ask_again_by_itself_but_votes_the_step_down(rank_1: Stage) -> None:
    rank_1.abort.hear(EPOCH, (notice("b", 2),))
    this = rank_1.run(of_groups(1, peer("b")))
    assert rank_1.rounds() == [1]
    assert isinstance(this.error, CollectiveError)
    assert this.plan is not None
    assert not rank_1.pg.configured
