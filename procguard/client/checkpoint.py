"""Healing: how a replica that fell behind fetches the state of one that is up to date.

``CheckpointTransport`` is what the Manager needs of a transport: torchft's five methods, and two of
ProcGuard's own. ``HTTPTransport`` is the one that comes with it: the source serves its live arrays over
plain HTTP, the healing replica reads them straight into arrays of its own.

A round, in the Manager's order: ``metadata()`` begins it and mints the URL that the quorum carries to the
peers; ``send_checkpoint`` at the source and ``recv_checkpoint`` at the healing replica run once the quorum
stands; ``disallow_checkpoint`` comes before the optimizer changes the arrays that are being served. A
receiver gets the state of that one step or an error, never a mixture.

``abort()`` is for the failure thread. It ends what is under way in both directions and holds until the
next ``metadata()``: a fetch that was just about to begin fails as well, instead of waiting for a peer
known to be dead. Whoever calls it makes sure that no new round has begun meanwhile.

The token in the URL is all that stands between the port and the weights: it appears in no log, no error
and no answer.
"""

from __future__ import annotations

import os
import socket
import threading
import weakref
from datetime import timedelta
from typing import Any, Protocol

from procguard.client.checkpoint_fetch import CheckpointFetch
from procguard.client.checkpoint_source import PATH_PREFIX, CheckpointSource, Publication
from procguard.client.state_stream import encode
from procguard.errors import CheckpointError, UsageError


class CheckpointTransport(Protocol):
    """Carries the state of an up-to-date replica to those that heal from it."""

    def metadata(self) -> str:
        """Begin a round; where, in this round, this replica's state can be fetched."""
        ...

    def advertise(self, host: str) -> None:
        """Set the host that ``metadata`` names, unless the transport was given one."""
        ...

    def send_checkpoint(self, dst_ranks: list[int], step: int, state_dict: Any, timeout: timedelta) -> None:
        """Let the replicas of ``dst_ranks`` fetch ``state_dict``, without waiting for them. Raises
        ``UnsupportedState``, or ``CheckpointError`` when the round is aborted."""
        ...

    def disallow_checkpoint(self) -> None:
        """Return once nobody reads the state any more; call before changing it."""
        ...

    def recv_checkpoint(self, src_rank: int, metadata: str, step: int, timeout: timedelta) -> Any:
        """The state of ``step``, verified. Raises ``CheckpointError``."""
        ...

    def abort(self) -> None:
        """End this round's transfers in both directions, from any thread; returns at once."""
        ...

    def shutdown(self, wait: bool = True) -> None:
        """Free the port; with ``wait``, running transfers may finish first."""
        ...


class HTTPTransport:
    """Serves and fetches state dicts over HTTP.

    ``timeout`` bounds how long ``disallow_checkpoint`` and ``shutdown`` wait for running transfers.
    ``host`` is the name under which peers reach this machine (default: what ``advertise`` says, and until
    then the host's own name); ``port`` 0 takes any free one.
    """

    def __init__(self, timeout: timedelta, host: str | None = None, port: int = 0) -> None:
        self._timeout_s = _seconds(timeout)
        self._host_is_given = host is not None
        self._host = host or socket.gethostname()
        self._lock = threading.Lock()
        self._fetches: set[CheckpointFetch] = set()
        self._aborted = False
        self._closed = False
        self._source = CheckpointSource(port)
        _transports.add(self)

    def metadata(self) -> str:
        with self._lock:
            self._check_open()
            self._aborted = False
            host = f"[{self._host}]" if ":" in self._host else self._host
            return f"http://{host}:{self._source.port}{PATH_PREFIX}{self._source.mint_token()}"

    def advertise(self, host: str) -> None:
        if not self._host_is_given:
            self._host = host

    def send_checkpoint(self, dst_ranks: list[int], step: int, state_dict: Any, timeout: timedelta) -> None:
        """``timeout`` is how long a receiver may take nothing before its transfer is cut. ``dst_ranks``
        is not needed: only they were told the token."""
        publication = Publication(step, encode(state_dict), _seconds(timeout))
        with self._lock:
            self._check_open()
            if self._aborted:
                raise CheckpointError(f"aborted: sending step {step}")
            self._source.publish(publication)

    def disallow_checkpoint(self) -> None:
        self._source.withdraw(self._timeout_s)

    def recv_checkpoint(self, src_rank: int, metadata: str, step: int, timeout: timedelta) -> Any:
        """``timeout`` is how long the source may send nothing. Arrays and tensors arrive in host memory,
        contiguous."""
        fetch = CheckpointFetch(src_rank, metadata, step, _seconds(timeout))
        with self._lock:
            self._check_open()
            if self._aborted:
                fetch.abort()
            self._fetches.add(fetch)
        try:
            return fetch.run()
        finally:
            with self._lock:
                self._fetches.discard(fetch)

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            for fetch in self._fetches:
                fetch.abort()
            self._source.abort()

    def shutdown(self, wait: bool = True) -> None:
        with self._lock:
            was_closed, self._closed = self._closed, True
        if was_closed:
            return
        if wait:
            self._source.withdraw(self._timeout_s)
        self.abort()
        self._source.close()

    def _check_open(self) -> None:
        if self._closed:
            raise CheckpointError("this checkpoint transport is shut down, or was inherited by a fork")

    def _forked(self) -> None:
        # In the child, where no other thread exists and the lock may be taken for ever. A copy of a
        # socket that stays open would keep the peers from seeing the parent's end.
        self._lock = threading.Lock()
        self._closed = True
        self._source.close_inherited()
        for fetch in self._fetches:
            fetch.close_inherited()
        self._fetches = set()


def _seconds(timeout: timedelta) -> float:
    seconds = timeout.total_seconds()
    if seconds <= 0:
        raise UsageError(f"a checkpoint timeout of {seconds:g} s; give one above 0")
    return seconds


_transports: weakref.WeakSet[HTTPTransport] = weakref.WeakSet()


def _close_inherited_transports() -> None:
    for transport in list(_transports):
        transport._forked()


os.register_at_fork(after_in_child=_close_inherited_transports)
