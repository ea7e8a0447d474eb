"""What is drawn from a seed."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from procguard.demo.faults import STEPS_BEFORE, Kind, draw

REPLICAS = ["0", "1", "2", "3"]


def test_the_same_seed_tells_the_same_story() -> None:
    assert draw(Random(7), REPLICAS, 2) == draw(Random(7), REPLICAS, 2)
    assert len({draw(Random(seed), REPLICAS, 1) for seed in range(20)}) == 20


@pytest.mark.parametrize("kills", [0, 1, 5])
def test_kills_come_first_and_a_stop_last(kills: int) -> None:
    kinds = [fault.kind for fault in draw(Random(1), REPLICAS, kills)]
    assert kinds == [Kind.KILL] * kills + [Kind.STOP]


@pytest.mark.parametrize("seed", range(20))
def test_of_groups_a_further_rank_is_killed_first_then_a_rank_0(seed: int) -> None:
    faults = draw(Random(seed), REPLICAS, 4, ranks=3)
    assert [fault.kind for fault in faults] == [Kind.KILL] * 4
    ranks = [fault.rank for fault in faults]
    assert ranks[1::2] == [0, 0]
    assert set(ranks[0::2]) <= {1, 2}


@pytest.mark.parametrize("seed", range(50))
def test_nobody_is_struck_twice_in_a_row(seed: int) -> None:
    faults = draw(Random(seed), ["0", "1"], 3)
    assert all(this.replica_id != after.replica_id for this, after in pairwise(faults))
    low, high = STEPS_BEFORE
    assert all(low <= fault.steps_before <= high and 0 <= fault.moment < 1 for fault in faults)
