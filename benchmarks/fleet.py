"""Starts a lighthouse and other real processes, and hears what they say."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import psutil

from procguard import status
from procguard.env import parse_address
from procguard.messages import MemberState

DEADLINE_S = 120.0
QUIET_S = 0.3
"""When nobody has said anything for so long, all who can be in a quorum are in one."""
START_AT_ONCE = 8


class Trainer:
    """One member process."""

    def __init__(self, replica_id: str, lighthouse: str, arguments: Sequence[str], heard: Heard) -> None:
        self.replica_id = replica_id
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.member", *arguments],
            env={**os.environ, "PROCGUARD_LIGHTHOUSE": lighthouse, "REPLICA_ID": replica_id},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        threading.Thread(target=self._read, args=(heard,), daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self, heard: Heard) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            heard.put(self.replica_id, json.loads(line))


class Heard:
    """Everything that members said, in the order of its arrival."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()

    def put(self, replica_id: str, event: dict[str, Any]) -> None:
        self._queue.put((replica_id, event))

    def next(self, timeout_s: float) -> tuple[str, dict[str, Any]] | None:
        """What was said next; None when nobody says anything for so long."""
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None


class Fleet:
    """``size`` members in one quorum, again and again.

    Args:
        lighthouse: its address.
        arguments: of every member; those of newcomers can be given to ``fill``.
    """

    def __init__(self, lighthouse: str, size: int, arguments: Sequence[str] = ()) -> None:
        self.trainers: dict[str, Trainer] = {}
        self.listeners: dict[str, list[int]] = {}
        self.false_notices = 0
        self.left_at = 0.0
        self.hurt: set[str] = set()
        """Members that were ended on purpose; a notice about any other is false."""
        self._size = size
        self._lighthouse = lighthouse
        self._arguments = arguments
        self._heard = Heard()
        self._sizes: dict[str, int] = {}
        """Of the last quorum that each member reported."""
        self._started = 0

    def fill(self, arguments: Sequence[str] | None = None) -> str:
        """Start members until all are there, and wait for the quorum of all; returns the last one's id."""
        chosen = self._arguments if arguments is None else arguments
        while len(self.trainers) < self._size:
            count = min(START_AT_ONCE, self._size - len(self.trainers))
            for _ in range(count):
                self._started += 1
                name = f"m{self._started:05d}"
                self.trainers[name] = Trainer(name, self._lighthouse, chosen, self._heard)
            self._await("ready", count)
        self._regroup()
        return name

    def told(self, victim: str) -> dict[str, float]:
        """When each survivor heard of the victim's end."""
        times: dict[str, float] = {}
        while len(times) < len(self.trainers) - 1:
            replica_id, event = self._next()
            if event["event"] == "told" and event["replica_id"] == victim:
                times[replica_id] = event["at"]
        return times

    def remove(self, victim: str) -> None:
        """Reap a member that is dead, or make it so."""
        self.trainers.pop(victim).end()

    def close(self) -> None:
        for name in list(self.trainers):
            self.remove(name)

    def regroup(self) -> None:
        """Shake all members out of their collectives, and wait for one more quorum of all."""
        self._sizes.clear()
        for trainer in self.trainers.values():
            trainer.say("regroup")
        self._regroup()

    def _regroup(self) -> None:
        """Shake members out of their collectives until all are in one quorum."""
        started = time.monotonic()
        quiet_s = QUIET_S
        while {self._sizes.get(name) for name in self.trainers} != {self._size}:
            if time.monotonic() > started + DEADLINE_S:
                raise TimeoutError(f"no quorum of {self._size} within {DEADLINE_S} s: {self._sizes}")
            if self._hear(quiet_s) is None:
                quiet_s *= 2  # a crowded machine needs longer to form a quorum
                self._sizes.clear()
                for trainer in self.trainers.values():
                    trainer.say("regroup")

    def _await(self, kind: str, count: int) -> None:
        while count:
            _, event = self._next()
            count -= event["event"] == kind

    def _next(self) -> tuple[str, dict[str, Any]]:
        said = self._hear(DEADLINE_S)
        if said is None:
            raise TimeoutError(f"no member said anything for {DEADLINE_S} s")
        return said

    def _hear(self, timeout_s: float) -> tuple[str, dict[str, Any]] | None:
        """Keep account of what every member says, whatever one is waiting for."""
        said = self._heard.next(timeout_s)
        if said is None:
            return None
        replica_id, event = said
        if event["event"] == "leaving":
            self.left_at = event["at"]
        elif event["event"] == "in_quorum":
            self._sizes[replica_id] = event["size"]
            self.listeners[replica_id] = event["listeners"]
        elif event["event"] == "told" and event["replica_id"] not in self.hurt:
            self.false_notices += 1
        return said


class Lighthouse(NamedTuple):
    """A running one."""

    address: str
    process: psutil.Process

    def expect_alive(self, members: int) -> None:
        """Raises ``RuntimeError`` unless so many are alive, by its own account."""
        snapshot = status.ask(status.Target(parse_address(self.address), "started here"), "", DEADLINE_S)
        alive = sum(m.state is MemberState.ALIVE for job in snapshot.jobs for m in job.members)
        if alive != members:
            raise RuntimeError(f"{alive} of {members} members are alive: the load could not keep up")


@contextmanager
def lighthouse(*flags: str) -> Iterator[str]:
    """A running lighthouse's address."""
    with lighthouse_process(*flags) as running:
        yield running.address


@contextmanager
def lighthouse_process(*flags: str) -> Iterator[Lighthouse]:
    """A running lighthouse; stopped at the end."""
    with tempfile.TemporaryDirectory() as state_dir:
        command = [sys.executable, "-m", "procguard.lighthouse.cli", "--port", "0", "--state-dir", state_dir]
        process = subprocess.Popen(
            [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        address = ""
        for line in process.stdout:
            if found := re.search(r"PROCGUARD_LIGHTHOUSE=(\S+)", line):
                address = found[1]
                break
        threading.Thread(target=process.stdout.read, daemon=True).start()
        try:
            yield Lighthouse(address, psutil.Process(process.pid))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


class Hand:
    """A process that does a part of a benchmark: it is told a line, and says JSON objects, one a line."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """What it says next.

        Raises:
            RuntimeError: it ended instead; its own error stands on stderr.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of this benchmark ended with exit code {self._process.wait()}")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def order(self, **order: Any) -> dict[str, Any]:
        """Tell it as a JSON object; what it says when that is done."""
        self.say(json.dumps(order))
        return self.hear()

    def over(self) -> dict[str, Any]:
        """End its standard input; what it says next."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.hear()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()


class Hands:
    """Those that are hired, until the end of a ``with``, whatever happens."""

    def __init__(self) -> None:
        self._hired: list[Hand] = []

    def hire(self, module: str, *arguments: str) -> Hand:
        """Start one: ``python -m module arguments``."""
        hand = Hand(module, *arguments)
        self._hired.append(hand)
        return hand

    def __enter__(self) -> Hands:
        return self

    def __exit__(self, *exception: object) -> None:
        for hand in self._hired:
            hand.end()
