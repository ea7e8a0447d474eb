"""What every fenced process group does, whatever moves its bytes: the ring's and torch's alike."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from importlib import import_module
from typing import Any

import pytest

from procguard.adapters.process_group import ABORTED_COUNT_MAX
from procguard.errors import CollectiveAborted, UsageError
from tests.adapters.ranks import LONG, GroupRanks, assert_works


@pytest.fixture(params=["ring", "torch"])
def ranks(request: pytest.FixtureRequest) -> Iterator[GroupRanks[Any]]:
    if request.param == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'procguard[torch]'")
    with import_module(f"tests.adapters.{request.param}_ranks").Ranks() as ranks:
        yield ranks


@pytest.mark.parametrize(
    ("rank", "quorum_id", "timeout", "words"),
    [
        (1, 1, LONG, "rank 1 is not one of 1"),
        (0, 2**63, LONG, "64 bits"),
        (0, 1, timedelta(0), "not positive"),
    ],
)
def test_configure_says_what_it_cannot_do(
    ranks: GroupRanks[Any], rank: int, quorum_id: int, timeout: timedelta, words: str
) -> None:
    (group,) = ranks.add(1)
    with pytest.raises(UsageError, match=words):
        group.configure([group.handle()], rank, quorum_id, timeout)
    ranks.configure([group], 1)


def test_allreduce_before_configure(ranks: GroupRanks[Any]) -> None:
    with pytest.raises(UsageError, match="before configure"):
        ranks.add(1)[0].allreduce([ranks.full(1, 1.0)])


def test_a_quorum_is_configured_once(ranks: GroupRanks[Any]) -> None:
    groups = ranks.connected(2, quorum_id=5)
    handles = [group.handle() for group in groups]
    with pytest.raises(UsageError, match=r"quorum 0\.5 is configured already"):
        groups[0].configure(handles, 0, 5, LONG)
    with pytest.raises(CollectiveAborted, match=r"quorum 0\.4 is over"):
        groups[0].configure(handles, 0, 4, LONG)
    assert_works(ranks, groups)
    groups[0].abort(5)
    with pytest.raises(CollectiveAborted, match=r"has ended: quorum 0\.5 was aborted"):
        groups[0].configure(handles, 0, 5, LONG)


def test_an_abort_touches_no_other_quorum(ranks: GroupRanks[Any]) -> None:
    groups = ranks.connected(2, quorum_id=5)
    for quorum_id in (*range(5), *range(7, 7 + ABORTED_COUNT_MAX // 2)):
        groups[0].abort(quorum_id)
    assert_works(ranks, groups)
    with pytest.raises(CollectiveAborted, match=r"quorum 0\.9 was aborted"):
        groups[0].configure([group.handle() for group in groups], 0, 9, LONG)


def test_what_was_aborted_is_remembered_within_bounds(ranks: GroupRanks[Any]) -> None:
    (group,) = ranks.add(1)
    for quorum_id in range(2 * ABORTED_COUNT_MAX):
        group.abort(quorum_id)
    assert len(group._aborted) == ABORTED_COUNT_MAX
    for quorum_id in (0, ABORTED_COUNT_MAX, 2 * ABORTED_COUNT_MAX - 1):
        with pytest.raises(CollectiveAborted):
            group.configure([group.handle()], 0, quorum_id, LONG)
    ranks.configure([group], 2 * ABORTED_COUNT_MAX)
