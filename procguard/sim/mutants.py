"""``python -m procguard.sim.mutants``: break the code in known ways, one at a time; each must be noticed.

A mutant is a function of ProcGuard with one piece of its text replaced. It is made in a fresh process and
driven through schedules until an invariant is broken; the unbroken code passes the same ones. A mutant that
nobody notices means that the simulator does not hold what it says it holds. A text that is no longer there
means that the code has changed, and the mutant must follow.
"""

from __future__ import annotations

import importlib
import inspect
import json
import multiprocessing
import os
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import click

from procguard.sim.crowd import graveyard
from procguard.sim.fleet import run
from procguard.sim.invariants import Violation
from procguard.sim.schedule import (
    OLDEST,
    Fault,
    Kind,
    Schedule,
    mass_death,
    one_hangs,
    schedule_of,
    undisturbed,
)

SCHEDULES_MAX = 200
UNBROKEN_SCHEDULES = 50
SPLITS = 4
"""Seeds tried, until chance has a collective complete at one and not at the other."""
MEMBERS = (2, 8)
UNBROKEN = "unbroken"
PACKAGE = "procguard"


class Mutant(NamedTuple):
    """``where`` is a module under ``procguard`` and a function in it; ``text`` becomes ``instead`` there."""

    name: str
    where: str
    text: str
    instead: str
    scenario: Callable[[], list[Violation]] | None = None
    """Where it shows, if not in any few schedules; they say what was violated."""


def _mass_death() -> list[Violation]:
    return run(mass_death(40, 30)).violations


def _one_hangs() -> list[Violation]:
    return run(one_hangs()).violations


def _split_commit() -> list[Violation]:
    """One commits a step which another loses and does again; they meet at one step, with different states.

    A third dies as the collective completes, and the one that commits is lost to the lighthouse at once.
    """
    for seed in range(1, SPLITS + 1):
        calm = replace(undisturbed(3, seed), step_s=1.5)
        for when, first in _first_commits(calm)[:-4:2]:
            victim = next(name for name in calm.names if name != first)
            faults = (
                Fault(when + 0.0001, Kind.CRASH, (victim,), 5.0, 0.0, ""),
                Fault(when + 0.0002, Kind.PARTITION, (first,), 0.5, 0.0, "both"),
                Fault(when + 0.0003, Kind.CUT, (first,), 0.5, 1.0, "heard"),
            )
            violations = run(replace(calm, faults=faults)).violations
            if violations:
                return violations
    return []


def _late_answer() -> list[Violation]:
    """The answer to one that asks for a quorum is held up, and a member of it dies meanwhile."""
    calm = undisturbed(3)
    for when, first in _first_commits(calm)[4:-8:2]:
        victim = next(name for name in calm.names if name != first)
        faults = (
            Fault(when + 0.0004, Kind.HOLD, (first,), 0.5, 0.0, OLDEST),
            Fault(when + 0.05, Kind.CRASH, (victim,), 5.0, 0.0, ""),
        )
        violations = run(replace(calm, faults=faults)).violations
        if violations:
            return violations
    return []


def _first_commits(schedule: Schedule) -> list[tuple[float, str]]:
    """For each step, when it was committed first, and by whom."""
    told: list[str] = []
    run(schedule, told.append)
    commits = [line.split() for line in told if "commits step" in line]
    firsts = {int(words[4]): (float(words[0]), words[1].partition("#")[0]) for words in reversed(commits)}
    return [firsts[step] for step in sorted(firsts)]


def _held_up() -> list[Violation]:
    """One connection after another is held up for longer than a lease."""
    calm = undisturbed(3)
    whom = [(name,) for name in calm.names] * 4
    faults = tuple([Fault(4.0 + 3 * n, Kind.HOLD, who, 1.8, 0.0, "") for n, who in enumerate(whom)])
    return run(replace(calm, faults=faults, length_s=40.0)).violations


