"""What has happened so far, put together from what was done to the replicas and from their journals. Pure.

Entries of different replicas come in almost any order; what counts is the time that stands in them. Between
a fault and its healing no other fault begins, so one incident at most is open.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from procguard.demo.faults import Fault, Kind, name_of
from procguard.demo.journal import Ended, Entry, Stepped, Told


@dataclass
class Incident:
    """One fault and what became of it. Times are monotonic seconds; the dicts are by survivor."""

    fault: Fault
    at: float
    survivors: tuple[str, ...]
    """Processes of the other replicas."""
    victims: tuple[str, ...]
    """Processes of the replica that was struck."""
    step: int
    """The step in which it happened."""
    quorum: int
    """The quorum in which it happened."""
    told: dict[str, float] = field(default_factory=dict)
    resumed: dict[str, float] = field(default_factory=dict)
    """When the first step without the victim was committed."""
    gone_on: Counter[str] = field(default_factory=Counter)
    """Steps committed without the victim."""
    lost: Counter[str] = field(default_factory=Counter)
    """Steps that did not commit because of it."""
    returned_at: float | None = None
    """When the new process was started, or the stopped one continued."""
    return_step: int = 0
    """How far the survivors were then."""
    healed: set[str] = field(default_factory=set)
    """Victims that take part again."""
    healed_at: float | None = None

    @property
    def told_ms(self) -> list[float]:
        """In the order of ``survivors``, without those that were not told."""
        return [(self.told[s] - self.at) * 1000 for s in self.survivors if s in self.told]

    @property
    def next_step_ms(self) -> float | None:
        """Until the last survivor had committed a step again."""
        if len(self.resumed) < len(self.survivors):
            return None
        return (max(self.resumed.values()) - self.at) * 1000

    @property
    def healed_ms(self) -> float | None:
        """Until the victim took part again: from the kill, or from the SIGCONT after a stop."""
        since = self.at if self.fault.kind is Kind.KILL else self.returned_at
        return None if self.healed_at is None or since is None else (self.healed_at - since) * 1000

    @property
    def steps_lost(self) -> int:
        """Steps that the survivors had to repeat."""
        return max(self.lost.values(), default=0)


class Stage(Enum):
    TRAINING = auto()
    """All replicas train together for the first time."""
    STRUCK = auto()
    TOLD = auto()
    RESUMED = auto()
    RETURNED = auto()
    HEALED = auto()
    ENDED = auto()


class Milestone(NamedTuple):
    """Something worth a line in the timeline."""

    at: float
    stage: Stage
    incident: Incident | None = None


class Chronicle:
    """The facts of one run.

    Args:
        ranks: processes of each replica.
        proactive: False: nobody is told by a notice. Then a survivor knows from its own collective's error,
            or at the latest from the first step without the victim.
    """

    def __init__(self, replica_ids: Sequence[str], *, proactive: bool, ranks: int = 1) -> None:
        self.replica_ids = tuple(replica_ids)
        self.ranks = ranks
        self.names = tuple([name for replica_id in replica_ids for name in self.names_of(replica_id)])
        self.incidents: list[Incident] = []
        self.milestones: list[Milestone] = []
        self.steps: dict[str, int] = dict.fromkeys(self.names, 0)
        self.ends: dict[str, Ended] = {}
        self.false_notices = 0
        """Notices of replicas to which nothing had been done."""
        self._proactive = proactive
        self._quorums: dict[str, int] = dict.fromkeys(self.names, 0)
        self._stray: defaultdict[int, Counter[str]] = defaultdict(Counter)

    # --- what may be asked --------------------------------------------------------------------------

    def names_of(self, replica_id: str) -> tuple[str, ...]:
        """The processes of a replica, by rank."""
        return tuple([name_of(replica_id, rank, self.ranks) for rank in range(self.ranks)])

    @property
    def step(self) -> int:
        """How far the last of those is that are not away."""
        away = self._open.victims if self._open else ()
        return min(step for name, step in self.steps.items() if name not in away)

    @property
    def training(self) -> bool:
        """All processes have committed steps, together."""
        return all(self.steps.values()) and len(set(self._quorums.values())) == 1

    @property
    def steps_lost(self) -> int:
        """Steps that had to be repeated, whatever the reason."""
        stray = sum(max(attempts.values()) for attempts in self._stray.values())
        return stray + sum(incident.steps_lost for incident in self.incidents)

    @property
    def _open(self) -> Incident | None:
        last = self.incidents[-1] if self.incidents else None
        return last if last is not None and last.healed_at is None else None

    # --- what was done ------------------------------------------------------------------------------

    def strike(self, fault: Fault, at: float) -> None:
        """A fault was injected; ``at`` was taken right before."""
        assert self._open is None
        victims = self.names_of(fault.replica_id)
        survivors = tuple([name for name in self.names if name not in victims])
        step = self.steps[victims[fault.rank]] + 1
        incident = Incident(fault, at, survivors, victims, step, max(self._quorums.values()))
        self.incidents.append(incident)
        self._note(at, Stage.STRUCK, incident)

    def bring_back(self, at: float) -> None:
        """The victim's new process was started, or the stopped one continued."""
        incident = self.incidents[-1]
        incident.returned_at = at
        incident.return_step = max(self.steps[s] for s in incident.survivors)
        self._note(at, Stage.RETURNED, incident)

    # --- what the replicas wrote down ---------------------------------------------------------------

    def hear(self, entry: Entry) -> None:
        """Take in an entry of a journal."""
        if isinstance(entry, Stepped):
            self._stepped(entry)
        elif isinstance(entry, Told):
            self._told(entry)
        else:
            self.ends[entry.name] = entry
            if len(self.ends) == len(self.names):
                self._note(entry.at, Stage.ENDED)

    def _stepped(self, entry: Stepped) -> None:
        incident, me = self._open, entry.name
        if entry.committed:
            self.steps[me] = entry.step
            self._quorums[me] = entry.quorum
            if not self.milestones and self.training:
                self._note(entry.at, Stage.TRAINING)
        if incident is None or entry.at <= incident.at:
            self._stepped_undisturbed(entry)
        elif me in incident.survivors:
            self._survived(incident, entry)
        elif self._has_healed(incident, entry):
            incident.healed.add(me)
            if len(incident.healed) == len(incident.victims):
                incident.healed_at = entry.at
                self._note(entry.at, Stage.HEALED, incident)

    def _stepped_undisturbed(self, entry: Stepped) -> None:
        incident = self._open
        if not entry.committed:
            if self.milestones:
                self._stray[entry.step][entry.name] += 1
        elif incident is not None:  # read late
            incident.quorum = max(incident.quorum, entry.quorum)
            if entry.name == incident.victims[incident.fault.rank]:
                incident.step = entry.step + 1

    def _survived(self, incident: Incident, entry: Stepped) -> None:
        """A survivor's step after the fault: the last one with the victim, a lost one, or one without it."""
        me = entry.name
        if entry.committed and entry.quorum == incident.quorum:
            return
        if not self._proactive:
            self._knows(incident, me, entry.at)
        if entry.committed:
            incident.gone_on[me] += 1
            if me not in incident.resumed:
                incident.resumed[me] = entry.at
                if len(incident.resumed) == len(incident.survivors):
                    self._note(max(incident.resumed.values()), Stage.RESUMED, incident)
        elif me not in incident.resumed:
            incident.lost[me] += 1
        else:
            self._stray[entry.step][me] += 1

    @staticmethod
    def _has_healed(incident: Incident, entry: Stepped) -> bool:
        """It has caught up: not merely finished the step in which it had been stopped."""
        back = incident.returned_at is not None and entry.at > incident.returned_at
        return back and entry.committed and entry.step > incident.return_step

    def _told(self, entry: Told) -> None:
        if entry.left:
            return
        for incident in reversed(self.incidents):
            struck = entry.about == incident.fault.replica_id and entry.at > incident.at
            if struck and entry.name in incident.survivors and entry.name not in incident.told:
                self._knows(incident, entry.name, entry.at)
                return
        self.false_notices += 1

    def _knows(self, incident: Incident, name: str, at: float) -> None:
        if name in incident.told:
            return
        incident.told[name] = at
        if len(incident.told) == len(incident.survivors):
            self._note(max(incident.told.values()), Stage.TOLD, incident)

    def _note(self, at: float, stage: Stage, incident: Incident | None = None) -> None:
        self.milestones.append(Milestone(at, stage, incident))
