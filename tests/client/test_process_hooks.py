"""An uncaught exception is announced, and then told as ever. A real fork is in test_manager."""

from __future__ import annotations

import gc
import sys
from types import TracebackType
from typing import Any

import pytest

from procguard.client import process_hooks
from tests.client.fakes import FakeMembership

Told = list[tuple[type[BaseException], BaseException, TracebackType | None]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What stood in ``sys.excepthook`` before us, as a list of its calls."""
    told: Told = []
    monkeypatch.setattr(sys, "excepthook", lambda *exception: told.append(exception))
    monkeypatch.setattr(process_hooks, "_previous_hook", None)
    return told


def follow(membership: Any) -> None:
    process_hooks.watch_over(membership)


def uncaught() -> ValueError:
    error = ValueError("bad")
    sys.excepthook(ValueError, error, None)
    return error


def test_every_membership_announces_it_and_the_hook_before_ours_is_called_once(told: Told) -> None:
    first, second = FakeMembership(), FakeMembership()
    follow(first)
    follow(second)
    error = uncaught()
    assert first.last_words == second.last_words == [error]
    assert told == [(ValueError, error, None)]


def test_one_that_has_left_or_is_no_more_announces_nothing(told: Told) -> None:
    left = FakeMembership()
    follow(left)
    follow(FakeMembership())
    process_hooks.forget(left)  # type: ignore[arg-type]
    gc.collect()
    uncaught()
    assert left.last_words == []
    assert len(told) == 1


def test_an_announcement_that_fails_does_not_hide_the_exception(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(error: BaseException) -> None:
        raise OSError("no link")

    membership = FakeMembership()
    monkeypatch.setattr(membership, "say_last_words", broken)
    follow(membership)
    with pytest.raises(OSError, match="no link"):
        uncaught()
    assert len(told) == 1


def test_a_forked_child_lets_go_of_all(told: Told) -> None:
    membership = FakeMembership()
    follow(membership)
    process_hooks._disown()
    assert membership.is_disowned
    uncaught()
    assert membership.last_words == []
