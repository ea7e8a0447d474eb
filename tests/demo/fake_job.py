"""A job on paper: replicas that commit steps in virtual time, with the journal entries of real ones."""

from __future__ import annotations

from procguard.demo.chronicle import Chronicle
from procguard.demo.faults import Fault, Kind
from procguard.demo.journal import Ended, Stepped, Told
from procguard.demo.story import Act, BringBack, Finish, Strike, Until

STEP_S = 0.02
TELL_S = {Kind.KILL: 0.001, Kind.STOP: 1.0}
UNTIL_STEPS_MAX = 10_000


class FakeJob:
    """Plays acts. At each step all that are present commit it, at the same time and in the same quorum."""

    def __init__(self, chronicle: Chronicle, *, notices: bool = True) -> None:
        self.chronicle = chronicle
        self.now = 100.0
        self.step = 0
        self.quorum = 1
        self.present = set(chronicle.names)
        self.acts: list[str] = []
        self._notices = notices

    def perform(self, act: Act) -> None:
        if isinstance(act, Until):
            for _ in range(UNTIL_STEPS_MAX):
                if act.holds():
                    return
                self.train()
            raise AssertionError(f"it never happened that {act.what}")
        self.acts.append(type(act).__name__)
        if isinstance(act, Strike):
            self.strike(act.fault)
        elif isinstance(act, BringBack):
            self.chronicle.bring_back(self.now)
            self.present.update(self.chronicle.names_of(act.fault.replica_id))
            self.quorum += 1
        elif isinstance(act, Finish):
            for name in sorted(self.present):
                self.chronicle.hear(Ended(name, self.now, self.step, 0.95, "same" + name.partition("/")[2]))

    def train(self) -> None:
        """One step."""
        self.now += STEP_S
        self.step += 1
        for name in sorted(self.present):
            self.chronicle.hear(Stepped(name, self.now, self.step, True, self.quorum))

    def strike(self, fault: Fault) -> None:
        """One is gone; the step in progress is lost."""
        self.now += fault.moment * STEP_S
        self.chronicle.strike(fault, self.now)
        self.present.difference_update(self.chronicle.names_of(fault.replica_id))
        self.quorum += 1
        self.now += TELL_S[fault.kind]
        for name in sorted(self.present):
            if self._notices:
                self.chronicle.hear(Told(name, self.now, fault.replica_id, False))
            self.chronicle.hear(Stepped(name, self.now, self.step, False, self.quorum - 1))
