"""What a Hello amounts to: the table, row by row, and the refusals."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from procguard.lighthouse import admission
from procguard.lighthouse.admission import Admission, judge
from procguard.lighthouse.members import Member, Slot
from procguard.messages import (
    Cause,
    CauseKind,
    Claim,
    Hello,
    Incarnation,
    MemberState,
    Notice,
    Process,
    Rejection,
)

ALIVE, SUSPECT, FAILED, LEFT = MemberState
EPOCH = 100
MINE, OTHER, NOBODY = b"m" * 16, b"o" * 16, b""
OLD = Incarnation(99, 5)
OLDER = Incarnation(99, 4)
YOUNGER = Incarnation(99, 6)
OURS = Incarnation(100, 1)
FUTURE = Incarnation(101, 1)
STOPPED = Cause(CauseKind.STOPPED)


def hello(claim: Incarnation | None = None, **traits: object) -> Hello:
    plain = Hello(
        job_id="train",
        replica_id="a",
        token=MINE,
        process=Process("host", "boot", 1, 2),
        group_rank=0,
        group_world_size=1,
        group_run="",
        claim=Claim(claim, None) if claim else None,
        topic=b"",
        group_address="",
        epoch=0,
        min_replicas=1,
        progress_timeout_s=0.0,
    )
    return plain._replace(**traits)


def group(state: MemberState, tokens: Sequence[bytes], incarnation: Incarnation) -> Member:
    """A group of as many ranks as ``tokens``; an empty token: that one is not there."""
    member = Member("train", "a", incarnation, state, now=0.0)
    member.group_world_size = len(tokens)
    for rank, token in enumerate(tokens):
        if token:
            process = Process("node7", "boot", 4711 + rank, 2)
            member.slots[rank] = Slot(member, hello(token=token, group_rank=rank, process=process), now=0.0)
    return member


def holder(state: MemberState, token: bytes, incarnation: Incarnation) -> Member:
    return group(state, [token], incarnation)


def fallen(incarnation: Incarnation, cause: Cause = STOPPED) -> Notice:
    return Notice("a", incarnation, cause, 0)


NEWCOMERS = [
    (None, Admission.JOIN),
    (holder(FAILED, OTHER, OURS), Admission.JOIN),
    (holder(FAILED, MINE, OURS), Admission.JOIN),
    (holder(LEFT, MINE, OURS), Admission.JOIN),
    (holder(ALIVE, MINE, OURS), Admission.GO_ON),
    (holder(SUSPECT, MINE, OURS), Admission.GO_ON),
    (holder(SUSPECT, OTHER, OURS), Admission.SUPERSEDE_AND_JOIN),
    (holder(SUSPECT, NOBODY, OLD), Admission.SUPERSEDE_AND_JOIN),
    (holder(ALIVE, OTHER, OURS), Admission.ID_IN_USE),
]


@pytest.mark.parametrize(("known", "verdict"), NEWCOMERS)
def test_without_a_claim(known: Member | None, verdict: Admission) -> None:
    assert judge(hello(), known, None, EPOCH) is verdict
    assert judge(hello(), known, fallen(OLD), EPOCH) is verdict


CLAIMANTS = [
    # The same process: it goes on, unless what it claims is not what it is.
    (OURS, holder(ALIVE, MINE, OURS), None, Admission.GO_ON),
    (OURS, holder(SUSPECT, MINE, OURS), None, Admission.GO_ON),
    (OLD, holder(ALIVE, MINE, OLD), fallen(OLDER), Admission.GO_ON),
    (OLD, holder(ALIVE, MINE, OURS), None, Admission.REJOIN),
    (FUTURE, holder(ALIVE, MINE, OURS), None, Admission.REJOIN),
    # An earlier life of it was adopted from a Hello that had waited for a lighthouse: the later one is true.
    (YOUNGER, holder(ALIVE, MINE, OLD), None, Admission.SUPERSEDE_AND_ADOPT),
    (YOUNGER, holder(SUSPECT, MINE, OLD), fallen(OLDER), Admission.SUPERSEDE_AND_ADOPT),
    (YOUNGER, holder(ALIVE, MINE, OLD), fallen(YOUNGER), Admission.REJOIN),
    (OURS, holder(ALIVE, MINE, OLD), None, Admission.REJOIN),
    # Nobody lives under that name: one that an earlier lighthouse knew, and that has not ended, is adopted.
    (OLD, None, None, Admission.ADOPT),
    (OLD, None, fallen(OLDER), Admission.ADOPT),
    (OLD, None, fallen(OLD), Admission.REJOIN),
    (OLD, None, fallen(YOUNGER), Admission.REJOIN),
    (OLD, holder(FAILED, MINE, OLD), fallen(OLD), Admission.REJOIN),
    (OLD, holder(LEFT, MINE, OLD), fallen(OLD), Admission.REJOIN),
    (YOUNGER, holder(FAILED, OTHER, OLD), fallen(OLD), Admission.ADOPT),
    (OURS, None, None, Admission.REJOIN),
    (OURS, holder(FAILED, MINE, OURS), fallen(OURS), Admission.REJOIN),
    (FUTURE, None, None, Admission.REJOIN),
    # Another member's claim named this replica: it is awaited.
    (OLD, holder(SUSPECT, NOBODY, OLD), None, Admission.ADOPT),
    (OLD, holder(SUSPECT, NOBODY, OLDER), None, Admission.SUPERSEDE_AND_ADOPT),
    (OLD, holder(SUSPECT, NOBODY, YOUNGER), None, Admission.REJOIN),
    (OURS, holder(SUSPECT, NOBODY, OLD), None, Admission.REJOIN),
    # Two processes claim one name: the later life is the true one, whoever came first.
    (YOUNGER, holder(ALIVE, OTHER, OLD), None, Admission.SUPERSEDE_AND_ADOPT),
    (YOUNGER, holder(SUSPECT, OTHER, OLD), None, Admission.SUPERSEDE_AND_ADOPT),
    (OLD, holder(ALIVE, OTHER, YOUNGER), None, Admission.REJOIN),
    (OLD, holder(ALIVE, OTHER, OLD), None, Admission.REJOIN),
    (OLD, holder(SUSPECT, OTHER, OLD), None, Admission.REJOIN),
    (OLD, holder(ALIVE, OTHER, OURS), None, Admission.REJOIN),
    (OURS, holder(ALIVE, OTHER, OLD), None, Admission.REJOIN),
    (FUTURE, holder(SUSPECT, OTHER, OURS), None, Admission.REJOIN),
]


@pytest.mark.parametrize(("claimed", "known", "over", "verdict"), CLAIMANTS)
def test_with_a_claim(
    claimed: Incarnation, known: Member | None, over: Notice | None, verdict: Admission
) -> None:
    assert judge(hello(claimed), known, over, EPOCH) is verdict


@pytest.mark.parametrize("known", [known for known, _ in NEWCOMERS])
@pytest.mark.parametrize("claimed", [OLDER, OLD, YOUNGER, OURS, FUTURE])
@pytest.mark.parametrize("over", [None, OLDER, OLD, OURS])
def test_a_claim_is_never_reborn(
    claimed: Incarnation, known: Member | None, over: Incarnation | None
) -> None:
    verdict = judge(hello(claimed), known, fallen(over) if over else None, EPOCH)
    assert verdict not in (Admission.JOIN, Admission.SUPERSEDE_AND_JOIN)


FURTHER_RANKS = [
    # Nobody trains yet: the ranks of one run gather in one incarnation.
    (None, group(ALIVE, [OTHER, NOBODY], OURS), False, Admission.TAKE_SLOT),
    (None, group(SUSPECT, [OTHER, NOBODY], OURS), False, Admission.TAKE_SLOT),
    (None, group(ALIVE, [OTHER, MINE], OURS), False, Admission.GO_ON),
    (None, group(ALIVE, [OTHER, OTHER], OURS), False, Admission.ID_IN_USE),
    (None, group(SUSPECT, [OTHER, OTHER], OURS), False, Admission.SUPERSEDE_AND_JOIN),
    # A group that has trained was complete: who is missing there is awaited, and no stranger takes its place.
    (None, group(SUSPECT, [OTHER, NOBODY], OLD), True, Admission.SUPERSEDE_AND_JOIN),
    # After a restart of the lighthouse each rank comes back to the place that it claims.
    (OLD, group(SUSPECT, [OTHER, NOBODY], OLD), True, Admission.TAKE_SLOT),
    (OLD, group(SUSPECT, [OTHER, OTHER], OLD), True, Admission.REJOIN),
    (OLD, group(SUSPECT, [NOBODY, NOBODY], OLD), True, Admission.ADOPT),
    (OURS, group(ALIVE, [OTHER, NOBODY], OURS), False, Admission.REJOIN),
]


@pytest.mark.parametrize(("claimed", "known", "asked", "verdict"), FURTHER_RANKS)
def test_a_further_rank(
    claimed: Incarnation | None, known: Member | None, asked: bool, verdict: Admission
) -> None:
    if known is not None:
        known.asked = asked
    assert judge(hello(claimed, group_rank=1, group_world_size=2), known, None, EPOCH) is verdict


def test_a_rank_of_another_run_is_of_no_group_that_lives() -> None:
    known = group(ALIVE, [OTHER, NOBODY], OURS)
    stranger = hello(group_rank=1, group_world_size=2, group_run="restarted")
    assert judge(stranger, known, None, EPOCH) is Admission.ID_IN_USE
    refusal = admission.refusal(Admission.ID_IN_USE, stranger, known)
    assert refusal is not None
    assert (refusal.reason, refusal.pid) == (Rejection.ID_IN_USE, 4711)
    assert "rank 0 of replica_id 'a'" in refusal.text


def test_ranks_must_agree_on_their_number() -> None:
    known = group(ALIVE, [OTHER, NOBODY], OURS)
    refusal = admission.refusal(Admission.TAKE_SLOT, hello(group_rank=1, group_world_size=4), known)
    assert refusal is not None
    assert refusal.reason is Rejection.UNSUPPORTED
    assert "group_world_size 4" in refusal.text
    assert "say 2" in refusal.text
    assert admission.refusal(Admission.TAKE_SLOT, hello(group_rank=1, group_world_size=2), known) is None


def test_the_holder_of_an_id_in_use_is_named() -> None:
    refusal = admission.id_in_use(hello(), holder(ALIVE, OTHER, OURS))
    assert (refusal.reason, refusal.host, refusal.pid) == (Rejection.ID_IN_USE, "node7", 4711)
    assert "'a'" in refusal.text


@pytest.mark.parametrize(
    ("traits", "word"),
    [
        ({"job_id": "tr\0ain"}, "job_id"),
        ({"group_world_size": 1025}, "group_world_size 1025"),
        ({"group_rank": 1}, "group_rank 1"),
        ({"group_world_size": 0}, "group_world_size 0"),
    ],
)
def test_what_no_hello_may_ask_for(traits: dict[str, object], word: str) -> None:
    refusal = admission.unsupported(hello(**traits))
    assert refusal is not None
    assert refusal.reason is Rejection.UNSUPPORTED
    assert word in refusal.text


def test_a_plain_hello_is_supported() -> None:
    assert admission.unsupported(hello()) is None


def test_other_refusals_name_the_thing_and_the_number() -> None:
    dead = admission.buried(Cause(CauseKind.PROCESS_EXIT, signal=9))
    assert dead.reason is Rejection.BURIED
    assert "SIGKILL" in dead.text
    conflict = admission.min_replicas_conflict("train", asked=3, holds=2)
    assert conflict.reason is Rejection.MIN_REPLICAS_CONFLICT
    assert "3" in conflict.text
    assert "2" in conflict.text
    assert admission.full("jobs", 1000).reason is Rejection.FULL
    assert "1000 jobs" in admission.full("jobs", 1000).text


def test_why_a_life_is_over() -> None:
    superseded = Cause(CauseKind.SUPERSEDED)
    assert admission.rejoin_cause(OLD, fallen(OLD)) == STOPPED
    assert admission.rejoin_cause(OLD, fallen(YOUNGER)) == superseded
    assert admission.rejoin_cause(OLD, None) == superseded
