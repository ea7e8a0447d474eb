"""The ranks of a replica group over ZeroMQ: a ROUTER where rank 0's session runs, or another who serves them.

A rank reaches it as any member reaches a lighthouse, with ``ZmqMemberTransport``. With keys all ranks of a
group hold the key of their replica: rank 0's place serves under it, and lets in nobody else.
"""

from __future__ import annotations

import errno
import os
import select
from contextlib import suppress

import zmq

from procguard.adapters.base import Frame
from procguard.adapters.zmq_doorkeeper import Doorkeeper
from procguard.adapters.zmq_keys import MemberKeys
from procguard.adapters.zmq_sockets import ROUTER, Advice, Context, Socket, bind_socket, endpoint, open_socket
from procguard.errors import UsageError
from procguard.messages import ANSWER_BYTES_MAX

EVERYWHERE = "*"
ADVICE = Advice(
    in_use="by another program: stop that one, or give another port, or 0 for any free one",
    port="or give 0 for any free one",
    address="give an address of this machine",
)
_NOBLOCK = int(zmq.NOBLOCK)


class ZmqRankServer:
    """A ROUTER on a free port.

    Args:
        host: what the ranks know this machine as. Listens there alone if it is an address of this machine,
            and everywhere if it is not, as behind a translated address.
        keys: of the group, all of whose ranks hold them; None: whoever reaches the port is let in.
        bind: the address to listen on, whatever the ranks know; None: as ``host`` says.
        port: 0 takes a free one.

    Raises:
        UsageError: the port is in use, or ``bind`` is not of this machine.
    """

    def __init__(
        self, host: str, keys: MemberKeys | None = None, *, bind: str | None = None, port: int = 0
    ) -> None:
        self._process = os.getpid()
        self._closed = False
        self._context: Context = zmq.Context(io_threads=1)
        server = keys.as_server() if keys else None
        self._doorkeeper = Doorkeeper(self._context, server.allowed) if server else None
        locks = server.server_options() if server else None
        self._router = open_socket(self._context, zmq.ROUTER, ROUTER, locks)
        self._both: select.epoll | None = None
        if self._doorkeeper:
            self._both = select.epoll()  # one descriptor for two sockets
            for watched in (self._router, self._doorkeeper.socket):
                self._both.register(int(watched.get(zmq.FD)), select.EPOLLIN)
        try:
            port = self._listen(host, bind, port)
        except UsageError:
            self.close()
            raise
        self._address = endpoint(host, port).removeprefix("tcp://")

    def _listen(self, host: str, bind: str | None, port: int) -> int:
        if bind is not None:
            return bind_socket(self._router, bind, port, ADVICE)
        try:
            return bind_socket(self._router, host, port, ADVICE)
        except UsageError:
            return bind_socket(self._router, EVERYWHERE, port, ADVICE)

    @property
    def address(self) -> str:
        return self._address

    def fileno(self) -> int:
        return self._both.fileno() if self._both else int(self._router.get(zmq.FD))

    def has_input(self) -> bool:
        return _readable(self._router) or (
            self._doorkeeper is not None and _readable(self._doorkeeper.socket)
        )

    def drain(self, count_max: int) -> list[Frame]:
        frames: list[Frame] = []
        if self._doorkeeper:
            self._doorkeeper.serve(count_max)
        with suppress(zmq.Again):
            for _ in range(count_max):
                parts = self._router.recv_multipart(_NOBLOCK)
                if len(parts) == 2:
                    frames.append(Frame(*parts))
        return frames

    def send(self, peer: bytes, frame: bytes) -> bool:
        if len(frame) > ANSWER_BYTES_MAX:
            return False
        try:
            self._router.send_multipart([peer, frame], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EHOSTUNREACH, errno.EAGAIN):
                raise
            return False
        return True

    def close(self) -> None:
        if self._closed or self._process != os.getpid():
            return
        self._closed = True
        self._router.close()
        if self._doorkeeper and self._both:
            self._doorkeeper.close()
            self._both.close()
        self._context.term()


def _readable(watched: Socket) -> bool:
    return bool(int(watched.get(zmq.EVENTS)) & zmq.POLLIN)
