"""Many schedules over the cores, and the line that replays one of them."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import click

from procguard.sim.fleet import Result, run
from procguard.sim.schedule import schedule_of

CHUNK = 20


class Range(click.ParamType[Any]):
    """``2-64``, or one number."""

    name = "low-high"

    def convert(
        self, value: str | tuple[int, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        low, _, high = value.partition("-")
        try:
            bounds = int(low), int(high or low)
        except ValueError:
            self.fail(f"{value!r} is no range such as 2-64", param, ctx)
        if not 2 <= bounds[0] <= bounds[1]:
            self.fail(f"{value!r}: from 2 members on, the lower bound first", param, ctx)
        return bounds


def run_seed(members: tuple[int, int], seed: int) -> Result:
    """One schedule, in a worker process; what it leaves is collected at once."""
    try:
        return run(schedule_of(seed, *members))
    finally:
        gc.collect()


def run_seeds(seeds: range, members: tuple[int, int], jobs: int) -> Iterator[Result]:
    """All of them, in the order of their seeds, over so many processes."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=gc.freeze) as pool:
        yield from pool.map(partial(run_seed, members), seeds, chunksize=CHUNK)


def replay_line(seed: int, members: tuple[int, int]) -> str:
    """The command that shows what happened."""
    low, high = members
    return f"python -m procguard.sim --seed {seed} --members {low}-{high} --trace"
