"""All the patients, and which of them is due next.

Pure as ``health`` is. One heap entry a patient, re-armed when it comes up: a heartbeat, which moves a
deadline further away, costs nothing here. An event that brings one nearer pushes a second entry, and the
older one is found to be stale when it comes up.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from procguard.supervisor.health import Patient
from procguard.supervisor.health_words import Effect, Event, Resumed, Rules, Tick

STALE_FACTOR_MAX = 8
"""More entries a patient than this, and the stale ones are dropped."""


class Ward:
    """Patients by worker id."""

    def __init__(self) -> None:
        self._patients: dict[str, Patient] = {}
        self._armed: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def __contains__(self, worker_id: str) -> bool:
        return worker_id in self._patients

    def __iter__(self) -> Iterator[str]:
        return iter(self._patients)

    def __getitem__(self, worker_id: str) -> Patient:
        return self._patients[worker_id]

    def add(self, worker_id: str, rules: Rules) -> None:
        """A worker of which nothing is known yet; one of this name that was here before is forgotten."""
        self._patients[worker_id] = Patient(rules)

    def remove(self, worker_id: str) -> None:
        """Forget it, if it is here."""
        self._patients.pop(worker_id, None)
        self._armed.pop(worker_id, None)

    def due(self) -> float | None:
        """When ``tick`` is wanted next; at times too early, never too late."""
        return self._heap[0][0] if self._heap else None

    def step(self, worker_id: str, event: Event, now: float) -> tuple[Effect, ...]:
        """Tell one patient; an event of somebody unknown is dropped."""
        patient = self._patients.get(worker_id)
        if patient is None:
            return ()
        effects = patient.step(event, now)
        self._arm(worker_id, patient)
        return effects

    def tick(self, now: float) -> list[tuple[str, Effect]]:
        """What is due by now, of all patients."""
        effects: list[tuple[str, Effect]] = []
        while self._heap and self._heap[0][0] <= now:
            due, worker_id = heapq.heappop(self._heap)
            if self._armed.get(worker_id) != due:
                continue
            del self._armed[worker_id]
            patient = self._patients[worker_id]
            actual = patient.due()
            if actual is not None and actual <= now:
                effects += ((worker_id, effect) for effect in patient.step(Tick(), now))
            self._arm(worker_id, patient, after=now)
        return effects

    def resume(self, now: float) -> None:
        """The monitor was held up: every deadline starts anew."""
        for worker_id in self._patients:
            self.step(worker_id, Resumed(), now)

    def _arm(self, worker_id: str, patient: Patient, after: float | None = None) -> None:
        due = patient.due()
        if due is None:
            return
        assert after is None or due > after, f"{worker_id} is due again at the moment it was served"
        armed = self._armed.get(worker_id)
        if armed is None or due < armed:
            self._armed[worker_id] = due
            heapq.heappush(self._heap, (due, worker_id))
        if len(self._heap) > STALE_FACTOR_MAX * (len(self._patients) + 1):
            self._heap = [(due, name) for name, due in self._armed.items()]
            heapq.heapify(self._heap)
