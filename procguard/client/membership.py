"""Being a member: the trainer's connection, its companion, its life line, held together under one token.

The Manager asks here for quorums and is told here of failures; it need not know how many processes and
threads that takes.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from procguard.adapters.base import MemberTransport, RankServer
from procguard.client.companion import Companion, Hears
from procguard.client.group_client import GroupClient
from procguard.client.hosts import Host, ListenerThread
from procguard.client.lighthouse_client import LighthouseClient
from procguard.client.link_words import Enrol, InQuorum, LastWords
from procguard.client.witness import LifeLine
from procguard.errors import ReplicaGroupLost
from procguard.kernel import boot_id, read_stat
from procguard.messages import (
    Cause,
    Claim,
    Hello,
    Incarnation,
    Notice,
    Participant,
    Phase,
    Process,
    Quorum,
    QuorumClaim,
    QuorumId,
    Welcome,
)

_log = logging.getLogger(__name__)

TOKEN_BYTES = 16
LEAVE_TIMEOUT_S = 2.0
LISTENER_PATIENCE_S = 5.0
"""The first quorum waits so long for the listener process; on a crowded machine that takes half a second."""
LAST_WORDS_MAX = 300


class Identity(NamedTuple):
    """Who this trainer says it is."""

    job_id: str
    replica_id: str
    min_replicas: int
    progress_timeout_s: float
    group_rank: int = 0
    group_world_size: int = 1
    group_run: str = ""
    """Names one run of the group, alike on all its ranks and unlike the run before."""


class Membership:
    """One trainer's membership, from ``__init__`` (which joins) to ``leave``.

    Args:
        where: the lighthouse's address as errors name it.
        host: the address peers reach this machine at.
        connect: opens a connection to the lighthouse.
        connect_rank: opens one to our group's server.
        open_server: opens a place at which to serve our group, should we be its rank 0.
        start_process: starts a listener process for a life line; None: no listening process is spawned
            and no notice is heard (proactive recovery is off).
        hears: told of failures, on the failure thread.
        run_promptly: called by the failure thread at its start, to be run promptly when it wakes.

    Raises:
        LighthouseUnreachable, LighthouseRejected: it could not join within ``connect_timeout_s``.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        where: str,
        host: str,
        connect: Callable[[], MemberTransport],
        connect_rank: Callable[[str, int], MemberTransport],
        open_server: Callable[[str], RankServer],
        start_process: Callable[[LifeLine], Host] | None,
        hears: Hears,
        connect_timeout_s: float,
        run_promptly: Callable[[], object] = lambda: None,
    ) -> None:
        self.replica_id = identity.replica_id
        self.group_rank = identity.group_rank
        self.group_world_size = identity.group_world_size
        self._host = host
        self._open_server = open_server
        self._life_line = LifeLine()
        self.board = self._life_line.board
        self._connect = connect
        self._proactive = start_process is not None
        self._hello = Hello(
            job_id=identity.job_id,
            replica_id=identity.replica_id,
            token=secrets.token_bytes(TOKEN_BYTES),
            process=this_process(),
            group_rank=identity.group_rank,
            group_world_size=identity.group_world_size,
            group_run=identity.group_run,
            min_replicas=identity.min_replicas,
            progress_timeout_s=identity.progress_timeout_s,
        )
        self._companion: Companion | None = None
        self._disowned = False
        with ExitStack() as on_failure:
            on_failure.callback(self._life_line.close)
            self._client = LighthouseClient(
                connect(), self._hello, where, self._reborn, on_unheard=self._unheard
            )
            on_failure.callback(self._client.close)
            welcome = self._client.join(connect_timeout_s)
            on_failure.pop_all()
        self._group: GroupClient | None = None
        self._group_loss: ReplicaGroupLost | None = None
        self._hears = hears
        if self.group_world_size > 1:
            self._group = GroupClient(self.replica_id, self.group_rank, self._find_group, connect_rank)
        start = partial(start_process, self._life_line) if start_process else None
        self._companion = Companion(self._start_thread, start, self, run_promptly=run_promptly)
        self._companion.start(self._enrol(welcome))

    @property
    def incarnation(self) -> Incarnation:
        """The present one."""
        return self._client.welcome.incarnation

    @property
    def listening_pids(self) -> list[int]:
        """Pids of the listener processes."""
        return self._companion.listening_pids if self._companion else []

    def quorum(self, asks: Participant, timeout_s: float) -> Quorum:
        """Take part in the next quorum, with all the ranks of our group.

        Nobody trains before its witness is there, or the first crashes, the likeliest of all, would be told
        late and without their cause.

        Raises:
            QuorumTimeout, LighthouseRejected: there is none, and why.
            ReplicaGroupLost: another rank of our group has ended.
        """
        assert self._companion is not None
        timeout_s -= self._companion.await_listener(min(LISTENER_PATIENCE_S, timeout_s / 2))
        if self._group is not None:
            formed = self._group.quorum(asks, self._client.epoch, timeout_s)
            quorum, epoch = formed.quorum, formed.epoch
        else:
            companion = self._companion
            quorum = self._client.quorum(asks, timeout_s, lambda: companion.over)
            epoch = self._client.epoch
        members = tuple([(p.replica_id, p.incarnation) for p in quorum.participants])
        self._companion.in_quorum(InQuorum(epoch, QuorumClaim(quorum.quorum_id, members)))
        return quorum

    def vote(self, round: int, commits: bool, timeout_s: float) -> bool:
        """Whether the step of that round counts for our group, given whether it does here.

        Raises:
            ReplicaGroupLost: another rank has ended, or did not vote in time.
        """
        if self._group is None:
            return commits
        return self._group.vote(self.incarnation, round, commits, timeout_s)

    def check_group(self) -> None:
        """Raise ``ReplicaGroupLost`` once our group is over: of several ranks, none goes on alone."""
        if self._group_loss is not None:
            raise self._group_loss

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Have the failure thread call."""
        if self._companion:
            self._companion.call_later(delay_s, call)

    def show(
        self, *, phase: Phase | None = None, progress: int | None = None, step: int | None = None
    ) -> None:
        """Write on the board what the next beat tells."""
        if not self._disowned:
            self.board.write(phase=phase, progress=progress, step=step)

    def say_last_words(self, error: BaseException) -> None:
        """An uncaught exception is about to end this process: let the obituary say which."""
        if self._companion:
            text = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
            text = text.encode(errors="replace").decode()  # file names may hold what is no UTF-8
            self._companion.tell(LastWords(text[:LAST_WORDS_MAX]))

    def leave(self, step: int) -> None:
        """Leave in good order and close everything; ``quorum`` raises from now on, also one in progress."""
        if self._group is not None:
            self._group.close()
        if not self._client.leave(step, LEAVE_TIMEOUT_S):
            _log.warning("The lighthouse did not acknowledge the departure of %s", self.replica_id)
        if self._companion:
            _log.info("Replica %s leaves at step %d, its listener is stopping", self.replica_id, step)
            self._companion.close()
        self._client.close()
        self._life_line.close()

    def disown(self) -> None:
        """In a forked child: let go of the parent's membership without a word, and of its board."""
        self._disowned = True
        if self._companion:
            self._companion.disown()

    # --- what the failure thread hears --------------------------------------------------------------

    def hear(self, epoch: int, notices: tuple[Notice, ...]) -> None:
        """Peers are over."""
        self._hears.hear(epoch, notices)

    def over(self, epoch: int, incarnation: Incarnation, cause: Cause) -> None:
        """Our own incarnation is over: the only rank joins again, one of several has lost its group."""
        if self._group is not None and incarnation == self.incarnation:
            self._group_loss = ReplicaGroupLost(
                f"replica group {self.replica_id} is over ({cause}): end all its ranks and start them again"
            )
            self._group.lost(self._group_loss)
        self._hears.over(epoch, incarnation, cause)

    def left_out(self, quorum_id: QuorumId) -> None:
        """The others did not wait for us any longer."""
        self._hears.left_out(quorum_id)

    # --- inside -------------------------------------------------------------------------------------

    def _reborn(self, welcome: Welcome) -> None:
        _log.info("Replica %s joined as incarnation %s", self.replica_id, welcome.incarnation)
        if self._companion:
            self._companion.enrol(self._enrol(welcome))

    def _unheard(self) -> None:
        if self._companion:
            self._companion.replace_listener()

    def _enrol(self, welcome: Welcome) -> Enrol:
        hello = self._hello._replace(claim=Claim(welcome.incarnation, None), epoch=welcome.epoch)
        serves = self.group_world_size > 1 and self.group_rank == 0
        serve_at = self._host if serves else ""
        return Enrol(hello, welcome.notice_port, welcome.seq, welcome.settings, serve_at)

    def _find_group(self, timeout_s: float) -> tuple[str, int] | None:
        """Where our group's server is."""
        host, _, port = self._client.lookup(timeout_s).rpartition(":")
        return (host.strip("[]"), int(port)) if host and port.isdecimal() else None

    def _start_thread(self) -> Host:
        transport = self._connect()
        return ListenerThread(transport, self.board, self._open_server, hear_notices=self._proactive)


def this_process() -> Process:
    """This process, as no other on any boot of any machine is called."""
    try:
        return Process(socket.gethostname(), boot_id(), os.getpid(), read_stat(os.getpid()).start_ticks)
    except OSError:  # no /proc
        return Process(socket.gethostname(), "", os.getpid(), 0)
