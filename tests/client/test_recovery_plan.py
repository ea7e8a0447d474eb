"""Who heals from whom: a table of cases, and what must hold whatever the quorum is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procguard.client.recovery_plan import RecoveryPlan, recovery_plan
from procguard.messages import Participant, Quorum
from tests.client.fakes import participant, quorum

State = tuple[int, int]


def of(*states: State, failures: tuple[int, ...] = ()) -> Quorum:
    """Replicas a, b, c ... with these (step, committed_in)."""
    failures = failures or (0,) * len(states)
    members = [
        participant(chr(ord("a") + at), at + 1, step=step, committed_in=committed_in, commit_failures=failed)
        for at, ((step, committed_in), failed) in enumerate(zip(states, failures, strict=True))
    ]
    return quorum(1, *members)


def plans(formed: Quorum, init_sync: bool = True, group_rank: int = 0) -> list[RecoveryPlan]:
    return [recovery_plan(formed, p.replica_id, group_rank, init_sync) for p in formed.participants]


@pytest.mark.parametrize(
    ("formed", "init_sync", "contributors", "sources"),
    [
        pytest.param(of((5, 9)), True, (0,), [None], id="alone"),
        pytest.param(of((5, 9), (5, 9)), True, (0, 1), [None, None], id="all alike"),
        pytest.param(of((5, 9), (4, 8)), True, (0,), [None, 0], id="one behind"),
        pytest.param(of((0, 0), (4, 8)), True, (1,), [1, None], id="a newcomer before the others"),
        pytest.param(of((5, 8), (5, 9)), True, (1,), [1, None], id="same step, another quorum"),
        pytest.param(of((4, 9), (5, 8)), True, (1,), [1, None], id="the step goes first"),
        pytest.param(of((5, 9), (5, 9), (0, 0), (0, 0)), True, (0, 1), [None, None, 0, 1], id="spread"),
        pytest.param(of((0, 0), (0, 0)), True, (0,), [None, 0], id="the beginning"),
        pytest.param(of((0, 0), (0, 0)), False, (0, 1), [None, None], id="the beginning, each on its own"),
        pytest.param(of((0, 0), (1, 3)), False, (1,), [1, None], id="a newcomer heals all the same"),
    ],
)
def test_table(
    formed: Quorum, init_sync: bool, contributors: tuple[int, ...], sources: list[int | None]
) -> None:
    found = plans(formed, init_sync)
    assert [plan.contributors for plan in found] == [contributors] * len(found)
    assert [plan.source for plan in found] == sources
    assert [plan.replica_rank for plan in found] == list(range(len(found)))
    assert {plan.replica_world_size for plan in found} == {len(found)}


def test_only_the_common_beginning_is_initial() -> None:
    assert all(plan.initial for plan in plans(of((0, 0), (0, 0))))
    assert not any(plan.initial for plan in plans(of((0, 0), (0, 0)), init_sync=False))
    assert not any(plan.initial for plan in plans(of((0, 0), (1, 1))))


def test_one_whose_steps_fail_asks_another_source_each_time() -> None:
    states = ((5, 9), (5, 9), (5, 9), (0, 0))
    asked = [plans(of(*states, failures=(0, 0, 0, failed)))[3].source for failed in range(4)]
    assert asked == [0, 1, 2, 0]


def test_the_ranks_of_a_group_heal_from_different_sources() -> None:
    states = ((5, 9), (5, 9), (0, 0))
    assert [plans(of(*states), group_rank=rank)[2].source for rank in range(3)] == [0, 1, 0]


def test_a_stranger_has_no_plan() -> None:
    with pytest.raises(KeyError):
        recovery_plan(of((0, 0)), "z", 0, True)


def members() -> st.SearchStrategy[list[Participant]]:
    return st.lists(
        st.builds(
            lambda name, step, committed_in, failures: participant(
                name, step=step, committed_in=committed_in, commit_failures=failures
            ),
            st.text("abcdefgh", min_size=1, max_size=2),
            st.integers(0, 3),
            st.integers(0, 3),
            st.integers(0, 5),
        ),
        min_size=1,
        max_size=9,
        unique_by=lambda member: member.replica_id,
    )


@given(members(), st.booleans(), st.integers(0, 3))
def test_all_replicas_derive_one_plan(found: list[Participant], init_sync: bool, group_rank: int) -> None:
    formed = quorum(1, *found)
    all_plans = plans(formed, init_sync, group_rank)
    newest = max((p.step, p.committed_in) for p in formed.participants)
    shared = {(p.step, p.up_to_date, p.contributors, p.initial, p.replica_world_size) for p in all_plans}
    assert len(shared) == 1
    first = all_plans[0]
    assert first.step == newest[0]
    assert first.contributors, "somebody has the right state"
    assert set(first.contributors) <= set(first.up_to_date)
    assert first.initial or first.contributors == first.up_to_date
    for rank, plan in enumerate(all_plans):
        member = formed.participants[rank]
        assert ((member.step, member.committed_in) == newest) == (rank in first.up_to_date)
        assert plan.heals == (rank not in first.contributors), "who does not contribute heals"
        if plan.source is not None:
            assert plan.source in first.contributors
            assert rank in all_plans[plan.source].healers, "and its source knows"
        for healer in plan.healers:
            assert all_plans[healer].source == rank


@given(members(), st.integers(0, 3))
def test_sources_share_the_work(found: list[Participant], group_rank: int) -> None:
    """Where nobody has failed, no source has two more to serve than another."""
    formed = quorum(1, *[member._replace(commit_failures=0) for member in found])
    all_plans = plans(formed, group_rank=group_rank)
    served = [len(all_plans[source].healers) for source in all_plans[0].contributors]
    assert max(served) - min(served) <= 1
