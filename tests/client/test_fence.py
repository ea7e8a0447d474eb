"""The fence: what a notice ends, in whatever order it and the quorums come."""

from __future__ import annotations

import pytest

from procguard.client import fence as fence_module
from procguard.client.fence import DEPARTURE_GRACE_S, Fence, Outcome
from procguard.messages import Quorum
from tests.client.fakes import EPOCH, LEFT, life, notice, participant, quorum

LATER = EPOCH + 1


def trio(number: int = 1, epoch: int = EPOCH, b: int = 2) -> Quorum:
    return quorum(number, participant("a", 1), participant("b", b), participant("c", 3), epoch=epoch)


@pytest.fixture
def fence() -> Fence:
    fence = Fence()
    assert fence.install(trio())
    return fence


def test_the_failure_of_a_member_ends_the_quorum_in_use_at_once(fence: Fence) -> None:
    assert fence.hear(notice("b", 2), EPOCH, 0) == Outcome(True, trio().quorum_id, 0.0)


def test_whoever_is_no_member_ends_nothing(fence: Fence) -> None:
    assert fence.hear(notice("d", 4), EPOCH, 0) == Outcome(True)


def test_an_earlier_life_of_a_member_ends_nothing(fence: Fence) -> None:
    assert fence.hear(notice("b", 1), EPOCH, 0) == Outcome(True)


def test_a_later_life_of_a_member_ends_the_quorum(fence: Fence) -> None:
    """The notice of the member's own end was lost: who is over in a later life is over in this one."""
    assert fence.hear(notice("b", 9), EPOCH, 0) == Outcome(True, trio().quorum_id)


def test_between_start_quorum_and_the_new_quorum_there_is_nothing_to_end(fence: Fence) -> None:
    fence.begin_round()
    assert fence.hear(notice("b", 2), EPOCH, 0) == Outcome(True)


def test_a_quorum_that_names_one_who_is_over_is_not_installed() -> None:
    fence = Fence()
    fence.hear(notice("b", 2), EPOCH, 0)
    assert not fence.install(trio())
    assert fence.current is None
    assert fence.install(trio(2, b=5)), "a later life of the same replica"


def test_neither_is_one_that_names_one_who_has_left() -> None:
    fence = Fence()
    fence.hear(notice("b", 2, LEFT, step=9), EPOCH, 0)
    assert not fence.install(trio())


def test_a_late_notice_of_an_earlier_quorum_does_not_touch_the_present_one() -> None:
    fence = Fence()
    fence.install(trio(1))
    fence.begin_round()
    fence.install(quorum(2, participant("a", 1), participant("c", 3)))
    assert fence.hear(notice("b", 2), EPOCH, 0).abort is None


@pytest.mark.parametrize(
    ("left_at", "own_step", "ends"),
    [(4, 4, True), (3, 4, True), (5, 4, False)],
)
def test_a_departure_ends_the_quorum_unless_the_leaver_finished_this_step(
    fence: Fence, left_at: int, own_step: int, ends: bool
) -> None:
    outcome = fence.hear(notice("b", 2, LEFT, step=left_at), EPOCH, own_step)
    assert outcome == (Outcome(True, trio().quorum_id, DEPARTURE_GRACE_S) if ends else Outcome(True))


def test_each_life_is_news_once_in_whatever_order_they_are_heard() -> None:
    fence = Fence()
    assert [fence.hear(notice("b", n), EPOCH, 0).news for n in (5, 2, 5, 2, 7)] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert not fence.install(trio(b=6)), "the greatest of them counts"


def test_after_the_epoch_was_raised_the_same_story_is_no_news() -> None:
    fence = Fence()
    fence.hear(notice("b", 2), EPOCH, 0)
    assert fence.hear(notice("b", 2), LATER, 0) == Outcome(False)


# --- a life that a restarted lighthouse has taken back ------------------------------------------------


def test_a_notice_does_not_bind_the_quorums_of_a_later_lighthouse() -> None:
    fence = Fence()
    fence.hear(notice("b", 2), EPOCH, 0)
    assert fence.install(trio(1, LATER))
    assert fence.hear(notice("b", 2), EPOCH, 0) == Outcome(False), "heard again, late"


def test_when_that_life_ends_there_too_the_quorum_ends() -> None:
    fence = Fence()
    fence.hear(notice("b", 2), EPOCH, 0)
    fence.install(trio(1, LATER))
    outcome = fence.hear(notice("b", 2), LATER, 0)
    assert outcome == Outcome(False, trio(1, LATER).quorum_id), "told once, but ended all the same"
    fence.begin_round()
    assert not fence.install(trio(2, LATER))


def test_a_lighthouse_whose_clock_went_back_gives_lower_incarnations() -> None:
    """Its epoch is raised by the first old member; a newcomer may have joined before that."""
    fence = Fence()
    fence.hear(notice("b", 9), EPOCH, 0)
    newcomer = participant("b", 1)._replace(incarnation=life(1, EPOCH - 100))
    assert fence.install(quorum(1, participant("a", 1), newcomer, epoch=LATER))
    ended = notice("b")._replace(incarnation=newcomer.incarnation)
    assert fence.hear(ended, LATER, 0).abort == quorum(1, participant("a"), epoch=LATER).quorum_id
    fence.begin_round()
    assert not fence.install(quorum(2, participant("a", 1), newcomer, epoch=LATER))


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence_module, "LIVES_MAX", 2)
    fence = Fence()
    for name in ("b", "c", "b", "d"):
        fence.hear(notice(name, 5), EPOCH, 0)
    assert fence.install(quorum(1, participant("c", 5)))
    assert not fence.install(quorum(2, participant("b", 5)))
    assert fence.hear(notice("c", 5), EPOCH, 0).news
