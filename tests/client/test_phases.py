"""The phase shown while several things are under way."""

from __future__ import annotations

import pytest

from procguard.client.phases import Phases
from procguard.messages import Phase

COMPUTE, QUORUM, COLLECTIVE, HEAL, PAUSED = list(Phase)[1:]


class Board:
    def __init__(self) -> None:
        self.shown: list[tuple[Phase, int]] = []

    def __call__(self, phase: Phase, signs: int) -> None:
        self.shown.append((phase, signs))

    @property
    def phase(self) -> Phase:
        return self.shown[-1][0]


@pytest.fixture
def board() -> Board:
    return Board()


@pytest.fixture
def phases(board: Board) -> Phases:
    return Phases(board)


def test_nothing_under_way_is_computing(phases: Phases, board: Board) -> None:
    phases.sign()
    assert board.shown == [(COMPUTE, 1)]


@pytest.mark.parametrize("phase", [QUORUM, COLLECTIVE, HEAL, PAUSED])
def test_it_is_shown_for_as_long_as_it_lasts(phases: Phases, board: Board, phase: Phase) -> None:
    with phases.during(phase):
        phases.sign()
    assert board.shown == [(phase, 1), (phase, 2), (COMPUTE, 3)], "each a sign of progress"


def test_it_ends_with_an_exception_too(phases: Phases, board: Board) -> None:
    with pytest.raises(ValueError), phases.during(PAUSED):
        raise ValueError
    assert board.phase is COMPUTE


def test_of_two_threads_in_a_collective_the_last_ends_it(phases: Phases, board: Board) -> None:
    first, second = phases.during(COLLECTIVE), phases.during(COLLECTIVE)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert board.phase is COLLECTIVE
    second.__exit__(None, None, None)
    assert board.phase is COMPUTE


def test_what_other_threads_begin_and_end_does_not_end_a_pause(phases: Phases, board: Board) -> None:
    with phases.during(PAUSED):
        for phase in (QUORUM, HEAL, COLLECTIVE):
            with phases.during(phase):
                assert board.phase is PAUSED
            assert board.phase is PAUSED
    assert board.phase is COMPUTE


def test_a_pause_may_be_within_a_pause(phases: Phases, board: Board) -> None:
    with phases.during(PAUSED):
        with phases.during(PAUSED):
            pass
        assert board.phase is PAUSED
