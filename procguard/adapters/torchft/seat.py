"""A seat: one rank's place in its replica group, and what torchft's ``ManagerClient`` asks of it.

Each rank is a member of its own right, with a token, a listener and a witness, so the death of any of them is
heard at once, and a notice frees each of them by itself. What all ranks must do alike goes the way of every
ProcGuard group: one quorum request of all, one verdict of all votes (``client.group``).

torchft's callers neither count rounds nor know in which quorum a step was committed; both are derived here
from the calls. There is one seat a rank in a process, however many clients ask for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

from procguard.adapters.torchft.manager_words import Described
from procguard.adapters.torchft.plan import result_of, state_of
from procguard.adapters.torchft.results import QuorumResult, packed
from procguard.client import process_hooks
from procguard.client.abort import FencedAbort
from procguard.client.checkpoint import CheckpointTransport
from procguard.client.companion import Hears
from procguard.client.membership import Membership
from procguard.client.process_group import ProcessGroup
from procguard.errors import QuorumTimeout, ReplicaGroupLost
from procguard.messages import Participant, Phase, Quorum, Rank

_log = logging.getLogger(__name__)

Join = Callable[[Described, int, float, Hears], Membership]


class Ends(Protocol):
    """What a failure ends: the collectives of one quorum."""

    def abort(self, quorum_id: int) -> None:
        """End them, now and in future; of no other quorum. From any thread."""
        ...


class Asks(NamedTuple):
    """What a rank says of itself when it asks for a quorum."""

    step: int
    checkpoint_metadata: str
    handle: str
    shrink_only: bool
    commit_failures: int
    init_sync: bool


class Seat:
    """One rank's place, from ``__init__`` (which joins) to ``leave``.

    Raises:
        LighthouseUnreachable, LighthouseRejected: it could not join within ``connect_timeout_s``.
    """

    def __init__(self, group: Described, group_rank: int, connect_timeout_s: float, join: Join) -> None:
        self._described = group
        self._group_rank = group_rank
        self._grouped = group.world_size > 1
        self._lock = threading.Lock()
        self._rounds = Rounds()
        self._progress = Progress()
        self._relay = _Relay()
        self.last_quorum: Quorum | None = None
        self._abort = FencedAbort(
            group.replica_id,
            cast("ProcessGroup", self._relay),  # of the process group it only aborts, and so of the transport
            cast("CheckpointTransport", _NoTransfers()),
            lambda: self._progress.step,
            self._call_later,
        )
        self._membership: Membership | None = None
        self._membership = join(group, group_rank, connect_timeout_s, self._abort)
        process_hooks.watch_over(self._membership)

    def protect(self, ends: Ends) -> None:
        """End these collectives when a member of the quorum in use fails."""
        self._relay.ends = ends

    def quorum(self, asks: Asks, timeout_s: float) -> QuorumResult:
        """Take part in the next quorum, with all ranks of the group.

        Raises:
            QuorumTimeout, LighthouseRejected: there is none, and why.
            ReplicaGroupLost: another rank of the group has ended.
        """
        with self._lock:
            give_up_at = time.monotonic() + timeout_s
            membership = self._member()
            membership.check_group()
            self._abort.begin_round()
            membership.show(step=asks.step, phase=Phase.QUORUM)
            quorum = self._usable(asks, give_up_at)
            membership.show(phase=Phase.COMPUTE)
            self.last_quorum = quorum
            result = result_of(quorum, self._described.replica_id, self._group_rank, asks.init_sync)
            self._progress.enter(quorum, asks.step, result)
            return result

    def _usable(self, asks: Asks, give_up_at: float) -> Quorum:
        """A quorum whose members all live, as far as is known here.

        The ranks of a larger group do not ask again one by one: their collectives fail at once, and so they
        vote the step down together.
        """
        broken = 0
        while True:
            quorum = self._ask(asks, broken, give_up_at)
            if self._abort.install(quorum):
                return quorum
            self._abort.begin_round()
            if self._grouped:
                self._relay.abort(quorum.quorum_id.packed)
                return quorum
            broken += 1

    def _ask(self, asks: Asks, broken: int, give_up_at: float) -> Quorum:
        membership, group = self._member(), self._described
        left_s = give_up_at - time.monotonic()
        if left_s <= 0:
            raise QuorumTimeout("each quorum in that time had lost a member before it could be used")
        participant = Participant(
            replica_id=group.replica_id,
            incarnation=membership.incarnation,
            round=self._rounds.for_quorum(),
            step=asks.step,
            committed_in=self._progress.committed_in(asks.step),
            world_size=group.world_size,
            address=group.address,
            shrink_only=asks.shrink_only,
            commit_failures=asks.commit_failures + broken,
            data=packed(group.store_address),
            ranks=(Rank(asks.handle, asks.checkpoint_metadata),),
        )
        quorum = membership.quorum(participant, left_s)
        self._rounds.formed()
        return quorum

    def vote(self, step: int, commits: bool, timeout_s: float) -> bool:
        """Whether the step counts for the group, given whether it does for this rank.

        Raises:
            ReplicaGroupLost: another rank of the group has ended.
            TimeoutError: not all ranks voted in time. They may be asked again.
        """
        with self._lock:
            membership = self._member()
            try:
                verdict = membership.vote(self._rounds.for_vote(), commits, timeout_s)
            except ReplicaGroupLost as error:
                membership.check_group()
                group = self._described
                raise TimeoutError(  # none has ended: it is late, and may yet vote
                    f"not all {group.world_size} ranks of replica {group.replica_id} voted on step {step} "
                    f"within {timeout_s:g} s"
                ) from error
            self._rounds.judged()
            self._progress.judge(step, commits, verdict)
            membership.show(step=self._progress.step)
            return verdict

    def leave(self) -> None:
        """Leave in good order. Again: no difference."""
        membership, self._membership = self._membership, None
        self.last_quorum = None
        if membership is not None:
            process_hooks.forget(membership)
            membership.leave(self._progress.step)

    def _member(self) -> Membership:
        if self._membership is None:
            raise ReplicaGroupLost(f"replica {self._described.replica_id} has been shut down")
        return self._membership

    def _call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        if self._membership is not None:
            self._membership.call_later(delay_s, call)


class Rounds:
    """Numbers a rank's rounds: at most one quorum and one verdict in each. Alike on ranks that are asked
    alike.

    A call that failed has used up nothing: it can be made again, in the same round as the other ranks.
    """

    def __init__(self) -> None:
        self._number = 0
        self._formed = self._judged = True

    def for_quorum(self) -> int:
        if self._formed or self._judged:
            self._next()
        return self._number

    def formed(self) -> None:
        self._formed = True

    def for_vote(self) -> int:
        if self._judged:
            self._next()
        return self._number

    def judged(self) -> None:
        self._judged = True

    def _next(self) -> None:
        self._number += 1
        self._formed = self._judged = False


class Progress:
    """Of which quorum this rank's state is, which torchft's callers do not say.

    A step counts from the verdict; a state that was fetched is of its source's quorum, once it is voted for
    or the next call comes from its step. A step that comes from elsewhere (a checkpoint on disk) is of no
    quorum.
    """

    def __init__(self) -> None:
        self.step = 0
        self._committed_in = 0
        self._fetched: tuple[int, int] | None = None
        self._quorum_id = 0

    def committed_in(self, step: int) -> int:
        """The quorum in which ``step`` was committed, packed; 0: none that is known of."""
        if step != self.step and self._fetched is not None and self._fetched[0] == step:
            self._adopt()
        if step != self.step:
            self.step, self._committed_in = step, 0
        return self._committed_in

    def enter(self, quorum: Quorum, step: int, result: QuorumResult) -> None:
        """A quorum stands; perhaps its state is fetched now."""
        self._quorum_id = quorum.quorum_id.packed
        source = result.recover_src_replica_rank
        self._fetched = None if source is None else state_of(quorum.participants[source])

    def judge(self, step: int, commits: bool, verdict: bool) -> None:
        """The rank's vote and the verdict on ``step``."""
        if commits and self._fetched is not None:
            self._adopt()
        if verdict:
            self.step, self._committed_in = step + 1, self._quorum_id

    def _adopt(self) -> None:
        assert self._fetched is not None
        (self.step, self._committed_in), self._fetched = self._fetched, None


