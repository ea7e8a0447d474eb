"""The nouns: numbers on the wire, order of ids, words for causes, topics that do not overlap."""

from __future__ import annotations

import signal
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procguard.messages import (
    EPOCH_MAX,
    KIND_OF,
    KINDS,
    QUORUM_NUMBER_BITS,
    Cause,
    CauseKind,
    FromLighthouse,
    FromMember,
    Incarnation,
    Notice,
    QuorumId,
    listener_topic,
    notice_topic,
)

EPOCHS = st.integers(0, EPOCH_MAX)
NUMBERS = st.integers(0, (1 << QUORUM_NUMBER_BITS) - 1)
QUORUM_IDS = st.builds(QuorumId, EPOCHS, NUMBERS)
JOB_IDS = st.text(min_size=1, max_size=255).filter(lambda job_id: "\0" not in job_id)


def test_every_message_has_one_number_and_one_sender():
    assert {KINDS[number] for number in KIND_OF.values()} == set(KINDS.values())
    assert set(get_args(FromMember)) | set(get_args(FromLighthouse)) == set(KINDS.values())
    assert not set(get_args(FromMember)) & set(get_args(FromLighthouse))


def test_numbers_on_the_wire_are_never_given_away():
    """A number keeps its meaning within protocol version 1. Add to this list; change nothing in it."""
    names = {number: message.__name__ for number, message in KINDS.items()}
    assert names == {
        1: "Hello",
        2: "Heartbeat",
        3: "QuorumRequest",
        4: "Leave",
        5: "Obituary",
        6: "Resync",
        7: "SnapshotRequest",
        8: "Lookup",
        9: "AnswerWanted",
        10: "Kill",
        32: "Welcome",
        33: "Rejected",
        34: "Rejoin",
        35: "HelloWanted",
        36: "QuorumFormed",
        37: "QuorumWaiting",
        38: "Excluded",
        39: "Ack",
        40: "Snapshot",
        41: "NoticeBatch",
        42: "Beacon",
        43: "LookedUp",
        44: "Killed",
    }


@given(QUORUM_IDS, QUORUM_IDS)
def test_a_packed_quorum_id_is_unique_and_keeps_the_order(one, other):
    assert (one.packed < other.packed) == (one < other)
    assert (one.packed == other.packed) == (one == other)
    assert 0 <= one.packed < 1 << 63


def test_incarnations_are_ordered_by_epoch_first():
    assert Incarnation(1, 9) < Incarnation(2, 0) < Incarnation(2, 1)
    assert (str(Incarnation(2, 1)), str(QuorumId(7, 3))) == ("2.1", "7.3")


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (Cause(CauseKind.HEARTBEAT_TIMEOUT), "heartbeat timed out"),
        (Cause(CauseKind.PROCESS_EXIT), "process exited"),
        (Cause(CauseKind.PROCESS_EXIT, exit_code=3), "exited with code 3"),
        (Cause(CauseKind.PROCESS_EXIT, signal=signal.SIGKILL), "killed by SIGKILL"),
        (Cause(CauseKind.PROCESS_EXIT, signal=200), "killed by signal 200"),
        (Cause(CauseKind.PROCESS_EXIT, signal=6, core_dumped=True), "killed by SIGABRT, core dumped"),
        (
            Cause(CauseKind.PROCESS_EXIT, exit_code=1, text="KeyError: 'x'"),
            "exited with code 1 (KeyError: 'x')",
        ),
    ],
)
def test_a_cause_says_what_is_known(cause, words):
    assert str(cause) == words


@pytest.mark.parametrize("kind", CauseKind)
def test_every_cause_has_words(kind):
    assert str(Cause(kind)).isprintable()


def test_only_who_left_has_left():
    notice = Notice("r0", Incarnation(1, 1), Cause(CauseKind.LEFT), step=3)
    assert notice.left
    assert not notice._replace(cause=Cause(CauseKind.STALLED)).left


@given(JOB_IDS, JOB_IDS, st.binary())
def test_a_job_hears_its_own_notices_only(job_id, other, packed):
    notice = notice_topic(other) + packed
    assert notice.startswith(notice_topic(job_id)) == (job_id == other)


@given(JOB_IDS, st.binary(min_size=1), st.binary())
def test_no_notice_reaches_a_listeners_own_topic(job_id, nonce, packed):
    assert not (notice_topic(job_id) + packed).startswith(listener_topic(nonce))
