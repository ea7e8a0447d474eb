"""When a worker that failed starts again: a table of moments, and what holds whatever the moments are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procguard.supervisor.restarts import (
    JITTER,
    TIMES_COUNT_MAX,
    Again,
    Exhausted,
    RestartPolicy,
    Restarts,
    after_failure,
    delay_after,
)


def delays(policy: RestartPolicy, *failures_after_s: float, chance: float = 0.0) -> list[float | None]:
    """The delays before each restart, of a worker that fails that long after each start; None: exhausted."""
    restarts, now, found = Restarts(), 0.0, []
    for uptime_s in failures_after_s:
        now += uptime_s
        verdict = after_failure(restarts, policy, now, chance)
        restarts = verdict.restarts
        found.append(verdict.delay_s if isinstance(verdict, Again) else None)
        now += found[-1] or 0.0
    return found


AT_ONCE = (1.0,) * 8


@pytest.mark.parametrize(
    ("policy", "uptimes", "expected"),
    [
        pytest.param(RestartPolicy(), AT_ONCE, [0, 1, 2, 4, 8, None, None, None], id="doubles, then no more"),
        pytest.param(
            RestartPolicy(100, 1e4), AT_ONCE, [0, 1, 2, 4, 8, 16, 32, 60], id="up to the greatest delay"
        ),
        pytest.param(RestartPolicy(0), (1.0,), [None], id="none at all"),
        pytest.param(RestartPolicy(3, delay_s=0.0), AT_ONCE[:4], [0, 0, 0, None], id="without a delay"),
        pytest.param(RestartPolicy(2, 10.0), (1, 1, 10, 1, 1), [0, 1, 0, 1, None], id="stable in between"),
        pytest.param(
            RestartPolicy(2, 10.0), (1, 1, 9, 9), [0, 1, 2, 4], id="slow enough for the window, not stable"
        ),
        pytest.param(
            RestartPolicy(99, 10.0, 50.0, 50.0), (1, 1, 1), [0, 50, 50], id="a delay is no stability"
        ),
    ],
)
def test_table(policy: RestartPolicy, uptimes: tuple[float, ...], expected: list[float | None]) -> None:
    assert delays(policy, *uptimes) == expected


def test_chance_takes_a_part_off() -> None:
    assert delay_after(3, 1.0, 60.0, 0.5) == 4.0 * (1 - JITTER / 2)
    assert delay_after(0, 1.0, 60.0, 0.5) == 0.0
    assert delay_after(10_000, 1.0, 60.0, 0.0) == 60.0


def test_exhaustion_in_words() -> None:
    assert str(Exhausted(3, 60.0, Restarts())) == "failed again after 3 restarts within 60 s (max_restarts)"
    assert "max_restarts 0" in str(Exhausted(0, 60.0, Restarts()))


@given(
    uptimes=st.lists(st.floats(0.0, 50.0), max_size=60),
    max_restarts=st.integers(0, 6),
    window_s=st.floats(1.0, 100.0),
    chance=st.floats(0.0, 0.999),
)
def test_never_more_than_allowed_within_any_window(
    uptimes: list[float], max_restarts: int, window_s: float, chance: float
) -> None:
    policy = RestartPolicy(max_restarts, window_s, 0.5, 4.0)
    restarts, now, started = Restarts(), 0.0, []
    for uptime_s in uptimes:
        now += uptime_s
        verdict = after_failure(restarts, policy, now, chance)
        restarts = verdict.restarts
        if isinstance(verdict, Again):
            assert 0.0 <= verdict.delay_s <= policy.delay_max_s
            now += verdict.delay_s
            started.append(now)
    for last in started:
        assert sum(last - window_s < at <= last for at in started) <= max_restarts


def test_what_is_remembered_is_bounded() -> None:
    restarts, policy = Restarts(), RestartPolicy(10**9, 1e9, 0.0)
    for now in range(TIMES_COUNT_MAX + 50):
        restarts = after_failure(restarts, policy, now, 0.0).restarts
    assert len(restarts.due) == TIMES_COUNT_MAX