class _Relay:
    """Passes an abort on, once there is somebody to whom."""

    def __init__(self) -> None:
        self.ends: Ends | None = None

    def abort(self, quorum_id: int) -> None:
        if self.ends is not None:
            self.ends.abort(quorum_id)


class _NoTransfers:
    """torchft's own transports carry the state; they are not ours to end."""

    def abort(self) -> None:
        pass


_seats: dict[tuple[str, int], Seat] = {}
_seats_lock = threading.Lock()


def take_seat(group: Described, group_rank: int, connect_timeout_s: float, join: Join) -> Seat:
    """This process's seat of that rank; joins if it is the first to ask for it."""
    with _seats_lock:
        seat = _seats.get((group.run, group_rank))
        if seat is None:
            seat = _seats[group.run, group_rank] = Seat(group, group_rank, connect_timeout_s, join)
        return seat


def last_seen(address: str) -> Participant | None:
    """The member whose manager is at this address, in the last quorum that a seat of this process was in."""
    with _seats_lock:
        quorums = [seat.last_quorum for seat in _seats.values() if seat.last_quorum]
    for quorum in sorted(quorums, key=lambda quorum: quorum.quorum_id, reverse=True):
        for participant in quorum.participants:
            if participant.address == address:
                return participant
    return None


def leave_seats(run: str, *group_ranks: int) -> None:
    """Leave those of them that this process has taken."""
    with _seats_lock:
        seats = [_seats.get((run, rank)) for rank in group_ranks]
    for seat in seats:
        if seat is not None:
            seat.leave()  # and stays in the table, so that a later call is told so and does not join again
