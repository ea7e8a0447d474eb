"""torchft's rules for one rank's part in a quorum, and what is derived from its callers' calls."""

from __future__ import annotations

import pytest

from procguard.adapters.torchft.addresses import parse_bind
from procguard.adapters.torchft.plan import result_of
from procguard.adapters.torchft.results import QuorumResult, packed, quorum_of
from procguard.adapters.torchft.seat import Progress, Rounds
from procguard.errors import ProtocolError, UsageError
from procguard.messages import DATA_BYTES_MAX, Incarnation, Participant, Quorum, QuorumId, Rank


def member(name: str, step: int, committed_in: int = 0, ranks: int = 2, failures: int = 0) -> Participant:
    return Participant(
        replica_id=name,
        incarnation=Incarnation(1, 1),
        round=1,
        step=step,
        committed_in=committed_in,
        world_size=ranks,
        address=f"http://{name}:1",
        shrink_only=False,
        commit_failures=failures,
        data=packed(f"store-{name}"),
        ranks=tuple([Rank(f"handle-{name}-{rank}", f"metadata-{name}-{rank}") for rank in range(ranks)]),
    )


def quorum(*members: Participant, number: int = 7) -> Quorum:
    return Quorum(QuorumId(1, number), "default", members)


def part(of: Quorum, name: str, rank: int = 0, init_sync: bool = True) -> QuorumResult:
    return result_of(of, name, rank, init_sync)


def test_all_are_up_to_date() -> None:
    result = part(quorum(member("a", 5), member("b", 5, failures=3)), "b", rank=1)
    assert result == QuorumResult(
        quorum_id=QuorumId(1, 7).packed,
        replica_rank=1,
        replica_world_size=2,
        store_address="store-b",
        max_step=5,
        max_replica_rank=1,
        max_world_size=2,
        commit_failures=3,
        replica_ids=["a", "b"],
        reconfigure_handles=["handle-a-1", "handle-b-1"],
    )


def test_those_behind_heal_and_are_spread_over_the_sources() -> None:
    both = quorum(member("a", 5), member("b", 1), member("c", 5), member("d", 0))
    b, d, a, c = (part(both, name) for name in "bdac")
    assert (b.heal, b.recover_src_replica_rank, b.recover_src_manager_address) == (True, 0, "http://a:1")
    assert (d.heal, d.recover_src_replica_rank) == (True, 2)
    assert (a.recover_dst_replica_ranks, c.recover_dst_replica_ranks) == ([1], [3])
    assert (a.heal, a.max_replica_rank, c.max_replica_rank, b.max_replica_rank) == (False, 0, 1, None)
    assert {result.max_world_size for result in (a, b, c, d)} == {2}
    assert {result.max_step for result in (a, b, c, d)} == {5}
    assert part(both, "b", rank=1).recover_src_replica_rank == 2  # another rank, another source


def test_before_the_first_commit_all_follow_one_and_count_all_the_same() -> None:
    both = quorum(member("a", 0), member("b", 0))
    a, b = part(both, "a"), part(both, "b")
    assert (a.heal, b.heal) == (False, True)
    assert a.recover_dst_replica_ranks == [1]
    assert (a.max_replica_rank, b.max_replica_rank, a.max_world_size) == (0, 1, 2)
    assert part(both, "a", rank=1).recover_src_replica_rank == 1  # rank 1 follows another one


def test_without_init_sync_nobody_heals_before_the_first_commit() -> None:
    assert not part(quorum(member("a", 0), member("b", 0)), "b", init_sync=False).heal
    assert part(quorum(member("a", 1), member("b", 0)), "b", init_sync=False).heal


def test_of_two_at_one_step_the_one_that_committed_it_last_is_followed() -> None:
    both = quorum(member("a", 5, committed_in=8), member("b", 5, committed_in=9))
    assert part(both, "a").recover_src_replica_rank == 1
    assert part(both, "b").recover_dst_replica_ranks == [0]


