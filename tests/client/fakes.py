"""Stand-ins for what a trainer's parts talk to, and messages made with only what a test cares about.

Each fake keeps the promises of the interface it stands in for, and records what was asked of it. None of them
waits: what a test wants to happen, it says.
"""

from __future__ import annotations

import select
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

from procguard.adapters.base import MemberTransport, RankServer
from procguard.client.link_words import Enrol
from procguard.errors import CheckpointError, CollectiveAborted, CollectiveTimeout, UsageError
from procguard.messages import (
    Cause,
    CauseKind,
    Claim,
    Hello,
    Incarnation,
    Notice,
    Participant,
    Phase,
    Process,
    Quorum,
    QuorumId,
    Rank,
    Settings,
    Welcome,
)

DEADLINE_S = 30.0
"""For what another thread does at once."""
EPOCH = 1_000
JOB = "train"
TOKEN = b"token of trainer"
SETTINGS = Settings(
    heartbeat_interval_s=0.1,
    heartbeat_timeout_s=1.0,
    thread_heartbeat_timeout_s=5.0,
    disconnect_grace_s=0.3,
    join_timeout_s=60.0,
)
KILLED = Cause(CauseKind.PROCESS_EXIT, signal=9)
LEFT = Cause(CauseKind.LEFT)
STOPPED = Cause(CauseKind.STOPPED)


def life(number: int, epoch: int = EPOCH) -> Incarnation:
    return Incarnation(epoch, number)


def hello(replica_id: str = "a", **fields: Any) -> Hello:
    process = Process("host", "boot", 100, 5_000)
    plain = Hello(JOB, replica_id, TOKEN, process, 0, 1, "", None, b"", "", 0, 1, 0.0)
    return plain._replace(**fields)


def welcome(number: int = 1, epoch: int = EPOCH, seq: int = 0) -> Welcome:
    return Welcome(epoch, life(number), 29511, seq, SETTINGS)


def enrol(number: int = 1, epoch: int = EPOCH, seq: int = 0, replica_id: str = "a") -> Enrol:
    claim = Claim(life(number), None)
    return Enrol(hello(replica_id, claim=claim, epoch=epoch), 29511, seq, SETTINGS, "")


def no_server(host: str) -> RankServer:
    raise AssertionError("a group of one rank is served by nobody")


def no_rank(host: str, port: int) -> MemberTransport:
    raise AssertionError("a group of one rank asks nobody")


def participant(replica_id: str, number: int = 1, **fields: Any) -> Participant:
    rank = Rank(f"handle of {replica_id}", f"checkpoint of {replica_id}")
    plain = Participant(replica_id, life(number), 1, 0, 0, 1, "host", False, 0, b"", (rank,))
    return plain._replace(**fields)


def quorum(number: int, *members: Participant, epoch: int = EPOCH) -> Quorum:
    return Quorum(QuorumId(epoch, number), JOB, tuple(sorted(members)))


def notice(replica_id: str, number: int = 1, cause: Cause = KILLED, step: int = 0) -> Notice:
    return Notice(replica_id, life(number), cause, step)


class Clock:
    """Virtual monotonic seconds."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class FakeWork:
    """A collective that ends when the test says so."""

    def __init__(self, group: FakeGroup, quorum_id: int, buffers: Sequence[Any], op: str) -> None:
        self.buffers = buffers
        self.op = op
        self.quorum_id = quorum_id
        self._group = group
        self.future: Future[Any] = Future()
        self.future.set_running_or_notify_cancel()
        self._unsettled = threading.Semaphore(1)

    def succeed(self, add: float) -> None:
        if self._unsettled.acquire(blocking=False):
            for buffer in self.buffers:
                buffer += add  # noqa: PLW2901  # in place
            self.future.set_result(self.buffers)

    def fail(self, error: Exception) -> None:
        if self._unsettled.acquire(blocking=False):
            self.future.set_exception(error)

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Who waits for what the test has not ended, waits in vain: there is no other thread to end it."""
        limit_s = DEADLINE_S if timeout is None else timeout.total_seconds()
        if not self._group.others_are_at_work and not self.future.done():
            limit_s = 0.0
        try:
            self.future.result(limit_s)
        except TimeoutError:
            if not self.future.done():
                raise CollectiveTimeout("the peers did not come", self.quorum_id) from None
        self.future.result()
        return True

    def get_future(self) -> Future[Any]:
        return self.future