MUTANTS = (
    Mutant(
        "min_replicas is not checked",
        "lighthouse.quorum:_numbers",
        "if have < min_replicas:",
        "if False:",
    ),
    Mutant(
        "a minority may form a quorum",
        "lighthouse.quorum:_numbers",
        "if 2 * mine <= counted:",
        "if False:",
    ),
    Mutant(
        "a suspect is a candidate",
        "lighthouse.quorum:decide",
        "if m.request and not m.suspect]",
        "if m.request]",
    ),
    Mutant(
        "a restarted lighthouse counts from the same epoch",
        "lighthouse.epoch_file:first_epoch",
        "return max((stored or 0) + 1, clock)",
        "return stored or clock",
    ),
    Mutant(
        "a new membership keeps the quorum id",
        "lighthouse.core:Core._form",
        " or known.members != members",
        "",
    ),
    Mutant(
        "commit failures give no new quorum id",
        "lighthouse.core:Core._form",
        "if grown or any(p.commit_failures for p in formed.participants):",
        "if grown:",
        _one_hangs,
    ),
    Mutant(
        "who is left out is not told",
        "lighthouse.core:Core._exclude",
        "for slot in member.slots.values():",
        "for slot in ():",
    ),
    Mutant(
        "a failure clears all waiters",
        "lighthouse.roster:Roster.end",
        "    member.request = None\n",
        "    for each in self.jobs[member.job_id].members.values():\n        each.request = None\n",
    ),
    Mutant(
        "a late heartbeat resurrects",
        "lighthouse.core:Core._heartbeat",
        "    if member.incarnation != beat.incarnation or member.state > MemberState.SUSPECT:\n",
        "    if member.state > MemberState.SUSPECT:\n"
        "        member.state = MemberState.ALIVE\n"
        "        self.roster.lease(slot, now)\n"
        "    if member.incarnation != beat.incarnation:\n",
    ),
    Mutant(
        "of 17 notices the oldest is dropped",
        "lighthouse.notices:NoticeLog.flush",
        "tuple(self._pending)",
        "tuple(self._pending[-16:])",
        _mass_death,
    ),
    Mutant(
        "a disconnect is a verdict",
        "lighthouse.roster:Roster.topic_lost",
        "self.options.settings.disconnect_grace_s",
        "0.0",
    ),
    Mutant(
        "the loop forgets its own stall",
        "lighthouse.core:Core._loop_stalled",
        "self.roster.leases.excuse(now)",
        "pass",
    ),
    Mutant(
        "a listener's Hello gets a fresh incarnation",
        "lighthouse.admission:judge",
        "return Admission.GO_ON if claimed == live.incarnation else Admission.REJOIN",
        "return Admission.SUPERSEDE_AND_JOIN",
    ),
    Mutant(
        "a repeated Hello gets a fresh incarnation",
        "lighthouse.admission:_judge_newcomer",
        "return Admission.GO_ON",
        "return Admission.SUPERSEDE_AND_JOIN",
    ),
    Mutant(
        "a quorum is said once, and not given again",
        "lighthouse.core:Core._quorum_request",
        "    self.roster.send(peer, QuorumFormed(self.roster.epoch, member.answer))\n",
        "    pass\n",
    ),
    Mutant(
        "an old answer is given to a new round",
        "lighthouse.core:Core._quorum_request",
        "if asks.round == member.answered_round and member.answer is not None:",
        "if member.answer is not None:",
    ),
    Mutant(
        "waiters are not told why",
        "lighthouse.core:Core._beacon",
        "if job.waiting:",
        "if False:",
    ),
    Mutant(
        "leases are never over",
        "lighthouse.core:Core._time_passed",
        "for slot in self.roster.leases.due(now):",
        "for slot in ():",
    ),
    Mutant(
        "who came back in time is lost all the same",
        "lighthouse.roster:Roster._forget",
        "    self._quieten(member)\n",
        "    pass\n",
    ),
    Mutant(
        "members of a forgotten quorum are lost at once",
        "lighthouse.roster:Roster._await_return",
        "self.return_s",
        "0.0",
    ),
    Mutant(
        "the dead are never forgotten",
        "lighthouse.roster:Roster.forget_long_dead",
        "if not dead or ",
        "if dead or ",
        graveyard,
    ),
    Mutant(
        "of the dead only those of an hour ago are forgotten",
        "lighthouse.roster:Roster.forget_long_dead",
        "surplus = len(dead) - DEAD_KEPT_MAX",
        "surplus = 0",
        graveyard,
    ),
    Mutant(
        "any notice aborts",
        "client.fence:_ends_quorum",
        "return epoch >= quorum.quorum_id.epoch and any(",
        "return bool(quorum) or any(",
    ),
    Mutant(
        "a notice that precedes its quorum is ignored",
        "client.fence:Fence.install",
        "        return False\n",
        "        pass\n",
        _late_answer,
    ),
    Mutant(
        "a notice after its quorum is ignored",
        "client.fence:Fence.hear",
        "if self.current is None or not _ends_quorum(notice, epoch, self.current):",
        "if True:",
    ),
    Mutant(
        "a notice heard twice is told twice",
        "client.fence:Fence.hear",
        "news = (notice.replica_id, notice.incarnation) not in self._told",
        "news = True",
    ),
    Mutant(
        "a late abort hits the quorum that came after",
        "client.abort:FencedAbort.end",
        "if current is None or current.quorum_id != quorum_id:",
        "if False:",
    ),
    Mutant(
        "a gap in the notices is not closed",
        "client.session:Session._compare",
        "if epoch == self._epoch and seq > self._seq and self._hello is not None:",
        "if False:",
    ),
    Mutant(
        "a listener beats on for the life before",
        "client.session:Session._enrol",
        "    self._incarnation, self._quorum = enrol.hello.claim\n",
        "    if self.state is State.NEW:\n        self._incarnation, self._quorum = enrol.hello.claim\n",
    ),
    Mutant(
        "a listener that ended is not replaced",
        "client.companion:Companion._man_posts",
        "if post.host is None and post.due_at <= now:",
        "if False:",
    ),
    Mutant(
        "heartbeats go one way only",
        "client.session:Session._beat",
        "self._beats_aside = not self._beats_aside",
        "pass",
        _held_up,
    ),
    Mutant(
        "heartbeats that come aside are not taken",
        "lighthouse.service:Service._receive",
        "if type(message) is Heartbeat:",
        "if False:",
        _held_up,
    ),
    Mutant(
        "the listener is not told of a new life",
        "client.companion:Companion.enrol",
        "    self.tell(enrol)\n",
        "    pass\n",
    ),
    Mutant(
        "who is up to date is told by the step alone",
        "client.recovery_plan:_state_of",
        "return participant.step, participant.committed_in",
        "return participant.step, 0",
        _split_commit,
    ),
    Mutant(
        "a healing replica's gradient counts",
        "client.replica:Replica.allreduce",
        "if not self.is_participating():",
        "if False:",
    ),
    Mutant(
        "a step commits though its collective failed",
        "client.replica:Replica.should_commit",
        "commits = error is None and not",
        "commits = not",
    ),
)