def test_groups_of_different_sizes_are_told_so() -> None:
    with pytest.raises(ProtocolError, match=r"replica b has 1 ranks, and this is rank 1 of its own"):
        part(quorum(member("a", 1), member("b", 1, ranks=1)), "a", rank=1)


def test_what_another_kind_of_member_put_into_its_data_is_left_alone() -> None:
    for data in (b"", b"\xff", b"[1]", b'{"store_address": 3, "data": []}', b"[" * 5000):
        (shown,) = quorum_of(quorum(member("a", 1)._replace(data=data)), 5_000_000_007).participants
        assert (shown.store_address, shown.data) == ("", None)


def test_data_that_cannot_be_sent() -> None:
    with pytest.raises(UsageError, match="data cannot be sent"):
        packed("", {"key": object()})
    with pytest.raises(UsageError, match=f"{DATA_BYTES_MAX} can be sent"):
        packed("", {"key": "x" * DATA_BYTES_MAX})


def test_where_to_listen() -> None:
    assert parse_bind("[::]:0") == ("::", 0)
    assert parse_bind("0.0.0.0:29510") == ("0.0.0.0", 29510)
    for wrong in ("[::]", "29510", "localhost:1", "[::1:1", "1.2.3.4:70000", "1.2.3.4:-1", ""):
        with pytest.raises(UsageError, match="bind is "):
            parse_bind(wrong)


def test_a_round_holds_one_quorum_and_one_verdict() -> None:
    rounds = Rounds()
    assert rounds.for_quorum() == 1
    assert rounds.for_quorum() == 1  # the first call failed
    rounds.formed()
    assert rounds.for_vote() == 1
    rounds.judged()
    assert rounds.for_quorum() == 2
    rounds.formed()
    assert rounds.for_quorum() == 3  # a step that was never voted on
    rounds.formed()
    assert [rounds.for_vote(), rounds.for_vote()] == [3, 3]
    rounds.judged()
    assert rounds.for_vote() == 4  # one more vote without a quorum
    rounds.judged()
    assert rounds.for_quorum() == 5


def test_a_rank_may_vote_before_it_was_ever_in_a_quorum() -> None:
    rounds = Rounds()
    assert rounds.for_vote() == 1


class Life:
    """One rank's calls, in torchft's order."""

    def __init__(self) -> None:
        self.progress = Progress()

    def step(self, number: int, step: int, *, source: Participant | None = None, ok: bool = True) -> int:
        claimed = self.progress.committed_in(step)
        members = (member("me", step),) + ((source,) if source else ())
        result = QuorumResult(recover_src_replica_rank=1 if source else None)
        self.progress.enter(quorum(*members, number=number), step, result)
        self.progress.judge(source.step if source else step, ok, ok)
        return claimed


def test_a_step_is_of_the_quorum_in_which_it_was_committed() -> None:
    life = Life()
    assert life.step(1, 0) == 0
    assert life.step(2, 1, ok=False) == QuorumId(1, 1).packed
    assert life.step(3, 1) == QuorumId(1, 1).packed
    assert life.step(3, 2) == QuorumId(1, 3).packed


def test_a_fetched_state_is_of_its_sources_quorum() -> None:
    life = Life()
    life.step(1, 0)
    life.step(5, 1, source=member("other", 8, committed_in=77), ok=False)
    assert life.progress.committed_in(8) == 77  # fetched, though the step did not count
    life.step(6, 8, source=member("other", 9, committed_in=88))
    assert life.progress.committed_in(10) == QuorumId(1, 6).packed


def test_a_state_that_was_not_fetched_after_all_is_the_old_one() -> None:
    life = Life()
    life.step(1, 0)
    life.step(5, 1, source=member("other", 8, committed_in=77), ok=False)
    assert life.progress.committed_in(1) == QuorumId(1, 1).packed


def test_a_checkpoint_from_disk_is_of_no_quorum() -> None:
    life = Life()
    life.step(1, 0)
    assert life.progress.committed_in(40) == 0
    assert life.progress.step == 40