class FakeGroup:
    """A process group: an abort is sticky, and touches its own quorum only.

    Attributes:
        refusals: what the next calls of ``configure`` raise.
        at_configure: called by ``configure`` with its quorum id, before it looks at aborts.
        sums: what a collective adds to a buffer, times the number of peers.
    """

    def __init__(self) -> None:
        self.configured: list[tuple[tuple[str, ...], int, int]] = []
        self.refusals: deque[Exception] = deque()
        self.at_configure: Callable[[int], None] = lambda quorum_id: None
        self.aborted: list[int] = []
        self.works: list[FakeWork] = []
        self.is_shut_down = False
        self.others_are_at_work = False
        self.host = ""

    @property
    def present(self) -> int:
        return self.configured[-1][2] if self.configured else 0

    def handle(self) -> str:
        return f"{self.host}:1"

    def advertise(self, host: str) -> None:
        self.host = host

    def configure(self, handles: Sequence[str], rank: int, quorum_id: int, timeout: timedelta) -> None:
        if self.is_shut_down:
            raise UsageError("this process group was shut down")
        assert quorum_id > self.present, "each quorum is configured once, and ids grow"
        self.at_configure(quorum_id)
        if quorum_id in self.aborted:
            raise CollectiveAborted(f"quorum {quorum_id} was aborted", quorum_id)
        if self.refusals:
            raise self.refusals.popleft()
        self.configured.append((tuple(handles), rank, quorum_id))

    def allreduce(self, buffers: Sequence[Any], op: str = "sum") -> FakeWork:
        work = FakeWork(self, self.present, buffers, op)
        self.works.append(work)
        if self.present in self.aborted:
            work.fail(CollectiveAborted(f"quorum {self.present} was aborted", self.present))
        return work

    def complete(self, add: float = 0.0) -> None:
        """The peers come: what is in flight is done, with ``add`` from them."""
        for work in tuple(self.works):
            work.succeed(add)

    def abort(self, quorum_id: int) -> None:
        self.aborted.append(quorum_id)
        for work in tuple(self.works):
            if work.quorum_id == quorum_id:
                work.fail(CollectiveAborted(f"quorum {quorum_id} was aborted", quorum_id))

    def errored(self) -> Exception | None:
        return None

    def shutdown(self) -> None:
        self.is_shut_down = True
        self.abort(self.present)


class FakeCheckpoints:
    """A checkpoint transport: ``states`` is what can be fetched, by the source's metadata.

    Attributes:
        sent: the state dict, the ranks and the step of each ``send_checkpoint``.
        silences: for how long the other side might have been silent, of each transfer.
        at_fetch: called by ``recv_checkpoint`` before it looks whether it was aborted.
    """

    def __init__(self) -> None:
        self.states: dict[str, Any] = {}
        self.sent: list[tuple[Any, list[int], int]] = []
        self.silences: list[timedelta] = []
        self.at_fetch: Callable[[], None] = lambda: None
        self.at_send: Callable[[], None] = lambda: None
        self.is_serving = False
        self.is_aborted = False
        self.is_shut_down = False
        self._rounds = 0

    def metadata(self) -> str:
        self._rounds += 1
        self.is_aborted = False
        return f"checkpoint {self._rounds}"

    def advertise(self, host: str) -> None:
        pass

    def send_checkpoint(self, dst_ranks: list[int], step: int, state_dict: Any, timeout: timedelta) -> None:
        self.silences.append(timeout)
        self.at_send()
        if self.is_aborted:
            raise CheckpointError("aborted: sending")
        self.sent.append((state_dict, dst_ranks, step))
        self.is_serving = True

    def disallow_checkpoint(self) -> None:
        self.is_serving = False

    def recv_checkpoint(self, src_rank: int, metadata: str, step: int, timeout: timedelta) -> Any:
        self.silences.append(timeout)
        self.at_fetch()
        if self.is_aborted:
            raise CheckpointError("aborted: fetching")
        if metadata not in self.states:
            raise CheckpointError("the source does not answer")
        return self.states[metadata]

    def abort(self) -> None:
        self.is_aborted = True

    def shutdown(self, wait: bool = True) -> None:
        self.is_shut_down = True


