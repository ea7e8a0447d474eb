"""What a Hello amounts to: the table, row by row, and the refusals."""

from __future__ import annotations

import pytest

from procguard.lighthouse import admission
from procguard.lighthouse.admission import Admission, judge
from procguard.lighthouse.members import Member
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
        epoch=0,
        min_replicas=1,
        progress_timeout_s=0.0,
    )
    return plain._replace(**traits)


def holder(state: MemberState, token: bytes, incarnation: Incarnation) -> Member:
    member = Member("train", "a", incarnation, state, now=0.0)
    member.token = token
    member.process = Process("node7", "boot", 4711, 2)
    return member


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


def test_the_holder_of_an_id_in_use_is_named() -> None:
    refusal = admission.id_in_use(holder(ALIVE, OTHER, OURS))
    assert (refusal.reason, refusal.host, refusal.pid) == (Rejection.ID_IN_USE, "node7", 4711)
    assert "'a'" in refusal.text


@pytest.mark.parametrize(
    ("traits", "word"),
    [
        ({"job_id": "tr\0ain"}, "job_id"),
        ({"group_world_size": 2}, "group_world_size 2"),
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
