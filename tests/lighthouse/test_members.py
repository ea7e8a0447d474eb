"""The table of transitions: each row of the design, and nothing beside them."""

from __future__ import annotations

from itertools import product

import pytest

from procguard.lighthouse.members import TRANSITIONS, Member, Slot, Trigger
from procguard.messages import Hello, Incarnation, MemberState, Participant, Process

ALIVE, SUSPECT, FAILED, LEFT = MemberState

TABLE = [
    (ALIVE, Trigger.HELLO, ALIVE),
    (SUSPECT, Trigger.HELLO, ALIVE),
    (ALIVE, Trigger.BEAT, ALIVE),
    (SUSPECT, Trigger.BEAT, ALIVE),
    (ALIVE, Trigger.CONNECTION_LOST, SUSPECT),
    (SUSPECT, Trigger.CONNECTION_LOST, SUSPECT),
    (SUSPECT, Trigger.GRACE_OVER, FAILED),
    (ALIVE, Trigger.LEASE_OVER, FAILED),
    (SUSPECT, Trigger.LEASE_OVER, FAILED),
    (ALIVE, Trigger.OBITUARY, FAILED),
    (SUSPECT, Trigger.OBITUARY, FAILED),
    (ALIVE, Trigger.STOPPED, FAILED),
    (SUSPECT, Trigger.STOPPED, FAILED),
    (ALIVE, Trigger.STALLED, FAILED),
    (SUSPECT, Trigger.STALLED, FAILED),
    (ALIVE, Trigger.SUPERSEDED, FAILED),
    (SUSPECT, Trigger.SUPERSEDED, FAILED),
    (SUSPECT, Trigger.NOT_RETURNED, FAILED),
    (ALIVE, Trigger.OPERATOR, FAILED),
    (SUSPECT, Trigger.OPERATOR, FAILED),
    (ALIVE, Trigger.LEAVE, LEFT),
    (SUSPECT, Trigger.LEAVE, LEFT),
]
IN_TABLE = {(state, trigger) for state, trigger, _ in TABLE}
IMPOSSIBLE = [pair for pair in product(MemberState, Trigger) if pair not in IN_TABLE]

HELLO = Hello(
    "train",
    "a",
    b"t" * 16,
    Process("host", "boot", 7, 8),
    0,
    1,
    "",
    None,
    b"",
    "",
    0,
    1,
    progress_timeout_s=9.0,
)
REQUEST = Participant("a", Incarnation(1, 1), 1, 0, 0, 1, "", False, 0, b"", ())


def member(state: MemberState = ALIVE) -> Member:
    return Member("train", "a", Incarnation(1, 1), state, now=10.0)


@pytest.mark.parametrize(("state", "trigger", "to"), TABLE)
def test_row(state: MemberState, trigger: Trigger, to: MemberState) -> None:
    one = member(state)
    one.apply(trigger, now=12.0)
    assert one.state is to
    assert one.since == (10.0 if to is state else 12.0)


@pytest.mark.parametrize(("state", "trigger"), IMPOSSIBLE)
def test_anything_else_is_a_bug_of_ours(state: MemberState, trigger: Trigger) -> None:
    with pytest.raises(AssertionError, match=f"a: no way from {state.name} on {trigger.name}"):
        member(state).apply(trigger, now=12.0)


def test_the_table_has_no_other_rows() -> None:
    assert set(TRANSITIONS) == IN_TABLE


def test_nothing_leads_out_of_the_end() -> None:
    assert not [state for state, _ in TRANSITIONS if state in (FAILED, LEFT)]


@pytest.mark.parametrize(("state", "live"), [(ALIVE, True), (SUSPECT, True), (FAILED, False), (LEFT, False)])
def test_alive_and_suspect_members_live(state: MemberState, live: bool) -> None:
    assert member(state).live is live


def test_trainer_and_listener_introduce_themselves_on_connections_of_their_own() -> None:
    one = Slot(member(), HELLO, now=10.0)
    one.introduce(HELLO, b"trainer")
    one.introduce(HELLO._replace(topic=b"\0nonce"), b"listener")
    assert (one.trainer_peer, one.listener_peer) == (b"trainer", b"listener")
    assert (one.token, one.topic) == (HELLO.token, b"\0nonce")
    assert (one.process, one.progress_timeout_s) == (HELLO.process, 9.0)
    one.introduce(HELLO, b"trainer, connected anew")
    assert (one.trainer_peer, one.listener_peer) == (b"trainer, connected anew", b"listener")
    assert one.topic == b"\0nonce"


def test_a_member_is_complete_with_all_its_ranks() -> None:
    one = member()
    one.group_world_size = 2
    assert not one.complete
    for rank in (1, 0):
        one.slots[rank] = Slot(one, HELLO._replace(group_rank=rank), now=10.0)
    assert one.complete


def test_overdue_after_the_join_timeout_or_ten_of_its_own_steps() -> None:
    one = member()
    assert not one.overdue(now=70.0, join_timeout_s=60.0)
    assert one.overdue(now=70.1, join_timeout_s=60.0)
    one.longest_step_s = 7.0
    assert not one.overdue(now=80.0, join_timeout_s=60.0)
    assert one.overdue(now=80.1, join_timeout_s=60.0)


def test_who_is_asking_is_never_overdue() -> None:
    one = member()
    one.request = REQUEST
    assert not one.overdue(now=1e6, join_timeout_s=60.0)
