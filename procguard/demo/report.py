"""What a run means: facts as JSON, rows of a table, one sentence, and the promises that were broken. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from procguard.demo.chronicle import Chronicle, Incident, Milestone, Stage
from procguard.demo.faults import Kind

ACCURACY_MIN = 0.9
SURVIVORS_LISTED_MAX = 4
"""More of them share a line."""


class Result(NamedTuple):
    """A run that is over."""

    seed: int
    proactive: bool
    chronicle: Chronicle
    survivors_restarted: int
    duration_s: float
    trouble: str
    """Why the story could not be played to its end; empty if it could."""

    @property
    def weights(self) -> set[str]:
        """Digests of the final weights of those that reached the end, of each replica its ranks in a row."""
        ends = self.chronicle.ends
        groups = [self.chronicle.names_of(replica_id) for replica_id in self.chronicle.replica_ids]
        return {" ".join([ends[name].digest for name in group if name in ends]) for group in groups}

    @property
    def weights_equal(self) -> bool:
        """Each rank ended with the weights that the same rank of every other replica has."""
        return len(self.weights) == 1 and len(self.chronicle.ends) == len(self.chronicle.names)

    @property
    def accuracy(self) -> float:
        """Of the worst replica; 0 if none reached the end."""
        return min((end.accuracy for end in self.chronicle.ends.values()), default=0.0)


def broken_promises(result: Result) -> list[str]:
    """What should be true after every run and is not, a sentence each."""
    chronicle = result.chronicle
    broken = [result.trouble] if result.trouble else []
    for incident in chronicle.incidents:
        victim = _victim(incident)
        untold = [survivor for survivor in incident.survivors if survivor not in incident.told]
        broken += [f"replica {survivor} was not told of replica {victim}" for survivor in untold]
        if incident.healed_at is None:
            broken.append(f"replica {victim} did not heal")
    if result.survivors_restarted:
        broken.append(f"{result.survivors_restarted} survivors did not live to the end")
    if chronicle.false_notices:
        broken.append(f"{chronicle.false_notices} notices were of replicas to which nothing was done")
    if not result.trouble and not result.weights_equal:
        broken.append(f"the final weights differ: {', '.join(sorted(result.weights))}")
    if not result.trouble and result.accuracy < ACCURACY_MIN:
        broken.append(f"the accuracy is {result.accuracy:.3f}, less than {ACCURACY_MIN}")
    return broken


# --- JSON


def as_json(result: Result) -> dict[str, Any]:
    """All facts, for a program."""
    return {
        "events": [_incident_as_json(incident) for incident in result.chronicle.incidents],
        "weights_equal": result.weights_equal,
        "accuracy": round(result.accuracy, 4),
        "steps": result.chronicle.step,
        "steps_lost": result.chronicle.steps_lost,
        "false_notices": result.chronicle.false_notices,
        "survivors_restarted": result.survivors_restarted,
        "proactive": result.proactive,
        "seed": result.seed,
        "duration_s": round(result.duration_s, 2),
        "broken_promises": broken_promises(result),
    }


def _incident_as_json(incident: Incident) -> dict[str, Any]:
    away_s = None if incident.returned_at is None else incident.returned_at - incident.at
    return {
        "kind": incident.fault.kind.value,
        "replica_id": incident.fault.replica_id,
        "rank": incident.fault.rank,
        "step": incident.step,
        "survivors": list(incident.survivors),
        "told_ms": [_rounded(told_ms) for told_ms in incident.told_ms],
        "next_step_ms": _rounded(incident.next_step_ms),
        "returned_ms": _rounded(None if away_s is None else away_s * 1000),
        "healed_ms": _rounded(incident.healed_ms),
        "steps_lost": incident.steps_lost,
    }


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 3)


# --- words


_DEEDS = {Kind.KILL: "kill -9", Kind.STOP: "SIGSTOP"}
_PARTICIPLES = {Kind.KILL: "killed", Kind.STOP: "stopped"}
_RETURNS = {Kind.KILL: "is started anew", Kind.STOP: "is continued (SIGCONT)"}
_HEALED_SINCE = {Kind.KILL: "the kill, in a new process", Kind.STOP: "SIGCONT"}


def headings(result: Result) -> tuple[str, ...]:
    """Of the table's columns."""
    told = "Survivors were told after" if result.proactive else "Survivors found out after"
    return ("Replica", "What happened", told, "Next step after", "Healed", "Steps lost")


