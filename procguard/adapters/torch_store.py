"""Where the ranks of a quorum meet: each has a store of its own, and all come to that of rank 0.

A rank's handle is ``host:port/token``. The store is a ``TCPStore`` of this process or, under torchrun, the
one of its agent at MASTER_ADDR and MASTER_PORT: there is one already, and it may be the only port that is
open between the machines. The token is random, so that a handle whose port is another's by now leads nowhere.

torch waits in C++ for a peer that may be dead, where nothing can free it. So the ranks gather first, by turns
of a poll that looks whether the quorum is over, and only when all are there may torch begin to connect.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple

from torch.distributed import PrefixStore, Store, TCPStore

from procguard.adapters.process_group import Place
from procguard.adapters.torch_quorum import first_line
from procguard.errors import CollectiveAborted, CollectiveError, CollectiveTimeout, UsageError

AGENT_TIMEOUT = timedelta(seconds=2)
"""For the store of torchrun's agent, which is on this machine or next to it, to answer."""
POLL_S_MIN, POLL_S_MAX = 0.0005, 0.01
_HANDLE = re.compile(
    r"(?P<host>\[[^/\[\]]*:[^/\[\]]*\]|[^:/\[\]]+):(?P<port>[0-9]{1,5})/(?P<token>[0-9a-f]{16})"
)


class Meeting(NamedTuple):
    """What a handle says."""

    host: str
    port: int
    token: str


def read_handle(handle: str) -> Meeting:
    """Raises ``UsageError`` for what no torch process group has said."""
    match = _HANDLE.fullmatch(handle)
    if match is None or not 0 < int(match["port"]) < 1 << 16:
        raise UsageError(
            f"handle {handle!r:.80} is not host:port/token; do all replicas use a process group of torch?"
        )
    return Meeting(match["host"].strip("[]"), int(match["port"]), match["token"])


class Endpoint:
    """This rank's store, opened when it is first asked for."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._environ = environ
        self._token = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._store: TCPStore | None = None
        self._host: str | None = None
        self._led: int | None = None

    def handle(self, host: str) -> str:
        """Where the others find it, if they reach this machine as ``host``."""
        with self._lock:
            if self._store is None:
                self._store = self._agents_store() or _own_store()
            where = self._host or host
            return f"{f'[{where}]' if ':' in where else where}:{self._store.port}/{self._token}"

    def lead(self, quorum_id: int) -> None:
        """A quorum meets here. What the one before has left in the store is of no use any more."""
        with self._lock:
            before, self._led = self._led, quorum_id
            store = self._store
        if before is None or store is None or not hasattr(store, "list_keys"):  # torch before 2.10 or so
            return
        with suppress(RuntimeError):  # of torchrun's agent, which may have ended
            for key in store.list_keys():
                if f"{self._token}/{before}/" in key:
                    store.delete_key(key)

    def close(self) -> None:
        """Free the port, if it is ours."""
        with self._lock:
            self._store = None

    def _agents_store(self) -> TCPStore | None:
        """The store of torchrun's agent; None where there is none, or none that answers."""
        address, port = self._environ.get("MASTER_ADDR", ""), self._environ.get("MASTER_PORT", "")
        if self._environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or not address or not port.isdigit():
            return None
        try:
            store = TCPStore(address, int(port), None, False, AGENT_TIMEOUT, wait_for_workers=False)
        except (RuntimeError, ValueError):
            return None
        self._host = None if _is_loopback(address) else address
        return store


def _own_store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)


def _is_loopback(address: str) -> bool:
    """Whether only this machine knows it by that name."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def gather(place: Place, timeout_s: float, is_over: Callable[[], bool]) -> Store:
    """Return the store of this quorum once all its ranks have come to it.

    Raises:
        CollectiveTimeout: some did not come in ``timeout_s``; the message names them.
        CollectiveError: nobody answers at the handle of rank 0.
        CollectiveAborted: the quorum ``is_over``.
    """
    deadline = time.monotonic() + timeout_s
    host, port, token = read_handle(place.handles[0])
    try:
        socket.create_connection((host, port), timeout_s).close()  # torch would try on, with a stack trace
        client = TCPStore(host, port, None, False, timedelta(seconds=timeout_s), wait_for_workers=False)
        store = PrefixStore(f"{token}/{place.quorum_id}", client)
        store.set(f"here/{place.rank}", "")
        store.add("here", 1)
        await_all(store, place, deadline, is_over)
    except (RuntimeError, OSError) as error:
        reason = f"{place} cannot meet at {host}:{port}, the store of replica rank 0: {first_line(error)}"
        raise CollectiveError(reason, place.quorum_id) from None
    store.set_timeout(timedelta(seconds=max(deadline - time.monotonic(), POLL_S_MAX)))
    return store


def await_all(store: Store, place: Place, deadline: float, is_over: Callable[[], bool]) -> None:
    """Return when all ranks have said in the store that they are here; raises as ``gather`` does."""
    pause_s = POLL_S_MIN
    while store.add("here", 0) < place.world_size:
        if is_over():
            raise CollectiveAborted(f"{place} is over", place.quorum_id)
        if time.monotonic() >= deadline:
            missing = [
                f"replica rank {rank} ({handle.partition('/')[0]})"
                for rank, handle in enumerate(place.handles)
                if not store.check([f"here/{rank}"])
            ]
            reason = f"configure of {place} took too long: waiting for {', '.join(missing)}"
            raise CollectiveTimeout(reason, place.quorum_id)
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, POLL_S_MAX)
