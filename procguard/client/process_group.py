"""What the Manager needs of a process group: collectives that another thread can abort.

Structural types: ``adapters/collective`` (numpy over TCP) and ``adapters/torch`` (Gloo, NCCL) satisfy
them without importing this module. A group opens its own endpoint and says in ``handle()`` where it can
be reached; the quorum carries the handles to everybody, so no MASTER_ADDR is needed.

The fence: each quorum has one int64 id, and ``abort`` names the quorum it means. An abort is *sticky*
(configure and collectives of that id fail from then on, also those in progress) and touches no other id,
so a late abort cannot break the quorum that came after.

A group whose users have futures of their own kind may have one method more, ``foreign_future(future,
value)``: the same as a future of that kind, which will hold ``value`` or something like it. The Manager's
works then give out these.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, Protocol


class Work(Protocol):
    """A collective in flight."""

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Block until the operation is complete and return True; raise its ``CollectiveError`` if it
        failed, was aborted, or took longer than ``timeout`` (None: the group's own timeout)."""
        ...

    def get_future(self) -> Future[Any]:
        """A future of the list of reduced buffers; it fails with the ``CollectiveError``."""
        ...


class ProcessGroup(Protocol):
    """A set of replicas that can reduce buffers together, configured anew for each quorum."""

    def handle(self) -> str:
        """Where this rank can be reached, as ``host:port`` or whatever the backend understands."""
        ...

    def advertise(self, host: str) -> None:
        """Set the host name or address that ``handle()`` names: the one at which the lighthouse,
        and therefore the peers, can reach this machine."""
        ...

    def configure(self, handles: Sequence[str], rank: int, quorum_id: int, timeout: timedelta) -> None:
        """Connect to the peers of a new quorum and forget the old one.

        ``handles`` has one entry a replica, in the order of the replica ranks; ``rank`` is the
        caller's index in it. Blocks; raises ``CollectiveAborted`` when ``abort(quorum_id)`` comes
        before or meanwhile, ``CollectiveError`` when a peer cannot be reached in ``timeout``.
        """
        ...

    def allreduce(self, buffers: Sequence[Any], op: str = "sum") -> Work:
        """Reduce ``buffers`` elementwise over all replicas (``op``: sum, avg, max, min), in place
        on success; on failure the buffers are untouched."""
        ...

    def abort(self, quorum_id: int) -> None:
        """End everything of that quorum now, from any thread; returns at once."""
        ...

    def errored(self) -> Exception | None:
        """The error that ended the present quorum, if there is one."""
        ...

    def shutdown(self) -> None:
        """Close the endpoint; abort what is in flight."""
        ...