def rows(result: Result) -> list[tuple[str, ...]]:
    """The table, a row for each incident."""
    return [
        (
            _victim(incident),
            f"{_DEEDS[incident.fault.kind]}\nin step {incident.step}",
            ("\n" if len(incident.survivors) <= SURVIVORS_LISTED_MAX else ", ").join(_told(incident)),
            _span(incident.next_step_ms),
            f"{_span(incident.healed_ms)} after\n{_HEALED_SINCE[incident.fault.kind]}",
            str(incident.steps_lost),
        )
        for incident in result.chronicle.incidents
    ]


def _victim(incident: Incident) -> str:
    """The process that was struck, as it is called."""
    return incident.victims[incident.fault.rank]


def _told(incident: Incident) -> list[str]:
    told = {survivor: (at - incident.at) * 1000 for survivor, at in incident.told.items()}
    return [f"replica {survivor}: {_span(told.get(survivor))}" for survivor in incident.survivors]


def _span(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "never"
    if milliseconds < 100:
        return f"{milliseconds:.1f} ms"
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.2f} s"


def outcome(result: Result) -> str:
    """The end of the run in a few figures."""
    chronicle = result.chronicle
    weights = "equal" if result.weights_equal else "NOT equal"
    return (
        f"Step {chronicle.step} after {result.duration_s:.1f} s: test accuracy {result.accuracy:.1%}, "
        f"weights {weights} on all {len(chronicle.replica_ids)} replicas, {chronicle.steps_lost} steps lost, "
        f"{result.survivors_restarted} survivors restarted, {chronicle.false_notices} false notices."
    )


def closing_sentence(result: Result) -> str:
    """What was shown, in words; for a run that broke no promise."""
    chronicle = result.chronicle
    told = [
        f"replica {_victim(i)} was {_PARTICIPLES[i.fault.kind]} and the others knew after "
        f"{_span(max(i.told_ms))}"
        for i in chronicle.incidents
    ]
    return (
        f"{'; '.join(told).replace('r', 'R', 1)}. The job went on each time: no survivor was restarted, and "
        f"all {len(chronicle.replica_ids)} ended with the same weights and {result.accuracy:.1%} accuracy."
    )


def comparison(proactive: Result, other: Result) -> str:
    """What the same faults cost without proactive recovery."""
    pairs = zip(proactive.chronicle.incidents, other.chronicle.incidents, strict=True)
    costs = [
        f"{_span(without.next_step_ms)} instead of {_span(with_it.next_step_ms)} after the "
        f"{with_it.fault.kind.value} of replica {_victim(with_it)}"
        for with_it, without in pairs
    ]
    return f"Without proactive recovery the next step took {' and '.join(costs)}."


def timeline(milestones: Sequence[Milestone], from_s: float) -> list[str]:
    """A line for each milestone; ``from_s`` is the time that the lines count from."""
    return [f"{milestone.at - from_s:7.3f} s  {_in_words(milestone)}" for milestone in milestones]


def _in_words(milestone: Milestone) -> str:
    incident = milestone.incident
    if incident is None:
        return "all replicas train" if milestone.stage is Stage.TRAINING else "all replicas have ended"
    victim, kind = _victim(incident), incident.fault.kind
    if milestone.stage is Stage.STRUCK:
        return f"replica {victim}: {_DEEDS[kind]} in step {incident.step}"
    if milestone.stage is Stage.TOLD:
        return f"  the others know: {', '.join(_told(incident))}"
    if milestone.stage is Stage.RESUMED:
        return f"  the next step, without it, is done after {_span(incident.next_step_ms)}"
    if milestone.stage is Stage.RETURNED:
        return f"replica {incident.fault.replica_id} {_RETURNS[kind]}"
    return f"  it has healed {_span(incident.healed_ms)} after {_HEALED_SINCE[kind]}"
