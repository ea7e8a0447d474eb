"""Collectives and transfers between trainers, as they look from a train loop.

A collective waits until all have come, hangs when one never does (as NCCL does: only an abort or the timeout
ends it), and may be complete at one replica when another one loses it. What a peer's death does to it is
therefore the lighthouse's and the fence's affair, which is what is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import timedelta
from random import Random
from typing import Any

from procguard.errors import CheckpointError, CollectiveAborted, CollectiveError, CollectiveTimeout
from procguard.sim.clock import VirtualClock
from procguard.sim.tasks import Computer, Task

COMPLETION_S = 0.002
TRANSFER_S = 0.08
LOST_AT_DEATH = 0.5
"""How likely one replica loses what another has got, when a peer dies as it completes."""


class Gradient:
    """One number, which can be reduced. Never zero, but where a replica contributes nothing."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __setitem__(self, key: object, value: int) -> None:
        self.value = value


class _Operation:
    """One allreduce of one quorum."""

    def __init__(self) -> None:
        self.parts: dict[int, tuple[Gradient, SimWork]] = {}


class _Room:
    """Where the members of one quorum meet."""

    def __init__(self, handles: tuple[str, ...]) -> None:
        self.handles = handles
        self.there: dict[int, SimGroup] = {}
        self.operations: dict[int, _Operation] = {}

    @property
    def is_complete(self) -> bool:
        return len(self.there) == len(self.handles)


class Fabric:
    """All that connects trainers with each other."""

    def __init__(self, clock: VirtualClock, random: Random) -> None:
        self.clock = clock
        self.random = random
        self.rooms: dict[int, _Room] = {}
        self.served: dict[str, tuple[int, Any, SimCheckpoints]] = {}

    def room(self, quorum_id: int, handles: Sequence[str]) -> _Room:
        room = self.rooms.setdefault(quorum_id, _Room(tuple(handles)))
        assert room.handles == tuple(handles), "one quorum id, one membership"
        return room


class SimWork:
    """A collective in flight."""

    def __init__(self, group: SimGroup, quorum_id: int) -> None:
        self.quorum_id = quorum_id
        self.future: Future[Any] = Future()
        self._group = group

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def wait(self, timeout: timedelta | None = None) -> bool:
        limit_s = self._group.timeout_s if timeout is None else timeout.total_seconds()
        task = Task.current
        assert task is not None
        self.future.add_done_callback(lambda _: task.wake())
        if not task.wait_until(self.future.done, self._group.fabric.clock.now + limit_s):
            raise CollectiveTimeout("the peers did not come", self.quorum_id)
        self.future.result()
        return True

    def get_future(self) -> Future[Any]:
        return self.future


class SimGroup:
    """One trainer's process group.

    Attributes:
        aborting: told of each abort that the fence orders, before it is carried out.
        configuring: told of each quorum that is about to be used.
    """

    def __init__(self, fabric: Fabric, computer: Computer, handle: str, timeout_s: float) -> None:
        self.fabric = fabric
        self.computer = computer
        self.timeout_s = timeout_s
        self.present = 0
        self.rank = 0
        self.aborted: set[int] = set()
        self.aborting: Callable[[int], None] = lambda quorum_id: None
        self.configuring: Callable[[int], None] = lambda quorum_id: None
        self._handle = handle
        self._operations = 0
        self._works: list[SimWork] = []
        self._waiting: Task | None = None

    def handle(self) -> str:
        return self._handle

    def advertise(self, host: str) -> None:
        """The fabric needs no host."""

    def configure(self, handles: Sequence[str], rank: int, quorum_id: int, timeout: timedelta) -> None:
        self.configuring(quorum_id)
        fabric, task = self.fabric, Task.current
        assert task is not None
        room = fabric.room(quorum_id, handles)
        assert handles[rank] == self._handle
        self.present, self.rank, self._operations = quorum_id, rank, 0
        self._works = [work for work in self._works if not work.future.done()]
        room.there[rank] = self
        for peer in room.there.values():
            peer.stir()
        self._waiting = task
        until = fabric.clock.now + timeout.total_seconds()
        task.wait_until(lambda: room.is_complete or quorum_id in self.aborted, until)
        self._waiting = None
        if quorum_id in self.aborted:
            raise CollectiveAborted(f"quorum {quorum_id} was aborted", quorum_id)
        if not room.is_complete:
            raise CollectiveError("a peer cannot be reached", quorum_id)

    def stir(self) -> None:
        """Look again whether all have come."""
        if self._waiting is not None:
            self._waiting.wake()

    def allreduce(self, buffers: Sequence[Any], op: str = "sum") -> SimWork:
        work = SimWork(self, self.present)
        if self.present in self.aborted:
            work.fail(CollectiveAborted(f"quorum {self.present} was aborted", self.present))
            return work
        self._works.append(work)
        room = self.fabric.rooms[self.present]
        operation = room.operations.setdefault(self._operations, _Operation())
        self._operations += 1
        (buffer,) = buffers
        operation.parts[self.rank] = buffer, work
        if len(operation.parts) == len(room.handles):
            self._complete(room, operation)
        return work

    def _complete(self, room: _Room, operation: _Operation) -> None:
        total = sum(buffer.value for buffer, _ in operation.parts.values())
        room.operations = {nth: each for nth, each in room.operations.items() if each is not operation}
        for rank, (buffer, work) in operation.parts.items():
            delay_s = COMPLETION_S * self.fabric.random.random()
            self.fabric.clock.after(delay_s, room.there[rank].receive, room, buffer, work, total)

    def receive(self, room: _Room, buffer: Gradient, work: SimWork, total: int) -> None:
        """The result arrives here, or is lost with a peer that has died meanwhile."""
        bereft = any(peer.computer.dead for peer in room.there.values())
        if work.future.done() or (bereft and self.fabric.random.random() < LOST_AT_DEATH):
            return
        buffer.value = total
        work.future.set_result([buffer])

    def abort(self, quorum_id: int) -> None:
        self.aborting(quorum_id)
        self.aborted.add(quorum_id)
        room = self.fabric.rooms.get(quorum_id)
        for operation in room.operations.values() if room else ():
            operation.parts.pop(self.rank, None)  # it does not pass on what it had begun with
        for work in tuple(self._works):
            if work.quorum_id == quorum_id:
                work.fail(CollectiveAborted(f"quorum {quorum_id} was aborted", quorum_id))
        self.stir()

    def errored(self) -> Exception | None:
        return None

    def shutdown(self) -> None:
        """Its process is about to end."""