class Caught(NamedTuple):
    name: str
    invariant: str
    """Which one noticed; empty if none did."""
    text: str
    schedules: int
    seconds: float


def make(mutant: Mutant) -> None:
    """Put it in the place of the function, wherever that is known by name."""
    module_name, _, qualified = mutant.where.partition(":")
    module = importlib.import_module(f"{PACKAGE}.{module_name}")
    *owners, name = qualified.split(".")
    owner: Any = module
    for each in owners:
        owner = getattr(owner, each)
    original = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(original))
    assert source.count(mutant.text) == 1, (
        f"{mutant.where} holds {mutant.text!r} {source.count(mutant.text)} times"
    )
    indented = source.replace(mutant.text, mutant.instead)
    made: dict[str, Any] = {}
    exec(compile(indented, f"<mutant of {mutant.where}>", "exec"), vars(module), made)
    setattr(owner, name, made[name])
    for other in [each for key, each in sys.modules.items() if key.startswith(PACKAGE)]:
        if getattr(other, name, None) is original:
            setattr(other, name, made[name])


def hunt(name: str) -> Caught:
    """In a process of its own: make the mutant, and run schedules until somebody notices."""
    began_at = time.monotonic()
    mutant = next((each for each in MUTANTS if each.name == name), None)
    if mutant is not None:
        make(mutant)
    scenarios: list[Callable[[], list[Violation]]] = []
    if mutant is None:
        scenarios = [_mass_death, _one_hangs, _split_commit, _late_answer, _held_up, graveyard]
    elif mutant.scenario is not None:
        scenarios = [mutant.scenario]
    seeds = range(1, (SCHEDULES_MAX if mutant is not None else UNBROKEN_SCHEDULES) + 1)
    done = 0
    for look in scenarios + [partial(_violations, seed) for seed in seeds]:
        done += 1
        violations = look()
        if violations:
            first = violations[0]
            return Caught(name, first.invariant, first.text, done, time.monotonic() - began_at)
    return Caught(name, "", "", done, time.monotonic() - began_at)


def _violations(seed: int) -> list[Violation]:
    return run(schedule_of(seed, *MEMBERS)).violations


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", default="", help="Only those whose name contains this.")
@click.option(
    "--jobs", type=click.IntRange(1), default=os.cpu_count() or 1, help="Processes.  [default: one a core]"
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def main(only: str, jobs: int, as_json: bool) -> None:
    """Break the code on purpose, and say which invariant noticed. Exit code 1 if one was not noticed."""
    began_at = time.monotonic()
    names = [UNBROKEN, *[mutant.name for mutant in MUTANTS if only in mutant.name]]
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(jobs, maxtasksperchild=1) as pool:
        results = []
        for row in pool.imap(_hunt_elsewhere, names):
            caught = Caught(*row)
            results.append(caught)
            if not as_json:
                click.echo(_line(caught))
    missed = [each.name for each in results if (each.invariant == "") is not (each.name == UNBROKEN)]
    seconds = round(time.monotonic() - began_at, 1)
    if as_json:
        rows = [each._asdict() for each in results]
        click.echo(json.dumps({"seconds": seconds, "missed": missed, "mutants": rows}, indent=2))
    else:
        click.echo(f"{len(results) - 1} mutants in {seconds} s; not as they should be: {missed or 'none'}")
    sys.exit(bool(missed))


def _hunt_elsewhere(name: str) -> tuple[Any, ...]:
    """``hunt`` in a worker process, which knows this module by its name and not as ``__main__``."""
    return tuple(importlib.import_module("procguard.sim.mutants").hunt(name))


def _line(caught: Caught) -> str:
    noticed = f"{caught.invariant:15}" if caught.invariant else "-" * 15
    return f"{noticed} {caught.name} ({caught.schedules} schedules, {caught.seconds:.1f} s)"


if __name__ == "__main__":
    main()