class FakeMembership:
    """Gives the quorums that the test has prepared, each to one request; then waits for the next.

    An answer is a quorum, an error to raise, or something to call with what was asked.
    """

    def __init__(self, replica_id: str = "a", group_rank: int = 0, group_world_size: int = 1) -> None:
        self.replica_id = replica_id
        self.group_rank, self.group_world_size = group_rank, group_world_size
        self.votes: list[tuple[int, bool]] = []
        self.outvoted = False
        """Another rank of the group says no."""
        self.group_error: Exception | None = None
        self.incarnation = life(1)
        self.listening_pids: list[int] = []
        self.asked: list[Participant] = []
        self.timeouts_s: list[float] = []
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.board: dict[str, Any] = {}
        self.phases: list[Phase] = []
        self.left_at: int | None = None
        self.last_words: list[BaseException] = []
        self.is_disowned = False
        self._answers: deque[Any] = deque()
        self._changed = threading.Condition()

    def answer(self, *answers: Any) -> None:
        with self._changed:
            self._answers.extend(answers)
            self._changed.notify_all()

    def quorum(self, asks: Participant, timeout_s: float) -> Quorum:
        with self._changed:
            self.asked.append(asks)
            self.timeouts_s.append(timeout_s)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._answers or self.left_at is not None, DEADLINE_S)
            if self.left_at is not None:
                raise UsageError("this Manager is shut down")
            answer = self._answers.popleft()
        if callable(answer):
            answer = answer(asks)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def vote(self, round: int, commits: bool, timeout_s: float) -> bool:
        if self.group_error is not None:
            raise self.group_error
        self.votes.append((round, commits))
        return commits and not self.outvoted

    def check_group(self) -> None:
        if self.group_error is not None:
            raise self.group_error

    def wait_until_asked(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.asked) >= count, DEADLINE_S)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        self.later.append((delay_s, call))

    def show(self, **fields: Any) -> None:
        with self._changed:
            self.board.update(fields)
            self.phases.append(fields["phase"])
            self._changed.notify_all()

    def wait_until_shown(self, phase: Phase) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.board["phase"] is phase, DEADLINE_S)

    def say_last_words(self, error: BaseException) -> None:
        self.last_words.append(error)

    def leave(self, step: int) -> None:
        with self._changed:
            self.left_at = step
            self._changed.notify_all()

    def disown(self) -> None:
        self.is_disowned = True


class FakeWire:
    """A member's transport whose lighthouse is a function of the test, in virtual time.

    Attributes:
        answers: called with each message sent; the messages it returns arrive.
        is_patient: wait for ``fds`` in real time, as for another thread; virtual time stands still.
    """

    def __init__(self, clock: Clock, decode: Callable[[bytes], Any], encode: Callable[[Any], bytes]) -> None:
        self._clock = clock
        self._decode = decode
        self._encode = encode
        self.sent: list[Any] = []
        self.incoming: deque[bytes] = deque()
        self.published: deque[bytes] = deque()
        self.listening: tuple[int, tuple[bytes, ...]] | None = None
        self.answers: Callable[[Any], Iterable[Any]] = lambda message: ()
        self.is_patient = False
        self.is_waiting = threading.Event()
        self.ready: list[int] = []
        self.reconnects = 0
        self.explanation = ""
        self.closed = threading.Event()

    def send(self, frame: bytes) -> bool:
        message = self._decode(frame)
        self.sent.append(message)
        self.deliver(*self.answers(message))
        return True

    def send_aside(self, frame: bytes) -> bool:
        return self.send(frame)

    def deliver(self, *messages: Any) -> None:
        self.incoming.extend(self._encode(message) for message in messages)

    def listen(self, notice_port: int, topics: Iterable[bytes]) -> None:
        self.listening = notice_port, tuple(topics)

    def reconnect(self) -> None:
        self.reconnects += 1
        self.incoming.clear()

    def explain(self) -> str:
        return self.explanation

    def wait(self, timeout_s: float, fds: Iterable[int] = ()) -> list[int]:
        assert not self.closed.is_set()
        if self.is_patient:
            self.is_waiting.set()
            return select.select(list(fds), [], [], DEADLINE_S)[0]
        ready, self.ready = self.ready, []
        if not self.incoming and not self.published and not ready:
            self._clock.advance(timeout_s)
        return [fd for fd in fds if fd in ready]

    def receive(self, count_max: int) -> list[bytes]:
        return [self.incoming.popleft() for _ in range(min(count_max, len(self.incoming)))]

    def notices(self, count_max: int) -> list[bytes]:
        return [self.published.popleft() for _ in range(min(count_max, len(self.published)))]

    def close(self) -> None:
        self.closed.set()

    @property
    def is_closed(self) -> bool:
        return self.closed.is_set()