class SimCheckpoints:
    """One trainer's checkpoint transport."""

    def __init__(self, fabric: Fabric, computer: Computer, name: str) -> None:
        self.computer = computer
        self._fabric = fabric
        self._name = name
        self._rounds = 0
        self._is_aborted = False
        self._readers: list[SimCheckpoints] = []
        self._waiting: Task | None = None

    def metadata(self) -> str:
        self._withdraw()
        self._rounds += 1
        self._is_aborted = False
        return self._where()

    def advertise(self, host: str) -> None:
        """The fabric needs no host."""

    def send_checkpoint(self, dst_ranks: list[int], step: int, state_dict: Any, timeout: timedelta) -> None:
        if self._is_aborted:
            raise CheckpointError(f"aborted: sending step {step}")
        self._fabric.served[self._where()] = step, state_dict, self

    def disallow_checkpoint(self) -> None:
        """Returns once nobody reads."""
        task = Task.current
        assert task is not None
        self._waiting = task
        task.wait_until(lambda: not self._readers, self._fabric.clock.now + TRANSFER_S)
        self._waiting = None
        self._withdraw()

    def recv_checkpoint(self, src_rank: int, metadata: str, step: int, timeout: timedelta) -> Any:
        task, clock = Task.current, self._fabric.clock
        assert task is not None
        until = clock.now + timeout.total_seconds()
        while metadata not in self._fabric.served and not self._is_aborted and clock.now < until:
            task.sleep(COMPLETION_S * (1 + 4 * self._fabric.random.random()))
        if self._is_aborted or metadata not in self._fabric.served:
            raise CheckpointError(f"no state at {metadata}")
        served_step, state, source = self._fabric.served[metadata]
        if served_step != step:
            raise CheckpointError(f"{metadata} serves step {served_step}, not {step}")
        source.begin_reading(self)
        try:
            task.sleep(TRANSFER_S * self._fabric.random.random())
        finally:
            source.end_reading(self)
        if (
            self._is_aborted
            or source.computer.dead
            or self._fabric.served.get(metadata, (0, 0, 0))[1] is not state
        ):
            raise CheckpointError(f"the transfer from {metadata} broke off")
        return state

    def begin_reading(self, reader: SimCheckpoints) -> None:
        self._readers.append(reader)

    def end_reading(self, reader: SimCheckpoints) -> None:
        self._readers.remove(reader)
        if self._waiting is not None:
            self._waiting.wake()

    def abort(self) -> None:
        self._is_aborted = True
        self._withdraw()

    def shutdown(self, wait: bool = True) -> None:
        self.abort()

    def _where(self) -> str:
        return f"{self._name} {self._rounds}"

    def _withdraw(self) -> None:
        self._fabric.served.pop(self._where(), None)
