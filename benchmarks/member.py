"""One member of a benchmark's job: a real trainer with its real listener, blocked in a collective.

Its process group connects to nobody: an ``allreduce`` blocks until it is aborted. So what frees a survivor,
and what is measured, is ProcGuard's notice and not a connection that the kernel has reset.

Says on standard output, one JSON object a line: ``in_quorum`` with its size, ``told`` with the time of
``on_failure``. Hears on standard input: ``leave``, and ``regroup``: end the collective and ask for a quorum
again.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import click

from procguard.client import Manager
from procguard.client.process_group import ProcessGroup, Work
from procguard.errors import CollectiveAborted
from procguard.messages import Notice

MEBIBYTE = 1 << 20
TOUCH_BYTES = 4096


class EndlessWork:
    """A collective whose other members never come."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def wait(self, timeout: timedelta | None = None) -> bool:
        self._future.result(timeout.total_seconds() if timeout else None)
        return True

    def get_future(self) -> Future[Any]:
        return self._future


class EndlessGroup:
    """A process group in which every collective blocks until it is aborted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._quorum_id = 0
        self._aborted = 0
        self._pending: list[Future[Any]] = []

    def handle(self) -> str:
        return "nowhere:1"

    def advertise(self, host: str) -> None:
        pass

    def configure(self, handles: Sequence[str], rank: int, quorum_id: int, timeout: timedelta) -> None:
        self._quorum_id = quorum_id

    def allreduce(self, buffers: Sequence[Any], op: str = "sum") -> Work:
        future: Future[Any] = Future()
        with self._lock:
            self._pending.append(future)
            aborted = self._aborted >= self._quorum_id
        if aborted:
            self.abort(self._quorum_id)
        return EndlessWork(future)

    def abort(self, quorum_id: int) -> None:
        with self._lock:
            self._aborted = max(self._aborted, quorum_id)
        for future in self._take_pending():
            future.set_exception(CollectiveAborted(f"quorum {quorum_id} was aborted", quorum_id))

    def complete(self) -> None:
        """End what is in flight as if the others had come."""
        for future in self._take_pending():
            future.set_result([])

    def _take_pending(self) -> list[Future[Any]]:
        with self._lock:
            pending, self._pending = self._pending, []
        return pending

    def errored(self) -> Exception | None:
        return None

    def shutdown(self) -> None:
        self.abort(self._quorum_id)


class Voice:
    """Lines on standard output, whole ones from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def say(self, event: str, **facts: Any) -> None:
        line = json.dumps({"event": event, **facts})
        with self._lock:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


class Told:
    """What ``on_failure`` heard; the time is taken before anything else is done."""

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self.count = 0

    def __call__(self, notice: Notice) -> None:
        at = time.monotonic()
        self.count += 1
        self._voice.say("told", replica_id=notice.replica_id, at=at)


class Member:
    """Forms quorum after quorum; in each, waits for peers that never come."""

    def __init__(self, voice: Voice, spin: bool) -> None:
        self._voice = voice
        self._spin = spin
        self._regroup = False
        self._group = EndlessGroup()
        state: dict[str, Any] = {}
        pg: ProcessGroup = self._group
        self._manager = Manager(pg, state.update, lambda: state, min_replica_size=1, init_sync=False)
        self._told = Told(voice)
        self._manager.on_failure(self._told)

    def live(self) -> None:
        manager = self._manager
        self._voice.say("ready")
        while True:
            heard = self._told.count
            self._regroup = False
            manager.start_quorum()
            size = manager.num_participants()
            self._voice.say("in_quorum", size=size, listeners=manager.listening_pids())
            if self._spin:
                while self._told.count == heard and not self._regroup:
                    pass
            else:
                manager.allreduce([]).wait()
            manager.should_commit()

    def obey(self) -> None:
        """Do what is said on standard input."""
        for line in sys.stdin:
            if line.strip() == "regroup":
                self._regroup = True
                self._group.complete()
            elif line.strip() == "leave":
                self._voice.say("leaving", at=time.monotonic())
                self._manager.shutdown()


@click.command()
@click.option("--memory-mib", default=0, help="Private memory to touch.")
@click.option("--spin", is_flag=True, help="Spin in Python instead of blocking in a collective.")
def main(memory_mib: int, spin: bool) -> None:
    """Be a member until killed."""
    ballast = bytearray(memory_mib * MEBIBYTE)
    for offset in range(0, len(ballast), TOUCH_BYTES):
        ballast[offset] = 1
    member = Member(Voice(), spin)
    threading.Thread(target=member.obey, daemon=True).start()
    member.live()


if __name__ == "__main__":
    main()
