"""Plays a story: performs its acts on real processes, and follows the journals until a condition holds."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from random import Random
from typing import NamedTuple, Protocol

from procguard.demo.chronicle import Chronicle
from procguard.demo.faults import Fault, Kind, draw
from procguard.demo.processes import STEP_TIME_MS, Processes
from procguard.demo.report import Result
from procguard.demo.story import Act, BringBack, Finish, Strike, Until, story

TICK_S = 0.01
PATIENCE_S = 60.0
"""How long anything may take that is waited for; on an idle machine it is a few seconds."""


class Setting(NamedTuple):
    """What the user asked for."""

    replicas: int
    kills: int
    seed: int
    proactive: bool
    ranks: int = 1


class View(Protocol):
    """Shows a run while it goes on."""

    def watch(self, address: str) -> None:
        """The lighthouse is there, at this address."""
        ...

    def show(self, chronicle: Chronicle, waiting_for: str) -> None:
        """Called at every tick; must not take long."""
        ...


class _Trouble(Exception):
    """The story cannot go on."""


def play(setting: Setting, folder: Path, view: View) -> Result:
    """Play the story that the setting's seed tells. All processes have ended when it returns, or raises."""
    replica_ids = [str(number) for number in range(setting.replicas)]
    faults = draw(Random(setting.seed), replica_ids, setting.kills, setting.ranks)
    chronicle = Chronicle(replica_ids, proactive=setting.proactive, ranks=setting.ranks)
    began_at = time.monotonic()
    trouble = ""
    with Processes(folder, ranks=setting.ranks, proactive=setting.proactive, seed=setting.seed) as processes:
        run = _Run(processes, chronicle, view)
        try:
            run.start(replica_ids)
            for act in story(faults, chronicle):
                run.perform(act)
            run.wait(Until("all processes have exited", processes.all_exited))
        except _Trouble as error:
            trouble = str(error)
        died = processes.died_count()
    return Result(
        seed=setting.seed,
        proactive=setting.proactive,
        chronicle=chronicle,
        survivors_restarted=died,
        duration_s=time.monotonic() - began_at,
        trouble=trouble,
    )


class _Run:
    """One run in progress."""

    def __init__(self, processes: Processes, chronicle: Chronicle, view: View) -> None:
        self._processes = processes
        self._chronicle = chronicle
        self._view = view
        self._address = ""

    def start(self, replica_ids: list[str]) -> None:
        """Start the lighthouse's replicas once it listens."""
        self.wait(Until("the lighthouse listens", lambda: self._processes.lighthouse_address() is not None))
        self._address = self._processes.lighthouse_address() or ""
        self._view.watch(self._address)
        for replica_id in replica_ids:
            self._processes.start_replica(replica_id, self._address)

    def perform(self, act: Act) -> None:
        """Do what the story says."""
        if isinstance(act, Until):
            self.wait(act)
        elif isinstance(act, Strike):
            self._strike(act.fault)
        elif isinstance(act, BringBack):
            self._bring_back(act.fault)
        elif isinstance(act, Finish):
            self._processes.ask_to_end(self._chronicle.replica_ids[0])

    def wait(self, until: Until) -> None:
        """Follow the run until it has come so far."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self._read()
            self._view.show(self._chronicle, until.what)
            if until.holds():
                return
            if obituary := self._processes.unexpected_end():
                raise _Trouble(obituary)
            if time.monotonic() > deadline:
                raise _Trouble(f"gave up after {PATIENCE_S:g} s: waited until {until.what}")
            time.sleep(TICK_S)

    def _read(self) -> None:
        for entry in self._processes.entries():
            self._chronicle.hear(entry)

    def _strike(self, fault: Fault) -> None:
        time.sleep(fault.moment * STEP_TIME_MS / 1000)
        self._read()
        number = signal.SIGKILL if fault.kind is Kind.KILL else signal.SIGSTOP
        self._chronicle.strike(fault, self._processes.strike(fault.replica_id, fault.rank, number))

    def _bring_back(self, fault: Fault) -> None:
        """As an agent does: a replica is started anew as a whole, once nothing of it is left."""
        victim = fault.replica_id
        if fault.kind is Kind.KILL:
            self.wait(Until(f"all of replica {victim} has ended", lambda: self._processes.has_ended(victim)))
            at = time.monotonic()
            self._processes.start_replica(victim, self._address)
        else:
            at = self._processes.strike(victim, fault.rank, signal.SIGCONT)
        self._chronicle.bring_back(at)
