"""``ManagerServer``: rank 0's member of the lighthouse, and the place where the other ranks learn of their
group.

In torchft all that a group says goes through it. Here each rank speaks for itself (``seat``); what is left is
to say which group this is, and where each rank's checkpoint can be fetched, to whoever has not heard that in
a quorum.

It listens where ``bind`` says, as torchft's does, without keys, or with the replica's own where
PROCGUARD_KEYS names them. Nothing that it is asked can stop a training.
"""

from __future__ import annotations

import logging
import secrets
import select
import socket
import threading
import weakref
from contextlib import suppress
from datetime import timedelta

from procguard.adapters.torchft.addresses import parse_bind
from procguard.adapters.torchft.exceptions import as_torchft_raises, seconds
from procguard.adapters.torchft.manager_words import (
    MANAGER,
    Describe,
    Described,
    FromServer,
    ItIsAt,
    ManagerMessage,
    WhereIs,
)
from procguard.adapters.torchft.seat import last_seen, leave_seats, take_seat
from procguard.adapters.torchft.wiring import become_member, way_to
from procguard.adapters.zmq_ranks import ZmqRankServer
from procguard.env import parse_name
from procguard.errors import ProtocolError, UsageError

_log = logging.getLogger(__name__)

DRAIN_MAX = 1_000
RUN_BYTES = 8
WORLD_SIZE_MAX = 1 << 16
END_TIMEOUT_S = 5.0
WAKES_MAX = 4096


class ManagerServer:
    """One replica group's manager; made by its rank 0, which becomes a member of the lighthouse by it.

    Args:
        replica_id (str): The group's name, unlike that of its last life: torchft's Manager adds a UUID.
        lighthouse_addr (str): The lighthouse, such as "http://host:29510".
        hostname (str): What the others know this machine as.
        bind (str): Where to listen, such as "[::]:0".
        store_addr (str): The group's store, for the others to read.
        world_size (int): How many ranks the group has.
        heartbeat_interval (timedelta): Accepted; the lighthouse gives the interval to all.
        connect_timeout (timedelta): How long the lighthouse may take to answer at first.
        quorum_retries (int): Accepted; a quorum is asked for until the caller's timeout is over anyway.

    Raises:
        RuntimeError: no lighthouse answers, it refuses, or an argument cannot work.
    """

    def __init__(
        self,
        replica_id: str,
        lighthouse_addr: str,
        hostname: str,
        bind: str,
        store_addr: str,
        world_size: int,
        heartbeat_interval: timedelta,
        connect_timeout: timedelta,
        quorum_retries: int,
    ) -> None:
        connect_s = seconds("connect_timeout", connect_timeout)
        seconds("heartbeat_interval", heartbeat_interval)
        with as_torchft_raises():
            if type(world_size) is not int or not 1 <= world_size <= WORLD_SIZE_MAX:
                raise UsageError(f"world_size is {world_size!r}; give a whole number, 1 or more")
            way = way_to(lighthouse_addr, parse_name(replica_id))
            host, port = parse_bind(bind)
            place = ZmqRankServer(hostname, way.keys, bind=host, port=port)
            self._address = f"http://{place.address}"
            described = Described(
                lighthouse=str(way.address),
                replica_id=replica_id,
                run=secrets.token_hex(RUN_BYTES),
                world_size=world_size,
                address=self._address,
                store_address=store_addr,
            )
            try:
                take_seat(described, 0, connect_s, become_member)
            except BaseException:
                place.close()
                raise
        running = _Running(place, described)
        self._end = weakref.finalize(self, running.end)
        self._end.atexit = False  # a process that ends without shutdown() is its listener's to tell of

    def address(self) -> str:
        """Where it is reached: "http://host:port".

        Returns:
            str: For a ManagerClient's ``addr``.
        """
        return self._address

    def shutdown(self) -> None:
        """Leave the job and close the port. Again: no difference."""
        self._end()


class _Running:
    """Its place to listen, served by a thread; the server may be collected meanwhile."""

    def __init__(self, place: ZmqRankServer, described: Described) -> None:
        self._place = place
        self._described = described
        self._wake_read, self._wake_write = socket.socketpair()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="procguard-torchft-manager", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._place.fileno(), select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        while not self._ending:
            for peer, frame in self._place.drain(DRAIN_MAX):
                try:
                    answer = self._answer(MANAGER.decode(frame))
                except ProtocolError as error:
                    _log.warning(
                        "A frame for the manager of %s was dropped: %s", self._described.replica_id, error
                    )
                    continue
                if answer is not None:
                    self._place.send(peer, MANAGER.encode(answer))
            if not self._place.has_input():
                poller.poll()
        self._place.close()
        self._wake_read.close()
        self._wake_write.close()

    def _answer(self, message: ManagerMessage) -> FromServer | None:
        if isinstance(message, Describe):
            return self._described
        if isinstance(message, WhereIs):
            member = last_seen(self._described.address)
            ranks = member.ranks[message.group_rank :] if member else ()
            return ItIsAt(ranks[0].checkpoint_metadata if ranks else None)
        return None

    def end(self) -> None:
        leave_seats(self._described.run, 0)
        self._ending = True
        with suppress(OSError):  # it has ended by itself
            self._wake_write.send(b"x")
        self._thread.join(END_TIMEOUT_S)
