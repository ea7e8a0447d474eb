"""What is a worker's own, and what is the program's."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from procguard.supervisor import procfs
from procguard.supervisor.sweep import Found, Sweeper, Wanted, by_key
from tests.supervisor.processes import FOR_EVER, kill, lives, pids_in, process, until

KEY = secrets.token_hex(8)  # tests that run beside this one have another
TOKEN = KEY + "f" * 16


@pytest.fixture
def sweeper() -> Iterator[Sweeper]:
    running = Sweeper()
    yield running
    running.close()


def found_of(pid: int) -> Found:
    stat = procfs.read_stat(pid)
    assert stat is not None
    return Found(pid, stat.start_ticks)


@pytest.mark.parametrize("adopted", [False, True])
def test_a_token_is_known_among_those_of_other_guards(sweeper: Sweeper, adopted: bool) -> None:
    wanted = [Wanted(KEY, leader=-1, start_ticks=0, adopted=adopted)]
    with (
        process(FOR_EVER, f"above:{TOKEN}:below") as ours,
        process(FOR_EVER, "f" * 32),
        process(FOR_EVER),
    ):
        assert sweeper.find(wanted, spared=[]) == {KEY: [found_of(ours.pid)]}
        assert sweeper.find(wanted, spared=[ours.pid]) == {KEY: []}


@pytest.mark.parametrize("adopted", [False, True])
def test_what_lost_its_token_is_known_by_its_session_and_its_parent(
    sweeper: Sweeper, tmp_path: Path, adopted: bool
) -> None:
    pids = tmp_path / "pids"
    script = f"env -i sleep 1000 & echo $! >> {pids}; setsid env -i sleep 1000 & echo $! >> {pids}; wait"
    with ExitStack() as kill_later, process(["sh", "-c", script], TOKEN) as leader:
        children = pids_in(pids, 2)
        wanted = Wanted(KEY, leader.pid, found_of(leader.pid).start_ticks, adopted)
        for child in children:  # nothing else finds them
            kill_later.callback(kill, child)
        for child in children:  # setsid has become sleep
            until(lambda pid=child: procfs.tokens_of(pid) is None, "the cleared environment")  # type: ignore[misc]
        assert {found.pid for found in sweeper.find([wanted], [])[KEY]} == {leader.pid, *children}


def test_a_session_whose_number_is_anothers_by_now_proves_nothing(sweeper: Sweeper) -> None:
    with process(FOR_EVER) as other:
        wanted = Wanted(KEY, leader=other.pid, start_ticks=1, adopted=True)
        assert sweeper.find([wanted], []) == {KEY: []}


def test_the_oldest_comes_first(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with process(["sh", "-c", f"sleep 0.05; sleep 1000 & echo $! > {pids}; wait"], TOKEN) as leader:
        (child,) = pids_in(pids)
        carriers = by_key({KEY}, len(KEY))[KEY]
        try:
            assert carriers == [(TOKEN, found_of(leader.pid)), (TOKEN, found_of(child))]
        finally:
            kill(child)


def test_zombies_of_the_program_are_its_own(sweeper: Sweeper) -> None:
    for own_session in (False, True):
        child = subprocess.Popen(["sh", "-c", "exit 7"], start_new_session=own_session)
        until(lambda pid=child.pid: not lives(pid), "its end")  # type: ignore[misc]
        sweeper.mind_orphans([])
        sweeper.find([Wanted(KEY, -1, 0)], [])
        assert child.wait(5) == 7


def test_an_orphan_seen_alive_is_reaped_even_if_it_leads_a_session(sweeper: Sweeper, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"setsid sh -c 'echo $$ > {pids}; read x < {tmp_path}/gate' & exit 0"
    os.mkfifo(tmp_path / "gate")
    with process(["sh", "-c", script], TOKEN) as leader:
        leader.wait()
    (orphan,) = pids_in(pids)
    sweeper.mind_orphans([])
    with (tmp_path / "gate").open("w") as gate:
        gate.write("\n")

    def gone() -> bool:
        sweeper.mind_orphans([])
        return procfs.read_stat(orphan) is None

    until(gone, "the zombie reaped")


def test_it_leaves_things_as_they_were() -> None:
    first = Sweeper()
    second = Sweeper()
    second.close()
    assert Sweeper().subreaper
    first.close()
