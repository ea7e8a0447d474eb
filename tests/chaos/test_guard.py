"""The guard is killed in the middle of recoveries; ``guard_moments`` is the story.

A handful of moments in the default suite, spread over the chain, and fifty of each kind with ``-m chaos``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.guard_moments import ALL_RULES, Rules, chain_length, play

MOMENTS = 50
FEW = [(ALL_RULES[0], 5), (ALL_RULES[1], 31), (ALL_RULES[2], 14), (ALL_RULES[3], 22), (ALL_RULES[0], 40)]

ChainLength = Callable[[Rules], float]


@pytest.fixture(scope="module")
def length_of(tmp_path_factory: pytest.TempPathFactory) -> ChainLength:
    """How long a chain takes here, measured once for each kind."""
    measured: dict[Rules, float] = {}

    def length(rules: Rules) -> float:
        if rules not in measured:
            measured[rules] = chain_length(tmp_path_factory.mktemp("chain"), rules)
        return measured[rules]

    return length


@pytest.mark.parametrize(("rules", "seed"), FEW, ids=str)
def test_no_task_is_lost_or_doubled_when_the_guard_dies_in_a_recovery(
    tmp_path: Path, rules: Rules, seed: int, length_of: ChainLength
) -> None:
    play(tmp_path, rules, seed, length_of(rules))


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(MOMENTS))
@pytest.mark.parametrize("rules", ALL_RULES, ids=str)
def test_no_task_is_lost_or_doubled_at_any_moment(
    tmp_path: Path, rules: Rules, seed: int, length_of: ChainLength
) -> None:
    play(tmp_path, rules, seed, length_of(rules))
