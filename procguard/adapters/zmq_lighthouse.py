"""``adapter_type: lighthouse``: the guard's workers are trainers, members of a lighthouse that stands.

They beat to the lighthouse, not to the guard. The guard looks at it as ``procguard status`` does, and hears
its notices as a listener does, without being a member:

- a beat that the lighthouse has had of a worker is a beat;
- a failure that only the lighthouse can know (silence, a stopped or wedged trainer, an operator's word)
  reaches the failure callback. A process that has ended does not: the guard is its parent, and knew before;
- ``wait_ready`` waits until the workers are back in a quorum together.

A lighthouse that does not answer says nothing about anybody, and nor does one that has only just started
about members that have not come back to it yet. Not knowing is no silence: meanwhile the adapter beats for
each worker that was well when it last knew.

A lighthouse carries no commands, so ``send_command`` is False. Notices may be lost, which is why the Snapshot
is asked for again and again: it holds the last of them.

The member that a worker is has the worker's id, unless ``replica_ids`` says otherwise.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

from procguard import kernel
from procguard.adapters.base import MemberTransport
from procguard.adapters.communication import (
    CommandAnswer,
    CommunicationAdapter,
    FailureCallback,
    HeartbeatCallback,
    WorkerFailure,
)
from procguard.adapters.zmq import ZmqMemberTransport
from procguard.adapters.zmq_key_files import find_person, read_member
from procguard.codec import decode, encode
from procguard.errors import ProtocolError, UsageError
from procguard.messages import (
    DEFAULT_PORT,
    CauseKind,
    Incarnation,
    JobView,
    MemberState,
    MemberView,
    Notice,
    NoticeBatch,
    Process,
    QuorumId,
    Snapshot,
    SnapshotRequest,
    notice_topic,
)

DEFAULT_JOB = "default"
LOOK_INTERVAL_S = 1.0
EAGER_INTERVAL_S = 0.05
"""Between two looks while somebody waits for a quorum."""
FRAMES_COUNT_MAX = 1_000
WAKES_MAX = 4096
CLOSE_TIMEOUT_S = 5.0
SILENCE_S = 3.0
"""Without an answer for so long: connect afresh."""
RETURN_TIMEOUTS = 2.0
"""So many of its heartbeat timeouts a lighthouse that has started waits for members to come back."""

UNKNOWN = Process("", "", 0, 0)
SEEN_BY_THE_PARENT = frozenset(
    {CauseKind.LEFT, CauseKind.PROCESS_EXIT, CauseKind.PROCESS_REPLACED, CauseKind.SUPERSEDED}
)
"""Ends of a process, of which the kernel tells the guard."""

_log = logging.getLogger(__name__)


class LighthouseAdapter(CommunicationAdapter):
    """Looks at one job of one lighthouse.

    Args:
        host: of the lighthouse.
        port_base: its port; notices come on the next one.
        timeout: milliseconds; how long ``initialize`` waits for a first answer before it says that there is
            none so far. Later it goes on looking for one.
        job_id: the workers' job.
        keys: a key file, or a directory of them, where the lighthouse asks for one.
        replica_ids: by worker_id, where they differ.
        is_living: whether a process of this machine still lives; a member whose process does not is not
            ready, whatever the lighthouse thinks so far.
        connect: opens the connection.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port_base: int = DEFAULT_PORT,
        timeout: int = 5000,
        job_id: str = DEFAULT_JOB,
        keys: str | None = None,
        *,
        replica_ids: Mapping[str, str] | None = None,
        is_living: Callable[[Process], bool] | None = None,
        connect: Callable[[], MemberTransport] | None = None,
    ) -> None:
        self._host, self._port, self._job_id, self._keys = host, port_base, job_id, keys
        self._timeout_s = timeout / 1000
        self._replica_ids = dict(replica_ids or {})
        self._is_living = is_living or living_here
        self._connect = connect or self._connected
        self._changed = threading.Condition()
        self._registered: dict[str, set[str]] = {}
        """The worker_ids of each replica_id: several where the ranks of a group are workers each."""
        self._job: JobView | None = None
        self._looks = 0
        self._waiters = 0
        self._joined: dict[str, tuple[Incarnation, QuorumId]] = {}
        """By replica_id: a life that is known to be part of this quorum."""
        self._beat_at: dict[str, float] = {}
        self._over: dict[str, Incarnation] = {}
        """By replica_id: its last life that is known to have ended."""
        self._well: dict[str, tuple[Process, ...]] = {}
        """By replica_id: the processes of members that were not over when we last knew."""
        self._blind = False
        """The transport is broken: nothing more will be known."""
        self._settled = False
        self._heartbeat: HeartbeatCallback | None = None
        self._failed: FailureCallback | None = None
        self._closing = False
        self._thread: threading.Thread | None = None
        self._waker: socket.socket | None = None

    # --- the guard's calls --------------------------------------------------------------------------

    def initialize(self) -> None:
        with self._changed:
            if self._thread is not None:
                return
            transport = self._connect()
            self._closing = self._blind = False
            self._waker, woken = socket.socketpair()
            self._thread = threading.Thread(
                target=self._run, args=(transport, woken), name="procguard-lighthouse-watch", daemon=True
            )
            self._thread.start()
            if not self._changed.wait_for(lambda: self._looks > 0, self._timeout_s):
                _log.warning("No lighthouse answers at %s:%d so far; looking on", self._host, self._port)

    def close(self) -> None:
        with self._changed:
            thread, self._closing = self._thread, True
            self._changed.notify_all()
            self._wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_TIMEOUT_S)
            self._thread = None

    def register_worker(self, worker_id: str) -> None:
        with self._changed:
            replica_id = self.replica_id(worker_id)
            self._registered.setdefault(replica_id, set()).add(worker_id)
            self._well.pop(replica_id, None)  # that was its former life

    def unregister_worker(self, worker_id: str) -> None:
        with self._changed:
            self._registered.get(self.replica_id(worker_id), set()).discard(worker_id)

    def replica_id(self, worker_id: str) -> str:
        """The member that this worker is."""
        return self._replica_ids.get(worker_id, worker_id)

    def request(
        self,
        worker_id: str,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> CommandAnswer:
        return CommandAnswer(False, error="a lighthouse carries no commands; adapter_type zmq does")

    def send_heartbeat(self, worker_id: str) -> bool:
        with self._changed:
            known = worker_id in self._workers_of(self.replica_id(worker_id))
            if self._closing or self._thread is None or not known:
                return False
        self._tell_beats([worker_id])
        return True

    def set_heartbeat_callback(self, callback: HeartbeatCallback | None) -> None:
        self._heartbeat = callback

    def set_failure_callback(self, callback: FailureCallback | None) -> None:
        self._failed = callback

    def connected_workers(self) -> list[str]:
        with self._changed:
            members = {} if self._closing or self._blind else self._members()
            alive = [name for name, member in members.items() if member.state is MemberState.ALIVE]
            return sorted(worker_id for name in alive for worker_id in self._workers_of(name))

    def environment(self, worker_id: str) -> dict[str, str]:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return {
            "PROCGUARD_LIGHTHOUSE": f"{host}:{self._port}",
            "PROCGUARD_JOB_ID": self._job_id,  # the default one too: else it inherits the guard's own
            "REPLICA_ID": self.replica_id(worker_id),
        }

    def wait_ready(self, worker_ids: Sequence[str], timeout_s: float) -> bool:
        """Wait until all these workers are alive in one quorum, formed since each of them joined.

        Args:
            timeout_s: seconds; when they are over, the answer is False.
        """
        wanted = [self.replica_id(worker_id) for worker_id in worker_ids]
        if not wanted:
            return True
        until = time.monotonic() + timeout_s
        with self._changed:
            self._waiters += 1
            seen = self._looks
            self._wake()
            try:
                while True:  # only what was seen after the call counts
                    left_s = until - time.monotonic()
                    if self._closing or left_s <= 0:
                        return False
                    if self._looks > seen and self._are_ready(wanted):
                        return True
                    self._changed.wait(left_s)
            finally:
                self._waiters -= 1

    def _are_ready(self, replica_ids: Iterable[str]) -> bool:
        job, members = self._job, self._members()
        if job is None or job.quorum is None:
            return False
        for replica_id in replica_ids:
            member = members.get(replica_id)
            if member is None or member.state is not MemberState.ALIVE:
                return False
            if self._joined.get(replica_id) != (member.incarnation, job.quorum.quorum_id):
                return False
            if not all(self._is_living(rank.process) for rank in member.ranks):
                return False
        return True

    def _workers_of(self, replica_id: str) -> list[str]:
        return sorted(self._registered.get(replica_id, ()))

    def _members(self) -> dict[str, MemberView]:
        return {member.replica_id: member for member in self._job.members} if self._job else {}

    # --- the thread ---------------------------------------------------------------------------------

    def _connected(self) -> MemberTransport:
        try:
            keys = read_member(find_person(Path(self._keys))) if self._keys else None
            return ZmqMemberTransport(self._host, self._port, keys)
        except UsageError as error:
            raise UsageError(f"communication.adapter_config: {error}") from None

    def _run(self, transport: MemberTransport, woken: socket.socket) -> None:
        try:
            self._look_on(transport, woken)
        except Exception:  # noqa: BLE001  # a broken transport: the guard goes on without it, and says so
            _log.exception("The lighthouse is not looked at any more; silence of workers is not noticed")
            self._stay_blind()
        finally:
            with self._changed:
                self._closing = True
                waker, self._waker = self._waker, None
                self._changed.notify_all()
            if waker is not None:
                waker.close()
            woken.close()
            transport.close()

    def _look_on(self, transport: MemberTransport, woken: socket.socket) -> None:
        transport.listen(self._port + 1, [notice_topic(self._job_id)])
        ask_at, asked_at, heard_at = -inf, inf, time.monotonic()
        while not self._closing:
            now = time.monotonic()
            if now >= ask_at:
                if now - asked_at >= LOOK_INTERVAL_S / 2:  # what had come was taken: there is no answer
                    self._tell_beats(self._beats_in_doubt())
                transport.send(encode(SnapshotRequest(self._job_id)))
                asked_at = min(asked_at, now)
                ask_at = now + (EAGER_INTERVAL_S if self._waiters else LOOK_INTERVAL_S)
            if transport.wait(max(0.0, ask_at - now), (woken.fileno(),)):
                woken.recv(WAKES_MAX)
                ask_at = -inf
            looks, frames = self._looks, transport.receive(FRAMES_COUNT_MAX)
            for frame in frames:
                self._take_answer(frame, time.monotonic())
            if self._looks > looks:
                asked_at = inf
            for frame in transport.notices(FRAMES_COUNT_MAX):
                self._take_notice(frame)
            now = time.monotonic()
            heard_at = now if frames else heard_at
            if now - heard_at >= SILENCE_S:
                heard_at = now
                transport.reconnect()

    def _stay_blind(self) -> None:
        """Until it closes."""
        with self._changed:
            self._blind = True
            self._changed.notify_all()
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._closing, LOOK_INTERVAL_S):
                    return
            self._tell_beats(self._beats_in_doubt())

    def _wake(self) -> None:
        """With the lock held."""
        if self._waker is not None and not self._blind:  # else nobody reads it
            self._waker.send(b"x")

    def _take_answer(self, frame: bytes, now: float) -> None:
        try:
            snapshot = decode(frame)
        except ProtocolError as error:
            _log.warning("An answer of the lighthouse was dropped: %s", error)
            return
        if not isinstance(snapshot, Snapshot):
            return
        job = next((job for job in snapshot.jobs if job.job_id == self._job_id), None)
        with self._changed:
            self._job = job
            self._looks += 1
            self._note_joined(job)
            self._note_well(snapshot)
            beats = self._new_beats(now)
            self._changed.notify_all()
        self._tell_beats([*beats, *self._beats_in_doubt(absent=True)])
        notices = [view.notice for view in job.notices] if job else []
        self._hear(notices, tell=self._settled)  # what was over before we first looked is old news
        self._settled = True

    def _note_joined(self, job: JobView | None) -> None:
        """Who belongs to the present quorum: it was formed when this life of theirs had begun already."""
        if job is None or job.quorum is None:
            return
        for member in job.members:
            if member.replica_id in job.quorum.replica_ids and member.in_state_s >= job.quorum.age_s:
                self._joined[member.replica_id] = member.incarnation, job.quorum.quorum_id

    def _note_well(self, snapshot: Snapshot) -> None:
        """Who is not over, and who may still come back to a lighthouse that has just started."""
        members = self._members()
        waits = snapshot.uptime_s < RETURN_TIMEOUTS * snapshot.settings.heartbeat_timeout_s
        self._well = {name: at for name, at in self._well.items() if waits and name not in members}
        for name, member in members.items():
            if member.state in (MemberState.ALIVE, MemberState.SUSPECT):
                self._well[name] = tuple(rank.process for rank in member.ranks)

    def _beats_in_doubt(self, *, absent: bool = False) -> list[str]:
        """Workers that were well when we last knew.

        Args:
            absent: only those that the last answer did not name.
        """
        with self._changed:
            named = self._members() if absent else {}
            return [
                worker_id
                for name, processes in self._well.items()
                if name not in named and all(self._is_living(process) for process in processes)
                for worker_id in self._workers_of(name)
            ]

    def _new_beats(self, now: float) -> list[str]:
        """Workers whose members have beaten since the last look."""
        beats = []
        for replica_id, member in self._members().items():
            worker_ids = self._workers_of(replica_id)
            if not worker_ids or member.state is not MemberState.ALIVE or not member.ranks:
                continue
            at = now - max(rank.beat_age_s for rank in member.ranks)  # of the rank that is silent the longest
            if at > self._beat_at.get(replica_id, -inf) + 1e-3:  # ages are rounded on their way
                self._beat_at[replica_id] = at
                beats += worker_ids
        return beats

    def _take_notice(self, frame: bytes) -> None:
        try:
            batch = decode(frame[frame.find(b"\0") + 1 :])
        except ProtocolError:
            return  # another version's; the Snapshot will say so
        if isinstance(batch, NoticeBatch):
            self._hear(batch.notices, tell=True)

    def _hear(self, notices: Collection[Notice], *, tell: bool) -> None:
        """Each end once, whichever way it came."""
        failures = []
        for notice in notices:
            known = self._over.get(notice.replica_id)
            if known is not None and notice.incarnation <= known:
                continue
            self._over[notice.replica_id] = notice.incarnation
            if tell and notice.cause.kind not in SEEN_BY_THE_PARENT:
                worker_ids = self._workers_of(notice.replica_id)
                process = self._process_of(notice) if len(worker_ids) == 1 else UNKNOWN
                failures += [
                    WorkerFailure(worker_id, str(notice.cause), process.pid, process.host)
                    for worker_id in worker_ids
                ]
        callback = self._failed
        if failures and callback is not None:
            try:
                callback(failures)
            except Exception:  # noqa: BLE001  # the guard's own; the log has it with its traceback
                _log.exception("The failure callback failed for %s", [at.worker_id for at in failures])

    def _process_of(self, notice: Notice) -> Process:
        """Which process that was, as far as the last look tells."""
        member = self._members().get(notice.replica_id)
        if member is None or member.incarnation != notice.incarnation or not member.ranks:
            return UNKNOWN
        return member.ranks[0].process

    def _tell_beats(self, worker_ids: Iterable[str]) -> None:
        callback = self._heartbeat
        if callback is None:
            return
        for worker_id in worker_ids:
            try:
                callback(worker_id)
            except Exception:  # noqa: BLE001  # the guard's own; the log has it with its traceback
                _log.exception("The heartbeat callback failed for worker %s", worker_id)


def living_here(process: Process) -> bool:
    """Whether a process lives, where that can be told: of this machine and boot. Others are taken to."""
    boot = kernel.boot_id()
    if not boot or not process.start_time or (process.host, process.boot_id) != (socket.gethostname(), boot):
        return True
    try:
        stat = kernel.read_stat(process.pid)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    return stat.letter not in "ZX" and stat.start_ticks == process.start_time
