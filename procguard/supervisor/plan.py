"""The recovery chain on paper: who is stopped, whose tasks go where, who starts again and when. Pure.

A chain has a **journal**, which says what the chain is about and which of its steps is next. A step is
ticked off in the same write that holds what it has decided, so that a guard which dies at any point finds
either the step undone or its whole outcome. Every step may therefore be begun twice, never completed twice:
stopping the dead and starting the living does nothing, and tasks are moved by the write that ticks off.

The order is what keeps a task from being on two workers: all who lose or gain one are known dead before it
moves, and none of them starts before the move is on the disk. Whoever fails before that joins the chain;
whoever fails later begins the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NamedTuple

from procguard.supervisor.restarts import Again, Exhausted, RestartPolicy, Restarts, after_failure
from procguard.supervisor.tasks import Move, TaskBook, moves_of

LIVING = frozenset({"starting", "running", "stopping", "unkillable"})
"""States of a worker of which something is alive."""


class Step(str, Enum):
    """What a chain does, in this order."""

    CHECKPOINT = "checkpoint"
    """Those who are to be stopped may save what they have."""
    STOP = "stop"
    """They end; then their tasks move, if asked."""
    RESTART = "restart"
    """Those who go on start, each after those it depends on."""
    READY = "ready"
    """They have found together, as far as the adapter can see."""
    RESUME = "resume"
    """Those who keep checkpoints hear who is there again."""


class Rules(NamedTuple):
    """What the user has asked for."""

    stop_all: bool = True
    reassign: bool = False


class WorkerView(NamedTuple):
    """A worker as the plan needs to know it."""

    state: str
    """A ``WorkerState``."""
    wanted: bool | None = None
    """True: it is to run; False: an operator has stopped it; None: nobody has said so, its state decides."""
    out: bool = False
    """An earlier chain has left it out until an operator starts it."""
    takes_tasks: bool = True
    """It may be given tasks of others."""
    may_restart: bool = True
    """False: its settings say that it never does."""
    policy: RestartPolicy = RestartPolicy()
    restarts: Restarts = Restarts()
    start_due: float | None = None
    """A start that has not happened yet; monotonic seconds."""

    @property
    def living(self) -> bool:
        return self.state in LIVING

    @property
    def to_run(self) -> bool:
        """It runs, or should."""
        if self.wanted is False or self.out:
            return False
        return self.living or self.state == "waiting" or (self.wanted is True and self.state != "finished")


@dataclass(frozen=True, slots=True)
class Journal:
    """A chain, and how far it got."""

    number: int
    failed: tuple[str, ...]
    """Whose failure it is about."""
    stop: tuple[str, ...]
    """Who is to be dead before anything starts; the failed are among them."""
    steps: tuple[Step, ...]
    at: int = 0
    """Steps before this one are done; this one may have begun."""
    attempt: int = 1
    started_at: float = 0.0
    """Unix seconds, for people."""
    stop_all: bool = True
    reassign: bool = False
    moves: tuple[Move, ...] = ()
    start: tuple[str, ...] = ()
    """Who is to run in the end; known once all are stopped."""
    left_out: tuple[tuple[str, str], ...] = ()
    """Who stays out, and why."""
    counted: tuple[str, ...] = ()
    """Whose failure has been counted: a further attempt restarts them like the others."""
    trouble: str = ""
    """Why the last attempt failed."""
    hopeless: str = ""
    """Not empty: nothing is left but to give up, and why."""
    context: Mapping[str, Any] | None = None
    """How it was when the chain began, for people."""

    @property
    def step(self) -> Step | None:
        return self.steps[self.at] if self.at < len(self.steps) else None

    @property
    def decided(self) -> bool:
        """Who goes on is settled: it is too late to join."""
        return self.at > self.steps.index(Step.STOP)


class Decision(NamedTuple):
    """What follows once all are stopped; written as a whole."""

    journal: Journal
    moves: tuple[Move, ...]
    due: Mapping[str, float]
    """When each of those who go on starts; monotonic seconds."""
    restarts: Mapping[str, Restarts]
    left_out: Mapping[str, str]
    exhausted: frozenset[str]


def begun(
    number: int,
    failed: Iterable[str],
    views: Mapping[str, WorkerView],
    book: TaskBook,
    rules: Rules,
    *,
    started_at: float = 0.0,
    saves: bool = False,
    ready: bool = False,
    context: Mapping[str, Any] | None = None,
) -> Journal:
    """The journal of a new chain.

    Args:
        saves, ready: there is somebody who keeps checkpoints, or sees when the workers are ready.
    """
    steps = [Step.STOP, Step.RESTART]
    steps = [Step.CHECKPOINT, *steps] if saves else steps
    steps += [Step.READY] if ready else []
    steps += [Step.RESUME] if saves else []
    empty = Journal(number, (), (), tuple(steps), 0, 1, started_at, rules.stop_all, rules.reassign)
    return joined(replace(empty, context=context), failed, views, book)


def joined(
    journal: Journal, failed: Iterable[str], views: Mapping[str, WorkerView], book: TaskBook
) -> Journal:
    """The journal with these failures in it too. Only before it is ``decided``.

    Those who get a task of the failed are stopped as well: a task reaches a worker when it starts.
    """
    assert not journal.decided, "a failure after the decision is the next chain's"
    everyone = tuple(dict.fromkeys([*journal.failed, *failed]))
    stop = set(everyone) | set(journal.stop)
    healthy = {worker_id for worker_id, view in views.items() if view.to_run} - set(everyone)
    if journal.stop_all:
        stop |= healthy
    elif journal.reassign:
        takers = {worker_id for worker_id in healthy if views[worker_id].takes_tasks}
        stop |= {move.target for move in moves_of(book, everyone, takers) if move.target is not None}
    return replace(journal, failed=everyone, stop=tuple(sorted(stop)))


def rejoined(
    journal: Journal, failed: Collection[str], views: Mapping[str, WorkerView], book: TaskBook
) -> Journal:
    """The journal of a chain that has decided and must stop all once more, because of these failures."""
    counted = tuple([worker_id for worker_id in journal.failed if worker_id not in failed])
    back = replace(journal, at=journal.steps.index(Step.STOP), counted=counted)
    return joined(back, failed, views, book)


def decided(
    journal: Journal,
    views: Mapping[str, WorkerView],
    book: TaskBook,
    now: float,
    chance: Callable[[], float],
    undying: Collection[str] = (),
) -> Decision:
    """What follows now that all of ``journal.stop`` are dead, but for the ``undying``: those stay out."""
    failed = [w for w in journal.failed if w in views and w not in journal.counted and w not in undying]
    verdicts = {w: after_failure(views[w].restarts, views[w].policy, now, chance()) for w in failed}
    able = {
        w for w in failed if isinstance(verdicts[w], Again) and views[w].may_restart and _goes_on(views[w])
    }
    others = set(journal.stop) - set(failed) - set(undying)
    healthy = {w for w in others if w in views and views[w].to_run}
    takers = {w for w in healthy if views[w].takes_tasks}
    moves: tuple[Move, ...] = ()
    if journal.reassign:
        able_takers = {w for w in able if views[w].takes_tasks}
        lose, gain = (set(failed), takers) if takers else (set(failed) - able, able_takers)
        moves = moves_of(book, lose, gain)
    losers = {move.source for move in moves}
    left_out = {w: "it could not be killed" for w in undying if w in journal.failed}
    left_out |= {
        w: _why_out(views[w], verdicts[w], [m for m in moves if m.source == w])
        for w in failed
        if (w not in able or w in losers) and _goes_on(views[w])
    }
    exhausted = frozenset(
        w for w in left_out if isinstance(verdicts.get(w), Exhausted) and views[w].may_restart
    )
    due = {w: max(now, views[w].start_due or now) for w in healthy}
    restarts = {}
    for worker_id in failed:
        verdict = verdicts[worker_id]
        if isinstance(verdict, Exhausted):
            restarts[worker_id] = verdict.restarts
        elif worker_id in able - losers:
            restarts[worker_id], due[worker_id] = verdict.restarts, now + verdict.delay_s
    stuck = [] if journal.reassign and takers else sorted(exhausted)
    return Decision(
        journal=replace(
            journal,
            at=journal.steps.index(Step.RESTART),
            moves=(*journal.moves, *moves),
            start=tuple(sorted(due)),
            left_out=tuple(sorted({**dict(journal.left_out), **left_out}.items())),
            counted=journal.failed,
            hopeless=f"{stuck[0]} {left_out[stuck[0]]}" if stuck and journal.stop_all else "",
        ),
        moves=moves,
        due=due,
        restarts=restarts,
        left_out=left_out,
        exhausted=exhausted,
    )


def advanced(journal: Journal) -> Journal:
    """The journal with its present step done."""
    return replace(journal, at=journal.at + 1)


def again(journal: Journal, trouble: str, *, from_the_stop: bool) -> Journal:
    """The journal of one more attempt: at the step it is at, or with all stopped once more."""
    at = journal.steps.index(Step.STOP) if from_the_stop else journal.at
    return replace(journal, attempt=journal.attempt + 1, trouble=trouble, at=at)


def start_order(starting: Collection[str], depends_on: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Those who start, in groups: each group depends only on those before it, or on nobody who starts.

    What depends on a worker that does not start reaches through it: of a -> b -> c, where only a and c
    start, c is first. A circle, which the configuration refuses, starts at once rather than never.
    """
    needs = {worker_id: _reached(worker_id, starting, depends_on) for worker_id in sorted(starting)}
    groups: list[list[str]] = []
    while needs:
        group = [w for w, needed in needs.items() if not needed & needs.keys()] or list(needs)
        groups.append(group)
        needs = {w: needed for w, needed in needs.items() if w not in group}
    return groups


def _reached(
    worker_id: str, starting: Collection[str], depends_on: Mapping[str, Collection[str]]
) -> set[str]:
    """Who of those that start must be there before this one."""
    reached: set[str] = set()
    ahead = list(depends_on.get(worker_id, ()))
    while ahead:
        needed = ahead.pop()
        if needed not in reached:
            reached.add(needed)
            ahead += depends_on.get(needed, ())
    return reached & set(starting)


def _goes_on(view: WorkerView) -> bool:
    """No operator has stopped it meanwhile."""
    return view.wanted is not False


def _why_out(view: WorkerView, verdict: Again | Exhausted, moves: Collection[Move]) -> str:
    targets = sorted({move.target for move in moves if move.target is not None})
    went = f"its tasks went to {', '.join(targets)}" if targets else "its tasks went to the queue"
    if not view.may_restart:
        why = "its settings say restart: never"
    elif isinstance(verdict, Exhausted):
        why = str(verdict)
    else:
        return went
    return f"{why}; {went}" if moves else why
